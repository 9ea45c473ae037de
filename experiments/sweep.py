r"""Run a grid of algorithms and settings, each as a process of train.py.

  python experiments/sweep.py --run=ssgd --run=pr_sgd,period=4 \
    --grid=seed=0,1,2 --grid=learning_rate=0.01,0.02,0.04 \
    --best_by=learning_rate --workdir=runs/sweep

This runs every combination of --run and --grid. It writes to --workdir:

  sweep.csv            a row for each run, with its status and final measures
  records.csv          a row for each record of each run
  best.json, best.md   the best value for each method, with --best_by
  NAME/, logs/NAME.log the directory and the log file of each run

An axis can also be:

  --grid=num_replicas:batch_size=4:32,8:16  flags that change together
  --grid=learning_rate_drops=40+60,80       lists, with + instead of commas
  --grid=period=4,16                        an option of the algorithms; applies
                                            to each --run that has this option
                                            and does not set it

Repeat the command to resume an interrupted sweep: it reads finished and
diverged runs, and resumes the rest from their checkpoints. --jobs=4 runs four
processes at a time, each on its own GPU if the machine has enough.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import imports, signals

if __name__ == '__main__':
  signals.watch()  # before the other imports, which take seconds
  imports.begin()

from collections.abc import Sequence
import os
from typing import NamedTuple

from absl import flags
import jax
import tqdm

from experiments import compare
from experiments.running.execution import (
  experiment,
  keeping,
  runs,
  tuning,
  warm_start,
)
from experiments.running.execution.intervals import Intervals
from experiments.running.flags import (
  cli,
  config,
  data,
  grids,
  network,
  process_flags,
  speed_flags,
)
from experiments.running.process import jobs, locks, messages
from experiments.running.records import records, writing
from experiments.running.records.json_files import DamagedFile
from experiments.tools import tables
from prsgd_jax.data.datasets import Dataset

FLAGS = flags.FLAGS
TRAIN = pathlib.Path(__file__).with_name('train.py')
_LAST_WORDS = 2**12  # bytes to read from the log of a failed run

flags.adopt_module_key_flags(compare)
flags.adopt_module_key_flags(grids)
flags.DEFINE_integer(
  'jobs', 1, 'Number of runs at a time, >= 0; 0 uses one per GPU.'
)
flags.DEFINE_list(
  'best_by',
  [],
  'Axes of --grid, with commas between them, whose best value to choose for '
  'each method. Default: none.',
)
flags.DEFINE_enum(
  'best_measure',
  'loss',
  list(tuning.MEASURES),
  'Measure by which --best_by chooses: the value at the end of a run, averaged '
  'over seeds.',
)


class Trial(NamedTuple):
  """A checked run of the sweep."""

  point: grids.Point
  workdir: pathlib.Path
  num_steps: int


def main() -> None:
  # On CPU, because the processes of the runs need the accelerators.
  jax.config.update('jax_platforms', 'cpu')
  with cli.one_line_errors(ValueError):
    process_flags.refuse(FLAGS, 'sweep.py starts each run as one process')
    if FLAGS.workdir is None:
      raise ValueError('sweep.py requires --workdir, a directory to write to')
    if FLAGS.jobs < 0:
      raise ValueError(f'--jobs must be >= 0, got {FLAGS.jobs}')
    workdir = pathlib.Path(FLAGS.workdir)
    points = grids.points(FLAGS.run, FLAGS.grid, FLAGS)
    names = list(points[0].values)
    _check_best_by(names)
    trials = check(points, workdir)
  with (
    cli.one_line_errors(locks.LockError),
    signals.exit_when_stopped(signals.again()),
    locks.hold(workdir),
  ):
    _sweep(trials, names, workdir)


def _sweep(
  trials: Sequence[Trial], names: Sequence[str], workdir: pathlib.Path
) -> None:
  print(f'{len(trials)} runs, written to {workdir}', flush=True)
  rows = _run(trials, workdir)
  with cli.one_line_errors(DamagedFile):
    _write_records(workdir / 'records.csv', trials, rows)
  _tell(rows, workdir)
  if FLAGS.best_by:
    _choose(rows, names, workdir)
  failed = [r['directory'] for r in rows if r['status'] == 'failed']
  if failed:
    cli.fail(
      f'{len(failed)} of {len(rows)} runs did not finish, such as {failed[0]}; '
      f'see {workdir / "logs"}'
    )


def _check_best_by(names: Sequence[str]) -> None:
  for name in FLAGS.best_by:
    axes = [n for n in names if n != 'seed' and not grids.is_option(n)]
    if name not in axes:
      raise ValueError(
        f'--best_by={name} is not an axis of the grid; use one of '
        f'{", ".join(axes) or "none: add a --grid"}'
      )


def check(points: Sequence[grids.Point], workdir: pathlib.Path) -> list[Trial]:
  """Check all runs before the first one starts.

  Args:
    points: runs of the grid.
    workdir: directory of the sweep.

  Raises:
    ValueError: if train.py would refuse a run, or its directory holds another.
  """
  loaded: dict[tuple[object, ...], Dataset] = {}
  trials = []
  for point in points:
    machines = network.from_flags(point.flags, point.config.num_replicas)
    intervals = Intervals.from_flags(point.flags)
    found = point.config
    key = (found.dataset, found.text_file, found.sequence_length, found.stream)
    if key not in loaded:
      loaded[key] = data.load(found, FLAGS.data_dir)
    parts = experiment.assemble(found, loaded[key], 1, machines)
    trial = Trial(point, workdir / point.slug(), parts.plan.num_steps)
    keeping.from_flags(point.flags)
    runs.stall_seconds_from_flags(point.flags)
    parts, _ = warm_start.plan(parts, trial.workdir, point.flags)
    records.check_workdir(
      trial.workdir,
      runs.describe(parts, intervals),
      num_steps=trial.num_steps,
      resume=True,
    )
    trials.append(trial)
  return trials


def _run(
  trials: Sequence[Trial], workdir: pathlib.Path
) -> list[records.Record]:
  """Run unfinished trials and return the rows of an updated `sweep.csv`."""
  codes: dict[str, int] = {}  # name of a process that ended -> exit code
  waiting = [t for t in trials if row(t)['status'] not in ('done', 'diverged')]
  by_name = {trial.workdir.name: trial for trial in waiting}
  bar = tqdm.tqdm(
    total=len(trials),
    initial=len(trials) - len(waiting),
    unit='run',
    disable=not FLAGS.progress,
  )

  def keep() -> list[records.Record]:
    rows = [row(t, codes.get(t.workdir.name)) for t in trials]
    write_csv(workdir / 'sweep.csv', rows)
    return rows

  def on_end(job: jobs.Job, code: int) -> None:
    codes[job.name] = code
    found = row(by_name[job.name], code)
    if found['status'] != 'done':
      messages.warn(f'{job.name}: {found["failed"]}')
    bar.update()
    keep()

  def on_wait(running: Sequence[jobs.Job]) -> None:
    steps = [f'{job.name} {_steps_done(by_name[job.name])}' for job in running]
    bar.set_postfix_str(', '.join(steps), refresh=False)

  gpus = jobs.visible_gpus()
  workdir.mkdir(parents=True, exist_ok=True)
  keep()
  with bar:
    jobs.run_all(
      [_job(trial, workdir) for trial in waiting],
      at_once=FLAGS.jobs or max(1, len(gpus)),
      gpus=gpus,
      on_end=on_end,
      on_wait=on_wait,
    )
  return keep()


def _job(trial: Trial, workdir: pathlib.Path) -> jobs.Job:
  def command() -> list[str]:
    resume = (trial.workdir / records.CONFIG).exists()
    return [
      sys.executable,
      str(TRAIN),
      *grids.command(trial.point),
      *speed_flags.given(FLAGS),
      f'--workdir={trial.workdir}',
      f'--resume={resume}',
      '--noprogress',
    ]

  name = trial.workdir.name
  return jobs.Job(name, command, _log(workdir, name), trial.workdir)


def _log(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'logs' / f'{name}.log'


def _steps_done(trial: Trial) -> str:
  try:
    last = records.read_last_record(trial.workdir)
  except DamagedFile:  # its process ends with the reason
    return f'?/{trial.num_steps}'
  return f'{last["step"] if last else 0}/{trial.num_steps}'


def row(trial: Trial, code: int | None = None) -> records.Record:
  """Return the row of a run: its place in the grid, and how it ended.

  Args:
    trial: the run.
    code: exit code of its process; None before it ends.

  Returns:
    Values by column. The `status` is done, diverged, missing, or failed: the
    process failed, or a file is damaged. The next start of the sweep repeats a
    failed run.
  """
  point = trial.point
  found = {
    'label': point.config.label(),
    'algorithm': point.config.algorithm,
    **point.config.options,
    **point.values,
    'status': 'missing',
    'directory': str(trial.workdir),
  }
  try:
    failure = records.read_failure(trial.workdir)
    summary = records.finished(trial.workdir, trial.num_steps)
  except DamagedFile as error:
    return {**found, 'status': 'failed', 'failed': str(error)}
  if failure is not None:
    return {**found, 'status': 'diverged', **failure}
  if summary is not None:
    return {**found, 'status': 'done', **_flat(summary)}
  if code is None:
    return found
  last = _last_words(_log(trial.workdir.parent, trial.workdir.name))
  return {**found, 'status': 'failed', 'failed': f'exit code {code}; {last}'}


def _last_words(log: pathlib.Path) -> str:
  """Return the last line of a log that is not empty."""
  with open(log, 'rb') as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
    text = file.read().decode(errors='replace')
  return text.strip().rpartition('\n')[2]


def _flat(summary: records.Record) -> records.Record:
  """Return a record without nesting or label, under names no setting has."""
  flat: records.Record = {}
  for name, value in summary.items():
    if isinstance(value, dict):
      flat |= {f'{name}.{key}': inner for key, inner in value.items()}
    elif name != 'label':
      renamed = {'learning_rate': 'final_learning_rate'}
      flat[renamed.get(name, name)] = value
  return flat


def write_csv(path: pathlib.Path, rows: Sequence[records.Record]) -> None:
  """Write a table atomically; a cell is empty if its row lacks the column."""
  writing.write_text(path, tables.csv(rows, last=('directory', 'failed')))


def _write_records(
  path: pathlib.Path,
  trials: Sequence[Trial],
  rows: Sequence[records.Record],
) -> None:
  """Write the records of all runs, each with its place in the grid."""
  table = []
  for trial, found in zip(trials, rows, strict=True):
    names = ('label', 'algorithm', *trial.point.config.options)
    place = {n: found[n] for n in (*names, *trial.point.values)}
    table += [
      {**place, **_flat(record), 'directory': found['directory']}
      for record in records.read_records(trial.workdir)
    ]
  write_csv(path, table)


def _tell(rows: Sequence[records.Record], workdir: pathlib.Path) -> None:
  for status in ('done', 'diverged', 'failed'):
    count = sum(found['status'] == status for found in rows)
    if count:
      print(f'{status + ":":10}{count} of {len(rows)} runs')
  print(f'table:    {workdir / "sweep.csv"}')
  print(f'records:  {workdir / "records.csv"}')


def _choose(
  rows: Sequence[records.Record],
  names: Sequence[str],
  workdir: pathlib.Path,
) -> None:
  """Write and print the best values, with the grid they were chosen from."""
  options = ('seed', *FLAGS.best_by, *config.OPTIONS)
  over = [name for name in names if name not in options]
  measure = FLAGS.best_measure
  with cli.one_line_errors(ValueError):
    chosen = tuning.choose(rows, by=FLAGS.best_by, over=over, measure=measure)
  whole = {
    'by': FLAGS.best_by,
    'measure': measure,
    'grid': FLAGS.grid,
    'commit': records.commit(),
    'methods': chosen,
  }
  writing.write_text(workdir / 'best.json', writing.to_json(whole))
  table = tuning.format_table(chosen, measure)
  writing.write_text(workdir / 'best.md', table)
  print(f'\n{table}\nbest:     {workdir / "best.json"}')


if __name__ == '__main__':
  cli.run(main)

r"""Train with several algorithms on one task and compare the results.

Each --run is an algorithm with its options. All other flags apply to every run.

  python experiments/compare.py --run=ssgd --run=pr_sgd,period=4 \
    --run=one_shot_averaging --workdir=runs/first

This writes a table (comparison.md, comparison.json), a figure (comparison.png)
and a directory for each run to runs/first. Repeat the command to resume an
interrupted comparison. Finished runs are read, not repeated.
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
import contextlib

from absl import flags

from experiments.running.execution import (
  experiment,
  keeping,
  runs,
  warm_start,
)
from experiments.running.execution.finite import NonFinite
from experiments.running.execution.intervals import Intervals
from experiments.running.flags import (
  cli,
  config,
  data,
  dotted,
  network,
  process_flags,
  run_specs,
  speed_flags,
)
from experiments.running.logs import loggers
from experiments.running.process import locks, messages, process_zero
from experiments.running.records import records, units, writing
from experiments.running.records.json_files import DamagedFile
from experiments.tools import axes, figures, tables
from experiments.tools.tables import Column
from prsgd_jax.data.sources import DataError
from prsgd_jax.engine.checkpoints import CheckpointError

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(axes)
flags.adopt_module_key_flags(speed_flags)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(config)
flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(run_specs)


def main() -> None:
  with cli.one_line_errors(ValueError):
    axes.check()
    intervals = Intervals.from_flags(FLAGS)
    keeping.from_flags(FLAGS)
    runs.stall_seconds_from_flags(FLAGS)
    if FLAGS.workdir is None:
      raise ValueError('compare.py requires --workdir, a directory to write to')
    process_flags.join(FLAGS)
    tuned = speed_flags.apply(FLAGS)
    more_loggers = loggers.load(FLAGS.logger)
    # Before importing a user's module, because it may initialize the devices.
    cli.make_fake_devices(FLAGS.num_devices)
    run_configs = run_specs.parse_runs(FLAGS.run)
    dataset = data.load(run_configs[0], FLAGS.data_dir)
    machines = network.from_flags(FLAGS, run_configs[0].num_replicas)
    assembled = [  # all of them, so that an error comes before the first run
      experiment.assemble(
        run_config,
        dataset,
        FLAGS.num_devices,
        machines,
        map_by=FLAGS.map_by,
        block=FLAGS.block,
      )
      for run_config in run_configs
    ]
  workdir = pathlib.Path(FLAGS.workdir)
  with (
    cli.one_line_errors(locks.LockError),
    signals.exit_when_stopped(signals.again()),
    process_zero.held('the lock', lambda: locks.hold(workdir)),
  ):
    print(tuned, end='')
    _compare(assembled, workdir, intervals, more_loggers)


def _compare(
  assembled: list[experiment.Parts],
  workdir: pathlib.Path,
  intervals: Intervals,
  more_loggers: Sequence[loggers.Factory],
) -> None:
  # One placement, because --run has no flags that change it.
  print(f'{len(assembled)} runs, written to {workdir}')
  print(f'each with {assembled[0].placement()}')
  run_dirs = [workdir / p.config.slug() for p in assembled if p.config]
  # Popped, because the trainer of a run keeps its data on the devices.
  summaries = [
    _run(assembled.pop(0), d, intervals, more_loggers) for d in run_dirs
  ]
  process_zero.decide('the table', lambda: _tell(summaries, run_dirs, workdir))
  failed = [s['label'] for s in summaries if 'failed' in s]
  if failed:
    cli.fail(f'{", ".join(failed)} did not finish; see above')


def _tell(
  summaries: Sequence[records.Record],
  run_dirs: Sequence[pathlib.Path],
  workdir: pathlib.Path,
) -> None:
  """Write the tables and the figure, and print the table."""
  table = rows(summaries)
  page = tables.markdown(table, COLUMNS)
  writing.write_text(workdir / 'comparison.md', page)
  writing.write_text(workdir / 'comparison.json', writing.to_json(summaries))
  with cli.one_line_errors(ValueError):
    figures.draw(
      figures.read_runs(run_dirs),
      workdir / 'comparison.png',
      x=FLAGS.x,
      y=FLAGS.y,
    )
  print(f'\n{tables.aligned(table, COLUMNS)}')
  print(f'table:  {workdir / "comparison.md"}')
  print(f'figure: {workdir / "comparison.png"}')


def _run(
  parts: experiment.Parts,
  run_dir: pathlib.Path,
  intervals: Intervals,
  more_loggers: Sequence[loggers.Factory],
) -> records.Record:
  """Run one algorithm unless it has finished, and return the summary.

  The summary of a diverged run has only its label and `failed`, the reason.
  """
  with contextlib.ExitStack() as held:
    return _run_held(parts, run_dir, intervals, more_loggers, held)


def _run_held(
  parts: experiment.Parts,
  run_dir: pathlib.Path,
  intervals: Intervals,
  more_loggers: Sequence[loggers.Factory],
  held: contextlib.ExitStack,
) -> records.Record:
  label = parts.label
  with cli.one_line_errors(ValueError):
    held.enter_context(runs.hold(run_dir))
    parts, start = warm_start.plan(parts, run_dir, FLAGS)
    runs.open_workdir(parts, run_dir, intervals, resume=True)
    summary = process_zero.decide(
      f'whether {label} has finished',
      lambda: records.finished(run_dir, parts.plan.num_steps),
    )
    if summary is not None:
      print(f'{label}: already finished, read from {run_dir}')
      return summary
  own = parts.config.own() if parts.config else ()
  with (
    cli.one_line_errors(
      CheckpointError, DamagedFile, DataError, dotted.OwnError
    ),
    cli.one_line_write_errors(run_dir, ''),
  ):
    try:
      with dotted.named_errors(*own):
        return runs.execute(
          parts,
          run_dir,
          intervals,
          start=start,
          progress=FLAGS.progress,
          more_loggers=more_loggers,
          keep=keeping.from_flags(FLAGS),
          stall_seconds=runs.stall_seconds_from_flags(FLAGS),
        )
    except NonFinite as error:
      messages.warn(f'{label}: {error}')
      return {'label': label, 'failed': str(error)}


COLUMNS = (
  Column('label', 'algorithm'),
  Column('step', 'steps', is_number=True),
  Column('loss', 'train loss', '{:.4f}'.format, is_number=True),
  Column('test_loss', 'test loss', '{:.4f}'.format, is_number=True),
  Column('test_accuracy', 'test accuracy', units.percent, is_number=True),
  Column('rounds', is_number=True),
  Column('bytes_sent', 'bytes sent per replica', units.size, is_number=True),
)


def rows(summaries: Sequence[records.Record]) -> list[records.Record]:
  """Return the rows of the table, with 'not finite' as steps if diverged."""
  return [
    {**s, 'step': 'not finite'} if 'failed' in s else s for s in summaries
  ]


if __name__ == '__main__':
  cli.run(main)

"""Read and write the directory of a run.

The directory contains:

  config.json          label, description, flags and length of the run
  metrics.jsonl        a record every `log_every` steps
  attempts.jsonl       seconds of each attempt by phase; see `goodput`
  tensorboard/         the records as TensorBoard events
  checkpoints/         states to resume from
  summary.json         final measures, once the run has finished
  failure.json         step and reason, if the run diverged
  summary-<step>.json  earlier summary of a run that was later extended
"""

from collections.abc import Collection, Iterator, Sequence
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from experiments.running.process import locks
from experiments.running.records import differences, json_files, units, writing
from prsgd_jax.engine import checkpoints

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'
FAILURE = 'failure.json'
CHECKPOINTS = 'checkpoints'

Record = dict[str, Any]

# Values of a summary that are None if the run was too short to measure them.
UNMEASURED = ('steps_per_second', 'seconds_to_first_steps', 'goodput')
_NETWORK = {
  'links': json_files.values_of(json_files.list_of(json_files.number)),
  'speeds': json_files.list_of(json_files.number),
  'seed': json_files.integer,
}
# Numbers of a record, besides the step.
NUMBERS = (
  'epoch', 'loss', 'rounds', 'bytes_sent', 'modeled_seconds', 'seconds',
)  # fmt: skip
# Forms of the files, which every reader checks.
_CONFIG_FORM = json_files.object_of(
  {
    'label': json_files.text,
    'description': json_files.object_of(
      {
        'algorithm': json_files.text,
        'options': json_files.object_of({}),
        'seed': json_files.integer,
      },
      {'network': json_files.object_of({}, _NETWORK)},
    ),
    'flags': json_files.object_of({}),
  },
  {'num_steps': json_files.count},
)
_RECORD = {
  'step': json_files.count,
  **dict.fromkeys(NUMBERS, json_files.number),
}
_TESTED = dict.fromkeys(
  ('test_loss', 'test_accuracy', 'consensus_distance'), json_files.number
)
# Share of the time since the last record in which the devices had no batches.
_WAITED = {'data_wait': json_files.number}
_RECORD_FORM = json_files.object_of(_RECORD, {**_TESTED, **_WAITED})
SUMMARY_FORM = json_files.object_of(
  {
    'label': json_files.text,
    **_RECORD,
    'steps_per_second': json_files.optional(json_files.number),
    **dict.fromkeys(('replicas', 'device', 'jax', 'commit'), json_files.text),
    'cpus': json_files.optional(json_files.count),
  },
  {**_TESTED, **_WAITED},
)
_FAILURE_FORM = json_files.object_of(
  {'step': json_files.count, 'failed': json_files.text}
)


def check_place(workdir: pathlib.Path) -> None:
  """Raise ValueError if a directory is not empty and holds no run."""
  own = {locks.NAME, CONFIG, CONFIG + writing.PARTIAL}
  if (workdir / CONFIG).exists() or not workdir.exists():
    return
  if not workdir.is_dir():
    raise ValueError(f'{workdir} is not a directory; pass another --workdir')
  if {path.name for path in workdir.iterdir()} - own:
    raise ValueError(
      f'{workdir} is not empty and holds no run; pass another --workdir'
    )


def check_workdir(
  workdir: pathlib.Path,
  description: Record,
  *,
  num_steps: int,
  resume: bool,
  may_change: Collection[str] = (),
) -> None:
  """Check that a run may be written to a directory.

  Args:
    workdir: directory of the run.
    description: values that determine the run.
    num_steps: length of the run in steps.
    resume: whether a saved run may be resumed.
    may_change: names of flags in which it may differ. Default: none.

  Raises:
    ValueError: if the directory holds a run and `resume` is false, or holds a
      different or longer run, or other files.
  """
  path = workdir / CONFIG
  check_place(workdir)
  if not path.exists():
    return
  if not resume:
    raise ValueError(
      f'{workdir} holds a run; pass --resume to resume it, or another --workdir'
    )
  saved = read_config(workdir)['description']
  asked = json.loads(json.dumps(description))
  differences.check(workdir, saved, asked, may_change)
  directory = workdir / CHECKPOINTS
  done = checkpoints.latest_step(directory) or 0
  if done > num_steps:
    raise ValueError(
      f'{directory / str(done)} is past the {num_steps} steps of this run; '
      f'pass --num_steps={done} or more, or another --workdir'
    )


def open_workdir(
  workdir: pathlib.Path,
  description: Record,
  flags: Record,
  *,
  label: str,
  num_steps: int,
  resume: bool,
  may_change: Collection[str] = (),
) -> None:
  """Create the directory of a run, or open it to resume the run.

  Args:
    workdir: directory of the run.
    description: values that determine the run.
    flags: all flags of the run, to save with it.
    label: algorithm and options, to save with the run.
    num_steps: length of the run in steps.
    resume: whether a saved run may be resumed.
    may_change: names of flags in which it may differ. Default: none.

  Raises:
    ValueError: if `check_workdir` refuses the run, or the directory cannot be
      written.
  """
  check_workdir(
    workdir,
    description,
    num_steps=num_steps,
    resume=resume,
    may_change=may_change,
  )
  whole = {
    'label': label,
    'description': description,
    'flags': flags,
    'num_steps': num_steps,
  }
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    writing.write_text(workdir / CONFIG, writing.to_json(whole))
  except OSError as error:
    raise ValueError(
      f'{workdir} cannot be written ({error.strerror}); pass another --workdir'
    ) from error


def set_summary_aside(workdir: pathlib.Path) -> None:
  """Rename the summary of a run that is extended to `summary-<step>.json`."""
  summary = read_summary(workdir)
  if summary is not None:
    name = f'{SUMMARY.removesuffix(".json")}-{summary.get("step")}.json'
    (workdir / SUMMARY).replace(workdir / name)


def write_summary(workdir: pathlib.Path, summary: Record) -> None:
  """Write the summary, which marks the run as finished."""
  writing.write_text(workdir / SUMMARY, writing.to_json(summary))


def read_summary(workdir: pathlib.Path) -> Record | None:
  """Return the summary of a run, None if it has none.

  A null in the file is NaN, or None if the value was not measured. A run that
  is being extended has the summary of its earlier length; see `finished`.

  Raises:
    DamagedFile: if it has another form.
  """
  found = json_files.read(workdir / SUMMARY, SUMMARY_FORM)
  if found is None:
    return None
  absent = {n: None for n in UNMEASURED if n in found and found[n] is None}
  return {**writing.with_nan(found), **absent}


def finished(workdir: pathlib.Path, num_steps: int | None) -> Record | None:
  """Return the summary of a run that reached its planned end, otherwise None.

  Args:
    workdir: directory of the run.
    num_steps: planned length in steps; None for a run of an earlier version,
      which did not save it.

  Raises:
    DamagedFile: if a file has another form.
  """
  summary, last = read_summary(workdir), read_last_record(workdir)
  if summary is None or last is None or read_failure(workdir) is not None:
    return None
  planned = summary['step'] if num_steps is None else num_steps
  return summary if summary['step'] == last['step'] == planned else None


def write_failure(workdir: pathlib.Path, failure: Record | None) -> None:
  """Mark the run as diverged, or remove the mark.

  Args:
    workdir: directory of the run.
    failure: its `step` and `failed`, the reason; None to remove the mark.
  """
  if failure is None:
    json_files.remove(workdir / FAILURE)
  else:
    writing.write_text(workdir / FAILURE, writing.to_json(failure))


def read_failure(workdir: pathlib.Path) -> Record | None:
  """Return `step` and `failed`, the reason, of a diverged run, else None.

  Raises:
    DamagedFile: if it has another form.
  """
  return json_files.read(workdir / FAILURE, _FAILURE_FORM)


def read_config(workdir: pathlib.Path) -> Record:
  """Return `label`, `description`, `flags` and `num_steps` of a run.

  `num_steps` is the planned length; runs of an earlier version lack it.

  Raises:
    ValueError: if the directory holds no run, or the file is damaged.
  """
  found = json_files.read(workdir / CONFIG, _CONFIG_FORM)
  if found is None:
    raise ValueError(f'{workdir} holds no run; pass a directory of runs')
  return found


def commit() -> str:
  """Return the commit of the running code, 'unknown' outside a clone.

  It ends in '-dirty' if Python files or presets have changed. Changed results
  do not count.
  """

  def git(*args: str) -> str:
    here = pathlib.Path(__file__).parent
    command = ['git', '-C', str(here), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    name = git('describe', '--always')
    edited = git('status', '--porcelain', '--', ':/*.py', ':/*.flags')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return f'{name}-dirty' if edited else name


def machine() -> Record:
  """Return the hardware, versions, settings of XLA and commit."""
  return {
    'device': jax.devices()[0].device_kind,
    'processor': platform.processor() or platform.machine(),
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'commit': commit(),
  }


def iterate_records(workdir: pathlib.Path) -> Iterator[Record]:
  """Yield the records of a run, without a last line that was cut off.

  A null in the file is NaN. A repeated line is one record. Only two lines are
  in memory at a time.

  Raises:
    DamagedFile: if a line is damaged, or the steps do not increase.
  """
  path = workdir / METRICS
  before = None
  for i, line in enumerate(json_files.read_lines(path, _RECORD_FORM), 1):
    if line == before:
      continue
    if before is not None and before['step'] >= line['step']:
      raise json_files.damaged(
        path, f'line {i}: step {line["step"]} comes after {before["step"]}'
      )
    yield writing.with_nan(line)
    before = line


def read_records(workdir: pathlib.Path) -> list[Record]:
  """Return the records of a run; see `iterate_records`.

  Raises:
    DamagedFile: if a line is damaged, or the steps do not increase.
  """
  return list(iterate_records(workdir))


def read_last_record(workdir: pathlib.Path) -> Record | None:
  """Return the last record of a run, None if it has none; read only that one.

  Raises:
    DamagedFile: if it is damaged.
  """
  found = json_files.read_last_line(workdir / METRICS, _RECORD_FORM)
  return None if found is None else writing.with_nan(found)


def format_summary(summary: Record, workdir: pathlib.Path) -> str:
  """Return the summary as text for a terminal.

  Args:
    summary: summary of the run.
    workdir: directory of the run.
  """
  rate = summary['steps_per_second']
  lines = [
    f'{summary["label"]}: {summary["replicas"]}',
    *_sizes(summary),
    f'  steps          {summary["step"]} ({summary["epoch"]:.1f} epochs)',
    f'  train loss     {summary["loss"]:.4f}',
    *_tested(summary),
    f'  rounds         {summary["rounds"]}',
    f'  bytes sent     {units.size(summary["bytes_sent"])} per replica',
    *_lost(summary),
    f'  time           {summary["seconds"]:.1f} s'
    + (f', {rate:.0f} steps/s once compiled' if rate else ''),
    *_started(summary),
    *_life(summary),
    *_waited(summary),
    f'  written to     {workdir}',
  ]
  return '\n'.join(lines)


def format_sizes(sizes: Sequence[tuple[int, int]]) -> str:
  """Return the numbers of replicas of a run as text.

  Args:
    sizes: (first step, number of replicas), in order.

  Example:
    >>> print(format_sizes([(0, 8), (500, 4)]))
    8, 4 from step 500
  """
  later = [f'{n} from step {step}' for step, n in sizes[1:]]
  return ', '.join([str(sizes[0][1]), *later])


def _sizes(summary: Record) -> list[str]:
  """Return the line of a run in which the number of replicas changed."""
  sizes = [(x['step'], x['num_replicas']) for x in summary.get('sizes', ())]
  return [f'  replicas       {format_sizes(sizes)}'] if sizes else []


def _started(summary: Record) -> list[str]:
  """Return the line of the time before the first steps, if it was measured."""
  if 'start_seconds' not in summary:
    return []
  seconds = summary['start_seconds']
  return [f'  first steps    {seconds:.1f} s after the start of the program']


def _life(summary: Record) -> list[str]:
  """Return the line of the goodput; runs of an earlier version have none."""
  if summary.get('goodput') is None:
    return []
  seconds = summary['life_seconds']
  others = ', '.join(
    f'{name} {value:.1f} s'
    for name, value in sorted(seconds.items(), key=lambda item: -item[1])
    if name != 'productive' and value >= 0.05
  )
  whole = f'of {sum(seconds.values()):.1f} s' + (others and f': {others}')
  return [f'  goodput        {summary["goodput"]:.0%} {whole}']


def _waited(summary: Record) -> list[str]:
  """Return the line of the time without batches, if there was any."""
  share = summary.get('data_wait')
  return [f'  without data   {share:.1%} of the time'] if share else []


def _lost(summary: Record) -> list[str]:
  """Return the lines of what faults have cost, if any."""
  lines = []
  if 'gradients_lost' in summary:
    lost, missed = summary['gradients_lost'], summary['rounds_missed']
    lines.append(f'  lost           {lost} gradients, {missed} rounds missed')
  if 'replicas_dropped' in summary:
    number = summary['replicas_dropped']
    lines.append(f'  left out       {number} times a replica, not finite')
  return lines


def _tested(summary: Record) -> list[str]:
  """Return the lines of the measures on the test split, if any."""
  lines = []
  if 'test_loss' in summary:
    lines.append(f'  test loss      {summary["test_loss"]:.4f}')
  if 'test_accuracy' in summary:
    lines.append(f'  test accuracy  {summary["test_accuracy"]:.2%}')
  return lines

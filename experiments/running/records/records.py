"""The directory of a run: what is in it, how it is written and read.

It holds `config.json`, `metrics.jsonl` (a record every `log_every` steps),
`tensorboard/`, `checkpoints/` and, when the run is done, `summary.json`, or
`failure.json` when it diverged. A run that was done and is made longer has its
earlier summary in `summary-<step>.json`.
"""

import itertools
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

# Of a summary: None where a run was over before it was measured.
UNMEASURED = ('steps_per_second', 'seconds_to_first_steps')
_NETWORK = {
  'links': json_files.values_of(json_files.list_of(json_files.number)),
  'speeds': json_files.list_of(json_files.number),
  'seed': json_files.integer,
}
# Of a record, besides the step.
NUMBERS = (
  'epoch', 'loss', 'rounds', 'bytes_sent', 'modeled_seconds', 'seconds',
)  # fmt: skip
# The forms of the files: every reader gets values of these kinds, or an error.
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
_RECORD_FORM = json_files.object_of(_RECORD, _TESTED)
SUMMARY_FORM = json_files.object_of(
  {
    'label': json_files.text,
    **_RECORD,
    'steps_per_second': json_files.optional(json_files.number),
    **dict.fromkeys(('replicas', 'device', 'jax', 'commit'), json_files.text),
    'cpus': json_files.optional(json_files.count),
  },
  _TESTED,
)
_FAILURE_FORM = json_files.object_of(
  {'step': json_files.count, 'failed': json_files.text}
)


def check_place(workdir: pathlib.Path) -> None:
  """Raises ValueError if a directory has something else in it than a run."""
  own = {locks.NAME, CONFIG, CONFIG + writing.PARTIAL}
  if (workdir / CONFIG).exists() or not workdir.exists():
    return
  if not workdir.is_dir():
    raise ValueError(f'{workdir} is no directory; pass another --workdir')
  if {path.name for path in workdir.iterdir()} - own:
    raise ValueError(
      f'{workdir} is not empty and holds no run; pass another --workdir'
    )


def check_workdir(
  workdir: pathlib.Path, description: Record, *, num_steps: int, resume: bool
) -> None:
  """Looks whether a run may be written here.

  Args:
    workdir: the directory.
    description: what the run is.
    num_steps: its length.
    resume: whether a run that is there may be resumed.

  Raises:
    ValueError: if there is a run and `resume` is not given, or the run is
      another or longer, or there is something else.
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
  differences.check(workdir, saved, json.loads(json.dumps(description)))
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
) -> None:
  """Makes the directory of a run, or finds the one to go on with.

  Args:
    flags: all that the run was called with, to be kept beside.
    label: of its algorithm with the options, likewise.
    workdir, description, num_steps, resume: as in `check_workdir`.

  Raises:
    ValueError: as `check_workdir`, or if it cannot be written.
  """
  check_workdir(workdir, description, num_steps=num_steps, resume=resume)
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
  """Keeps the summary of a run that continues as `summary-<step>.json`."""
  summary = read_summary(workdir)
  if summary is not None:
    name = f'{SUMMARY.removesuffix(".json")}-{summary.get("step")}.json'
    (workdir / SUMMARY).replace(workdir / name)


def write_summary(workdir: pathlib.Path, summary: Record) -> None:
  """Marks the run as done."""
  writing.write_text(workdir / SUMMARY, writing.to_json(summary))


def read_summary(workdir: pathlib.Path) -> Record | None:
  """The summary of a run that was done, None if there is none.

  What was no number is NaN; only what was not measured is None. A run that is
  being extended still has that of its shorter self; see `finished`.

  Raises:
    DamagedFile: if it has another form.
  """
  found = json_files.read(workdir / SUMMARY, SUMMARY_FORM)
  if found is None:
    return None
  absent = {n: None for n in UNMEASURED if n in found and found[n] is None}
  return {**writing.with_nan(found), **absent}


def finished(workdir: pathlib.Path, num_steps: int | None) -> Record | None:
  """The summary of a run that reached its planned end, None of any other.

  Args:
    workdir: the directory of the run.
    num_steps: the planned length; None where it is not known, of a run of an
      earlier version.

  Raises:
    DamagedFile: if a file has another form.
  """
  summary, last = read_summary(workdir), read_last_record(workdir)
  if summary is None or last is None or read_failure(workdir) is not None:
    return None
  planned = summary['step'] if num_steps is None else num_steps
  return summary if summary['step'] == last['step'] == planned else None


def write_failure(workdir: pathlib.Path, failure: Record | None) -> None:
  """Marks the run as one that diverged, or as one that did not."""
  if failure is None:
    json_files.remove(workdir / FAILURE)
  else:
    writing.write_text(workdir / FAILURE, writing.to_json(failure))


def read_failure(workdir: pathlib.Path) -> Record | None:
  """The `step` at which a run diverged and `failed`, what was wrong then.

  Raises:
    DamagedFile: if it has another form.
  """
  return json_files.read(workdir / FAILURE, _FAILURE_FORM)


def read_config(workdir: pathlib.Path) -> Record:
  """What a run was called with: `label`, `description`, `flags`, `num_steps`.

  The last is the planned length; runs of an earlier version do not have it.

  Raises:
    ValueError: if there is no run, or a damaged one.
  """
  found = json_files.read(workdir / CONFIG, _CONFIG_FORM)
  if found is None:
    raise ValueError(f'{workdir} holds no run; pass a directory of runs')
  return found


def commit() -> str:
  """The commit of the code that runs, 'unknown' outside of a clone.

  It ends in '-dirty' where programs or presets differ from it; results that
  were written since do not count.
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
  """What numbers are measured on."""
  return {
    'device': jax.devices()[0].device_kind,
    'processor': platform.processor() or platform.machine(),
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'commit': commit(),
  }


def read_records(workdir: pathlib.Path) -> list[Record]:
  """The records of a run; a last line that was cut off is left out.

  What was no number is NaN. A line that is there twice is one record.

  Raises:
    DamagedFile: if a line is damaged, or the steps do not increase.
  """
  path = workdir / METRICS
  lines = json_files.read_lines(path, _RECORD_FORM)
  kept = lines[:1]
  for i, (one, after) in enumerate(itertools.pairwise(lines), 2):
    if one == after:
      continue
    if one['step'] >= after['step']:
      raise json_files.damaged(
        path, f'line {i}: step {after["step"]} comes after {one["step"]}'
      )
    kept.append(after)
  return list(map(writing.with_nan, kept))


def read_last_record(workdir: pathlib.Path) -> Record | None:
  """The last of `read_records`, None without any; the others are not read.

  Raises:
    DamagedFile: if it is damaged.
  """
  found = json_files.read_last_line(workdir / METRICS, _RECORD_FORM)
  return None if found is None else writing.with_nan(found)


def format_summary(summary: Record, workdir: pathlib.Path) -> str:
  """The summary for a person to read."""
  rate = summary['steps_per_second']
  lines = [
    f'{summary["label"]}: {summary["replicas"]}',
    f'  steps          {summary["step"]} ({summary["epoch"]:.1f} epochs)',
    f'  train loss     {summary["loss"]:.4f}',
    *_tested(summary),
    f'  rounds         {summary["rounds"]}',
    f'  bytes sent     {units.size(summary["bytes_sent"])} per replica',
    f'  time           {summary["seconds"]:.1f} s'
    + (f', {rate:.0f} steps/s once compiled' if rate else ''),
    f'  written to     {workdir}',
  ]
  return '\n'.join(lines)


def _tested(summary: Record) -> list[str]:
  """The lines of what was measured on the test split, if anything was."""
  lines = []
  if 'test_loss' in summary:
    lines.append(f'  test loss      {summary["test_loss"]:.4f}')
  if 'test_accuracy' in summary:
    lines.append(f'  test accuracy  {summary["test_accuracy"]:.2%}')
  return lines

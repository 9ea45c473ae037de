"""The directory of a run: what is in it, how it is written and read.

It holds `config.json`, `metrics.jsonl` (a record every `log_every` steps),
`tensorboard/`, `checkpoints/` and, when the run is done, `summary.json`, or
`failure.json` when it diverged.
"""

import json
import math
import os
import pathlib
import platform
import subprocess
import time
from typing import Any

import jax
import tensorboardX
import tqdm

from prsgd_jax import checkpoints

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'
FAILURE = 'failure.json'
CHECKPOINTS = 'checkpoints'
PARTIAL = '.partial'

Record = dict[str, Any]


def check_workdir(
  workdir: pathlib.Path, description: Record, *, num_steps: int, resume: bool
) -> None:
  """Looks whether a run may be written here.

  Args:
    workdir: the directory.
    description: what the run is.
    num_steps: its length.
    resume: whether a run that is there may be gone on with.

  Raises:
    ValueError: if there is a run and `resume` is not given, or the run is
      another or longer, or there is something else.
  """
  path = workdir / CONFIG
  if not path.exists():
    cut_off = path.with_name(CONFIG + PARTIAL)
    if workdir.is_dir() and set(workdir.iterdir()) - {cut_off}:
      raise ValueError(
        f'{workdir} is not empty and holds no run; pass another --workdir'
      )
    return
  if not resume:
    raise ValueError(
      f'{workdir} holds a run; pass --resume to go on with it, or another '
      '--workdir'
    )
  saved = _read_json(path)['description']
  this = json.loads(json.dumps(description))
  for name in sorted({*saved, *this}):
    if saved.get(name) != this.get(name):
      raise ValueError(
        f'{workdir} holds a run with {name}={saved.get(name)!r}, this one has '
        f'{this.get(name)!r}; pass another --workdir'
      )
  done = checkpoints.latest_step(workdir / CHECKPOINTS) or 0
  if done > num_steps:
    raise ValueError(
      f'{workdir} holds a run that is at step {done}, past the {num_steps} '
      'steps of this one; pass another --workdir'
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
  whole = {'label': label, 'description': description, 'flags': flags}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / CONFIG, json.dumps(whole, indent=1) + '\n')
  except OSError as error:
    raise ValueError(
      f'{workdir} cannot be written ({error.strerror}); pass another --workdir'
    ) from error


def write_summary(workdir: pathlib.Path, summary: Record) -> None:
  """Marks the run as done."""
  _write(workdir / SUMMARY, json.dumps(summary, indent=1) + '\n')


def read_summary(workdir: pathlib.Path) -> Record | None:
  """The summary of a run that was done, None if there is none."""
  path = workdir / SUMMARY
  return _read_json(path) if path.exists() else None


def write_failure(workdir: pathlib.Path, failure: Record | None) -> None:
  """Marks the run as one that diverged, or as one that did not."""
  if failure is None:
    (workdir / FAILURE).unlink(missing_ok=True)
  else:
    _write(workdir / FAILURE, json.dumps(failure, indent=1) + '\n')


def read_failure(workdir: pathlib.Path) -> Record | None:
  """The `step` at which a run diverged and `failed`, what was wrong then."""
  path = workdir / FAILURE
  return _read_json(path) if path.exists() else None


def read_config(workdir: pathlib.Path) -> Record:
  """What a run was called with: `label`, `description` and `flags`.

  Raises:
    ValueError: if there is no run, or one without these.
  """
  path = workdir / CONFIG
  if not path.exists():
    raise ValueError(f'{workdir} holds no run; pass a directory of runs')
  found = _read_json(path)
  if missing := {'label', 'description', 'flags'} - set(found):
    raise ValueError(
      f'{path} has no {", ".join(sorted(missing))}: it was written by an '
      'earlier version; run it again'
    )
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
  """The records of a run; a last line that was cut off is left out."""
  path = workdir / METRICS
  if not path.exists():
    return []
  lines = path.read_text().split('\n')[:-1]
  return [_parse_json(line, path) for line in lines]


class Log:
  """Writes the records of a run to its directory and to the display.

  Args:
    workdir: the directory of the run, opened.
    label: of the progress bar.
    start: the step that the run goes on from; later records, of a run that was
      cut off, are dropped: they will be made again.
    num_steps: where the run ends.
    progress: whether to show a progress bar.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    label: str,
    start: int,
    num_steps: int,
    progress: bool,
  ):
    path = workdir / METRICS
    kept = [
      record for record in read_records(workdir) if record['step'] <= start
    ]
    _write(path, ''.join(json.dumps(record) + '\n' for record in kept))
    self._file = open(path, 'a')  # noqa: SIM115
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start + 1
    )
    self._seconds = kept[-1]['seconds'] if kept else 0.0
    self._clock = time.monotonic()
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=start,
      unit='step',
      desc=label,
      disable=not progress,
    )

  def advance(self, num_steps: int) -> None:
    """Moves the progress bar."""
    self._bar.update(num_steps)

  def write(self, record: Record) -> None:
    """Writes a record, to which it adds the seconds spent so far."""
    now = time.monotonic()
    self._seconds, self._clock = self._seconds + now - self._clock, now
    record = {**record, 'seconds': self._seconds}
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in record.items():
      if isinstance(value, float | int):
        self._tensorboard.add_scalar(name, value, record['step'])
    self._bar.set_postfix(
      {'loss': f'{record["loss"]:.4f}', 'rounds': record['rounds']},
      refresh=False,
    )

  def close(self) -> None:
    """Ends the display and the files."""
    self._bar.close()
    self._file.close()
    self._tensorboard.close()


def format_summary(summary: Record, workdir: pathlib.Path) -> str:
  """The summary for a person to read."""
  rate = summary['steps_per_second']
  lines = [
    f'{summary["label"]}: {summary["replicas"]}',
    f'  steps          {summary["step"]} ({summary["epoch"]:.1f} epochs)',
    f'  train loss     {summary["loss"]:.4f}',
    *_tested(summary),
    f'  rounds         {summary["rounds"]}',
    f'  bytes sent     {format_bytes(summary["bytes_sent"])} per replica',
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


def format_bytes(count: float) -> str:
  """1536 -> '1.5 KiB'."""
  if count < 1:
    return '0 B'
  power = min(int(math.log(count, 1024)), 4)
  unit = ('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]
  return f'{count / 1024**power:.1f} {unit}'


def _read_json(path: pathlib.Path) -> Record:
  return _parse_json(path.read_text(), path)


def _parse_json(text: str, path: pathlib.Path) -> Record:
  try:
    return dict(json.loads(text))
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({error}); pass another --workdir'
    ) from error


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  staging = path.with_name(path.name + PARTIAL)
  staging.write_text(text)
  staging.rename(path)

"""Productive share of the whole life of a run, with all its restarts.

`attempts.jsonl` has a line for each record and each checkpoint: the attempt,
its first step, the step, and the seconds the attempt has spent in each phase.
An attempt is one process that starts or resumes the run. A kill loses no line
that was written.

Training is productive unless a later attempt repeats its steps; then it is
lost. The time between two attempts is waiting. It includes the time from the
last line of a killed attempt to its end, because nobody can know that moment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import itertools
import pathlib
import time
from typing import Any, NamedTuple

from experiments.running.process import messages
from experiments.running.records import json_files, writing

NAME = 'attempts.jsonl'
TRAIN = 'train'  # phase whose seconds are productive or lost

Line = dict[str, Any]

_FORM = json_files.object_of(
  {
    **dict.fromkeys(('attempt', 'first_step', 'step'), json_files.count),
    **dict.fromkeys(('began', 'time'), json_files.number),
    'seconds': json_files.values_of(json_files.number),
  }
)


class Life(NamedTuple):
  """Notes of the attempts of a run; `open_life` makes them.

  Attributes:
    note: `(step, seconds)` writes a line: steps done, and the seconds of this
      attempt by phase.
    spent: `() -> dict of seconds` of the whole life up to the last line, by
      kind; see `spent`.
    close: `()` closes the file.
  """

  note: Callable[[int, Mapping[str, float]], None]
  spent: Callable[[], dict[str, float]]
  close: Callable[[], None]


def open_life(
  workdir: pathlib.Path, step: int, clock: Callable[[], float] = time.time
) -> Life:
  """Start the notes of an attempt.

  Args:
    workdir: directory of the run.
    step: step at which the attempt starts or resumes.
    clock: function that returns the time in seconds, the same for all attempts.
      Default: seconds since 1970.

  Raises:
    WriteError: if the file cannot be written, now or by `note`.
  """
  path = workdir / NAME
  earlier = _read(path)
  this: Line = {
    'attempt': earlier[-1]['attempt'] + 1 if earlier else 0,
    'first_step': step,
    'step': step,
    'began': clock(),
  }
  # Written again, because a kill may have left half a line at the end.
  text = ''.join(writing.to_json(line, indent=None) for line in earlier)
  writing.write_text(path, text)
  before = spent([*earlier, {**this, 'time': this['began'], 'seconds': {}}])
  with writing.reported(path):
    file = open(path, 'ab', buffering=0)  # noqa: SIM115
  last: Line = {}

  def note(step: int, seconds: Mapping[str, float]) -> None:
    nonlocal last
    last = {**this, 'step': step, 'time': clock(), 'seconds': dict(seconds)}
    with writing.reported(path):
      writing.append(file, writing.to_json(last, indent=None).encode())

  def total() -> dict[str, float]:
    return _sum([before, spent([last])] if last else [before])

  def close() -> None:
    with writing.reported(path):
      file.close()

  return Life(note, total, close)


def spent(lines: Sequence[Line]) -> dict[str, float]:
  """Return the seconds of a life by kind.

  Args:
    lines: lines of `attempts.jsonl` in order.

  Returns:
    `productive`, `lost` and `waiting`, and the other phases by their names.

  Example:
    >>> def line(attempt, first_step, step, began, time, train):
    ...   names = 'attempt', 'first_step', 'step', 'began', 'time'
    ...   values = attempt, first_step, step, began, time
    ...   return {**dict(zip(names, values)), 'seconds': {'train': train}}
    >>> spent([
    ...   line(0, 0, 4, 0.0, 10.0, 10.0),  # the checkpoint of step 4
    ...   line(0, 0, 6, 0.0, 15.0, 15.0),
    ...   line(1, 4, 6, 20.0, 26.0, 6.0),  # resumes from step 4
    ... ])
    {'productive': 16.0, 'lost': 5.0, 'waiting': 5.0}
  """
  attempts = [list(g) for _, g in itertools.groupby(lines, _attempt)]
  totals = [dict.fromkeys(('productive', 'lost', 'waiting'), 0.0)]
  for i, attempt in enumerate(attempts):
    later = [other[0]['first_step'] for other in attempts[i + 1 :]]
    last = dict(attempt[-1]['seconds'])
    trained = last.pop(TRAIN, 0.0)
    kept = [
      line['seconds'].get(TRAIN, 0.0)
      for line in attempt
      if not later or line['step'] <= min(later)
    ]
    productive = kept[-1] if kept else 0.0
    lost = trained - productive
    totals.append({'productive': productive, 'lost': lost, **last})
  for one, after in itertools.pairwise(attempts):
    # Not negative, because the clocks of two hosts may differ.
    gap = max(0.0, after[0]['began'] - one[-1]['time'])
    totals.append({'waiting': gap})
  return _sum(totals)


def goodput(seconds: Mapping[str, float]) -> float | None:
  """Return the productive share of a life, None if it took no time.

  Args:
    seconds: result of `spent`.

  Example:
    >>> goodput({'productive': 16.0, 'lost': 5.0, 'waiting': 11.0})
    0.5
  """
  whole = sum(seconds.values())
  return seconds['productive'] / whole if whole else None


def _attempt(line: Line) -> int:
  return int(line['attempt'])


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
  total: dict[str, float] = {}
  for part in parts:
    for name, value in part.items():
      total[name] = total.get(name, 0.0) + value
  return total


def _read(path: pathlib.Path) -> list[Line]:
  """Read the lines; set a damaged file aside, because a run can do without."""
  try:
    return list(json_files.read_lines(path, _FORM))
  except json_files.DamagedFile as error:
    aside = path.with_name(f'{path.name}.damaged')
    with writing.reported(path):
      path.replace(aside)
    messages.warn(
      f'warning: {error}; it is kept as {aside.name}, and the goodput counts '
      'from this start'
    )
    return []

"""What a run has besides its state, and where it may resume.

A checkpoint between two records keeps the sums of the metrics since the first
of them. A resumed run adds to these, so that its records are those of the
uninterrupted run, bit for bit.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

import numpy as np

from experiments.running.process import messages
from experiments.running.records import records
from prsgd_jax.engine import checkpoint_files, checkpoints


class Progress:
  """Means of the metrics over the steps and replicas that were active.

  Args:
    sums: of the metrics since the last record.
    num_records: how many records the run has.
  """

  def __init__(
    self, sums: Mapping[str, float] | None = None, num_records: int = 0
  ):
    self._sums = dict(sums or {})
    self._num_records = num_records

  def add(self, metrics: Mapping[str, np.ndarray]) -> None:
    """Adds `[D, steps, V]` values, those of the inactive being zeros."""
    active = metrics.get('active', np.ones_like(metrics['loss']))
    for name, value in {**metrics, 'active': active}.items():
      total = self._sums.get(name, 0.0) + float(value.sum(dtype=np.float64))
      self._sums[name] = total

  def pop(self) -> dict[str, float]:
    """Returns the means for the next record, and begins those after it."""
    sums, self._sums = self._sums, {}
    self._num_records += 1
    active = sums.pop('active') or math.nan  # nobody began a gradient
    return {name: value / active for name, value in sums.items()}

  def is_recorded(self) -> bool:
    """Whether all steps so far are in a record."""
    return not self._sums

  def notes(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps of it; the inverse of `from_notes`."""
    return {'sums': self._sums, 'num_records': self._num_records}


def find_start(workdir: pathlib.Path) -> tuple[int, Progress] | None:
  """Finds the newest checkpoint up to which the records are complete.

  Newer ones are set aside with a line on stderr, because their steps are taken
  again: without their records, the history would have a hole.

  Args:
    workdir: of the run, opened.

  Returns:
    Its step and progress, None if there is no checkpoint.

  Raises:
    CheckpointError: if records are missing before all checkpoints, or the
      newest checkpoint is damaged.
  """
  directory = workdir / records.CHECKPOINTS
  found = checkpoints.steps(directory)
  if not found:
    return None
  recorded = [record['step'] for record in records.read_records(workdir)]
  for step in reversed(found):
    notes = checkpoints.read_notes(directory, step)
    progress = _progress([s for s in recorded if s <= step], step, notes)
    if progress is not None:
      _set_newer_aside(workdir, step)
      return step, progress
  raise checkpoints.CheckpointError(
    f'{workdir / records.METRICS} lacks records of steps before '
    f'{directory / str(found[0])}; put it back, or start a new run with '
    f'--init_from={workdir}'
  )


def _progress(
  recorded: Sequence[int], step: int, notes: Mapping[str, Any] | None
) -> Progress | None:
  """The progress of a checkpoint, None if records before it are missing.

  Args:
    recorded: steps of the records up to that of the checkpoint.
    step: of the checkpoint.
    notes: of the checkpoint; None if it was saved by an earlier version, right
      after a record.
  """
  count = len(recorded)
  if notes is None:
    return Progress({}, count) if step in recorded else None
  if count == notes['num_records']:
    return Progress(notes['sums'], count)
  # A signal came before its record, which a resumed run wrote.
  wrote = step in recorded and notes['sums']
  if wrote and count == notes['num_records'] + 1:
    return Progress({}, count)
  return None


def _set_newer_aside(workdir: pathlib.Path, step: int) -> None:
  directory = workdir / records.CHECKPOINTS
  for newer in checkpoints.steps(directory):
    if newer > step:
      path = checkpoint_files.set_aside(directory, newer)
      messages.warn(
        f'{workdir / records.METRICS} lacks records of steps up to {newer}; '
        f'that checkpoint is kept as {path.name}, and the run resumes from '
        f'step {step}'
      )

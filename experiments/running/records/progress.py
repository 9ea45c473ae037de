"""Sums of metrics between two records, and the step at which a run resumes.

A checkpoint between two records saves the sums of the metrics since the last
record. A resumed run continues these sums, so that its records are
bit-identical to an uninterrupted run.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

import numpy as np

from experiments.running.process import messages
from experiments.running.records import records
from prsgd_jax.engine import checkpoint_files, checkpoints


class Progress:
  """Means of the metrics over the active steps and replicas.

  Args:
    sums: sum of each metric since the last record; None for none.
    num_records: number of records of the run so far.
  """

  def __init__(
    self, sums: Mapping[str, float] | None = None, num_records: int = 0
  ):
    self._sums = dict(sums or {})
    self._num_records = num_records

  def add(self, metrics: Mapping[str, np.ndarray]) -> None:
    """Add metrics.

    Args:
      metrics: values `[steps, N, ...]` by name, 0 where a replica is inactive.
        Of an array of each replica, the mean of its entries counts.
    """
    active = metrics.get('active', np.ones_like(metrics['loss']))
    for name, value in {**metrics, 'active': active}.items():
      total = float(value.sum(dtype=np.float64))
      entries = max(math.prod(value.shape[2:]), 1)
      self._sums[name] = self._sums.get(name, 0.0) + total / entries

  def pop(self) -> dict[str, float]:
    """Return the means for the next record, and reset the sums."""
    sums, self._sums = self._sums, {}
    self._num_records += 1
    active = sums.pop('active') or math.nan  # if no replica was active
    return {name: value / active for name, value in sums.items()}

  def is_recorded(self) -> bool:
    """Whether all steps so far are in a record."""
    return not self._sums

  def notes(self) -> dict[str, Any]:
    """Return the values that a checkpoint saves."""
    return {'sums': self._sums, 'num_records': self._num_records}


def find_start(workdir: pathlib.Path) -> tuple[int, Progress] | None:
  """Find the newest checkpoint up to which the records are complete.

  Newer checkpoints are set aside with a line on stderr. Their steps run again,
  because resuming from them would leave a gap in the records.

  Args:
    workdir: directory of the run.

  Returns:
    Step and progress of the checkpoint, None if the run has none.

  Raises:
    CheckpointError: if records are missing before all checkpoints, or the
      newest checkpoint is damaged.
  """
  found = newest(workdir)
  if found is not None:
    _set_newer_aside(workdir, found[0])
  return found


def newest(workdir: pathlib.Path) -> tuple[int, Progress] | None:
  """Find the checkpoint of `find_start`, and change nothing."""
  directory = workdir / records.CHECKPOINTS
  found = checkpoints.steps(directory)
  if not found:
    return None
  recorded = np.fromiter(
    (record['step'] for record in records.iterate_records(workdir)), np.int64
  )
  for step in reversed(found):
    notes = checkpoints.read_notes(directory, step)
    count = int(np.searchsorted(recorded, step, side='right'))
    is_recorded = count > 0 and recorded[count - 1] == step
    progress = _progress(count, is_recorded, notes)
    if progress is not None:
      return step, progress
  raise checkpoints.CheckpointError(
    f'{workdir / records.METRICS} lacks records of steps before '
    f'{directory / str(found[0])}; put it back, or start a new run with '
    f'--init_from={workdir}'
  )


def _progress(
  count: int, is_recorded: bool, notes: Mapping[str, Any] | None
) -> Progress | None:
  """Return the progress at a checkpoint, None if earlier records are missing.

  Args:
    count: number of records up to its step.
    is_recorded: whether one of them is of its step.
    notes: saved values of the checkpoint; None if an earlier version saved it,
      immediately after a record.
  """
  if notes is None:
    return Progress({}, count) if is_recorded else None
  if count == notes['num_records']:
    return Progress(notes['sums'], count)
  # A signal caused this checkpoint before the record of its step, which a
  # resumed run wrote later.
  wrote = is_recorded and notes['sums']
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

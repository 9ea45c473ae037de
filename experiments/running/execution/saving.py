"""The checkpoints of one run, which a thread writes while it trains."""

from collections.abc import Mapping
from concurrent.futures import Future
import math
import pathlib
from types import TracebackType
from typing import Any

from experiments.running.execution.finite import NonFinite, check_params
from experiments.running.execution.parts import Parts
from experiments.running.process import messages, signals
from experiments.running.records import records, writing
from prsgd_jax.engine import processes, retention
from prsgd_jax.engine.checkpoints import CheckpointError, Retention
from prsgd_jax.engine.run_state import State

# Errors at which all processes of a run stop, after the same saves.
_COMMON = (NonFinite, signals.Stopped)


class Saver:
  """Save the states of a run, one after the other.

  An error of a save is raised by the next call. As a context, it waits for the
  last save.

  Args:
    parts: of the run.
    workdir: of the run.
    keep: the checkpoints that stay.
  """

  def __init__(self, parts: Parts, workdir: pathlib.Path, keep: Retention):
    self._parts, self._workdir, self._keep = parts, workdir, keep
    self._pending: Future[pathlib.Path] | None = None
    self._measures: tuple[int, dict[str, float]] = (-1, {})
    self._warned = False

  def measured(self, step: int, measures: Mapping[str, Any]) -> None:
    """Note the means of a record, for a checkpoint of its step.

    Args:
      step: of the record.
      measures: its values by name; only finite numbers are saved.
    """
    numbers = {
      name: float(x)
      for name, x in measures.items()
      if isinstance(x, int | float) and math.isfinite(x)
    }
    self._measures = step, numbers

  def save(self, state: State, notes: Mapping[str, Any]) -> None:
    """Save a state whose parameters are all finite; a thread writes it.

    Args:
      state: of the run; it may be used up meanwhile.
      notes: what else is saved.

    Raises:
      NonFinite: if a parameter is.
      CheckpointError, OSError: of the save before.
    """
    self.wait()
    check_params(self._workdir, self._parts, state)
    # A checkpoint is of use only with the records up to it.
    if processes.is_first():
      writing.sync(self._workdir / records.METRICS)
    step, measures = self._measures
    measures = measures if step == state.step else {}
    self._warn_of_unknown(measures)
    self._pending = self._parts.trainer.save_in_background(
      self._workdir / records.CHECKPOINTS,
      state,
      self._parts.description,
      notes={**notes, retention.MEASURES: measures},
      keep=self._keep,
    )

  def wait(self) -> None:
    """Wait until the save before is done, and raise its error.

    Raises:
      CheckpointError, OSError: if a checkpoint or file cannot be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def poll(self) -> None:
    """Raise the error of the save before, if it has failed by now.

    Several processes would not see it at the same time, so they wait for it.

    Raises:
      CheckpointError, OSError: if a checkpoint or file cannot be written.
    """
    pending = self._pending
    if pending is not None and pending.done() and processes.count() == 1:
      self.wait()

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Waits for the last save; its error is the lesser of two."""
    if error is None:
      return self.wait()
    # After an error of only this process, the others would be waited for.
    if processes.count() == 1 or isinstance(error, _COMMON):
      try:
        self.wait()
      except (CheckpointError, OSError) as unwritten:
        messages.warn(f'warning: {unwritten}')
    return None

  def _warn_of_unknown(self, measures: Mapping[str, float]) -> None:
    """Warns once of a rule on a measure that no record has."""
    wanted = {*self._keep.lowest, *self._keep.highest}
    unknown = sorted(wanted - {*measures})
    if measures and unknown and not self._warned and processes.is_first():
      self._warned = True
      messages.warn(
        f'warning: --keep names {", ".join(unknown)}, but the record of step '
        f'{self._measures[0]} has {", ".join(sorted(measures))}'
      )

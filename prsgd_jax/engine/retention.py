"""RETENTION: which checkpoints of a run stay, and the removal of the others.

A checkpoint stays if any rule keeps it. The newest one always stays.
"""

from collections.abc import Callable, Collection, Mapping
import contextlib
import math
import pathlib
from typing import Any, NamedTuple, TypeGuard

from prsgd_jax.checks import check_positive_int
from prsgd_jax.engine import checkpoint_files
from prsgd_jax.engine.checkpoint_files import CheckpointError, Path

# Key of the notes of a checkpoint: name -> number.
MEASURES = 'measures'


class Retention(NamedTuple):
  """The rules by which checkpoints stay.

  Attributes:
    newest: number of newest checkpoints to keep, >= 1; None for all. Default:
      3.
    every: the checkpoints at multiples of this number of steps stay. Default:
      none.
    lowest: measures, such as 'test_loss'; for each, the checkpoint with its
      lowest value stays. Values are read from `notes['measures']`, as passed to
      `save`. Default: none.
    highest: measures whose highest value stays, such as 'test_accuracy'.
      Default: none.
  """

  newest: int | None = 3
  every: int | None = None
  lowest: tuple[str, ...] = ()
  highest: tuple[str, ...] = ()


ALL = Retention(newest=None)


def check(retention: Retention | int) -> Retention:
  """Return rules that were checked; a number is one of newest checkpoints.

  Args:
    retention: the rules.

  Raises:
    ValueError: if a number is not an integer >= 1.
  """
  if not isinstance(retention, Retention):
    retention = Retention(check_positive_int('keep', retention))
  if retention.newest is not None:
    check_positive_int('newest', retention.newest)
  if retention.every is not None:
    check_positive_int('every', retention.every)
  return retention


def kept(
  steps: Collection[int],
  retention: Retention,
  measures_of: Callable[[int], Mapping[str, Any]],
) -> set[int]:
  """Return the steps whose checkpoints stay.

  Args:
    steps: steps of all checkpoints.
    retention: the rules.
    measures_of: step -> name -> number; called only if a rule needs it.

  Example:
    >>> losses = {100: 0.4, 200: 0.1, 300: 0.2, 400: 0.3}
    >>> rules = Retention(newest=1, every=300, lowest=('loss',))
    >>> sorted(kept(losses, rules, lambda step: {'loss': losses[step]}))
    [200, 300, 400]
  """
  ordered = sorted(steps)
  if retention.newest is None:
    return set(ordered)
  stay = set(ordered[-retention.newest :])
  if retention.every is not None:
    stay |= {step for step in ordered if step % retention.every == 0}
  for names, sign in ((retention.lowest, 1), (retention.highest, -1)):
    for name in names:
      found = {step: measures_of(step).get(name) for step in ordered}
      known = {s: sign * x for s, x in found.items() if _is_number(x)}
      stay |= set(sorted(known, key=known.__getitem__)[:1])
  return stay


def _is_number(value: Any) -> TypeGuard[float]:
  return isinstance(value, int | float) and math.isfinite(value)


def prune(directory: Path, keep: int | Retention) -> list[int]:
  """Remove old checkpoints, and files that an interrupted process left.

  The newest checkpoint is always kept. If it is damaged, none is removed,
  because an older one is then needed. A checkpoint is renamed before its files
  are removed, so that killing the process leaves only whole checkpoints. No
  save to the directory may be running, in this process or another.

  Args:
    directory: directory of the checkpoints of one run.
    keep: number of newest checkpoints to keep, >= 1, or the rules.

  Returns:
    The steps whose checkpoints were removed, in order.

  Raises:
    ValueError: if `keep` has a number that is not an integer >= 1.
    CheckpointError: if the newest checkpoint is damaged.

  Example:
    >>> prune('no/such/directory', keep=3)
    []
  """
  retention = check(keep)
  found = checkpoint_files.steps(directory)
  root = pathlib.Path(directory).absolute()

  def measures_of(step: int) -> Mapping[str, Any]:
    with contextlib.suppress(CheckpointError):  # a damaged one has none
      notes = checkpoint_files.read_seal(root / str(step)).get('notes')
      return (notes or {}).get(MEASURES, {})
    return {}

  stay = kept(found, retention, measures_of)
  old = [step for step in found if step not in stay]
  if old:
    checkpoint_files.read_record(root / str(found[-1]))
  for step in old:
    condemned = root / f'.{step}.deleted'
    checkpoint_files.remove(condemned)
    (root / str(step)).rename(condemned)
  if old:
    # Because the names must be gone before the files are.
    checkpoint_files.sync(root)
  checkpoint_files.remove_left_over(root)
  return old

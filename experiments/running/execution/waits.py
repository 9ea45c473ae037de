"""The share of the time between two records that was spent without batches."""

from collections.abc import Callable
import time


def make_share(seconds: Callable[[], float]) -> Callable[[], float]:
  """Return a function that measures the share since its last call.

  Args:
    seconds: seconds waited so far, such as `Trainer.waited`.

  Returns:
    `() -> float` in 0 .. 1; the first call measures from now on.

  Example:
    >>> make_share(lambda: 0.0)()
    0.0
  """
  begun, before = time.monotonic(), seconds()

  def share() -> float:
    nonlocal begun, before
    now, waited = time.monotonic(), seconds()
    spent, lost = now - begun, waited - before
    begun, before = now, waited
    return min(lost / spent, 1.0) if lost else 0.0

  return share

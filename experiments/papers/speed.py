"""The time a curve takes to a loss."""

from collections.abc import Sequence

import numpy as np

# First part of a run whose lowest loss is the target, in the reference.
SHARE = 0.6
# This fraction if the rate drops at half of the run, because a drop lowers any
# loss: a run that takes 1.4 times the steps still reaches it before the drop.
BEFORE_DROPS = 0.35
_ROUNDING = 1e-9  # of a share that is a whole number of evaluations

Numbers = Sequence[float] | np.ndarray


def count_within(share: float, count: int) -> int:
  """Return how many evaluations of a run are in its first part, at least one.

  Args:
    share: the part, a fraction of the run.
    count: number of evaluations, evenly spaced. The last one is at the end of
      the run, and none is before the first step.

  Example:
    >>> count_within(0.35, 40), count_within(0.35, 24)
    (14, 8)
  """
  return max(1, int(share * count + _ROUNDING))


def target_loss(reference: Numbers, share: float = SHARE) -> float:
  """Return the lowest loss at the evaluations in the first part of a run.

  Args:
    reference: losses at evaluations as in `count_within`.
    share: the part, a fraction of the run.
  """
  return float(np.min(reference[: count_within(share, len(reference))]))


def when_reached(x: Numbers, losses: Numbers, target: float) -> float:
  """Return where the lowest loss so far reaches the target.

  Points are joined by straight lines. If the loss stays above the target, the
  result is infinity.
  """
  least = np.minimum.accumulate(losses)
  if not least[-1] <= target:
    return float('inf')
  i = int(np.argmax(least <= target))
  if i == 0:
    return float(x[0])
  share = (least[i - 1] - target) / (least[i - 1] - least[i])
  return float(x[i - 1] + share * (x[i] - x[i - 1]))

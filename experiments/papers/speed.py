"""The time a curve takes to a loss."""

from collections.abc import Sequence

import numpy as np

# Fraction of a run after which the loss of the reference is the target.
SHARE = 0.6
# This fraction if the rate drops at half of the run, because a drop lowers any
# loss: a run that takes 1.4 times the steps still reaches it before the drop.
BEFORE_DROPS = 0.35

Numbers = Sequence[float] | np.ndarray


def target_loss(reference: Numbers, share: float = SHARE) -> float:
  """Return the lowest loss of a run up to a fraction of its length."""
  least = np.minimum.accumulate(reference)
  return float(least[round(share * (len(least) - 1))])


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

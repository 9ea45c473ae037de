"""How long a curve takes to a loss."""

from collections.abc import Sequence

import numpy as np

# Of the length of a run: where the reference has the loss to be reached.
SHARE = 0.6

Numbers = Sequence[float] | np.ndarray


def target_loss(reference: Numbers, share: float = SHARE) -> float:
  """The least loss that a run has had after a share of its length."""
  least = np.minimum.accumulate(reference)
  return float(least[round(share * (len(least) - 1))])


def when_reached(x: Numbers, losses: Numbers, target: float) -> float:
  """Where the least loss so far comes down to the target.

  Between two points it is a straight line; where it stays above, infinity.
  """
  least = np.minimum.accumulate(losses)
  if not least[-1] <= target:
    return float('inf')
  i = int(np.argmax(least <= target))
  if i == 0:
    return float(x[0])
  share = (least[i - 1] - target) / (least[i - 1] - least[i])
  return float(x[i - 1] + share * (x[i] - x[i - 1]))


def spread(values: Numbers, form: str) -> str:
  """The mean, and of several the least and the most; infinity is 'never'."""

  def told(value: float) -> str:
    return format(value, form) if np.isfinite(value) else 'never'

  values = np.asarray(values)
  mean = told(values.mean())
  if len(values) == 1:
    return mean
  return f'{mean} ({told(values.min())} to {told(values.max())})'

"""Ratios and differences of methods over seeds, with intervals, in words."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

# Level of the intervals.
LEVEL = 0.95


class Ratio(NamedTuple):
  """A geometric mean of ratios, with an interval.

  Attributes:
    value: geometric mean over the seeds.
    low: lower end of the interval.
    high: upper end of the interval.
  """

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    """Return the ratio in words; an interval around 1 shows no order.

    Example:
      >>> str(Ratio(2.5, 2.0, 3.1))
      '2.5 times (2 to 3.1)'
      >>> str(Ratio(0.9, 0.7, 1.2))
      '0.9 times (0.7 to 1.2, so no order is shown)'
    """
    unclear = ', so no order is shown' if self.low <= 1 <= self.high else ''
    ends = f'{shown(self.low)} to {shown(self.high)}'
    return f'{shown(self.value)} times ({ends}{unclear})'


class Difference(NamedTuple):
  """A mean of differences, with an interval.

  Attributes:
    value: mean over the seeds.
    low: lower end of the interval.
    high: upper end of the interval.
    unit: 'points' or another unit.
  """

  value: float
  low: float
  high: float
  unit: str = 'points'

  def __str__(self) -> str:
    """Return the difference in words; an interval around 0 shows no order.

    Example:
      >>> str(Difference(2.5, 2.0, 3.1))
      '2.5 points (2 to 3.1)'
      >>> str(Difference(0.1, -0.2, 0.4))
      '0.1 points (-0.2 to 0.4, so no order is shown)'
    """
    return f'{shown(self.value)} {self.unit} {self._ends(self.low, self.high)}'

  def higher_or_lower(self) -> str:
    """Return the difference in words, without a sign.

    Example:
      >>> Difference(-0.25, -0.3, -0.2, 'nats').higher_or_lower()
      '0.25 nats lower (0.2 to 0.3)'
      >>> Difference(0.1, -0.1, 0.3, 'nats').higher_or_lower()
      '0.1 nats higher (-0.1 to 0.3, so no order is shown)'
    """
    word, ends = 'higher', (self.low, self.high)
    if self.value < 0:
      word, ends = 'lower', (-self.high, -self.low)
    return f'{shown(abs(self.value))} {self.unit} {word} {self._ends(*ends)}'

  def _ends(self, low: float, high: float) -> str:
    unclear = ', so no order is shown' if self.low <= 0 <= self.high else ''
    return f'({shown(low)} to {shown(high)}{unclear})'


def ratio(ones: Any, others: Any) -> Ratio:
  """Compare two methods by their values of equal seeds.

  The interval has a confidence of 95%. It is Student's, of the logarithms.

  Args:
    ones: [seeds], positive values of one method.
    others: [seeds], positive values of another method.

  Raises:
    ValueError: if there are fewer than three seeds, or a value is not positive.

  Example:
    >>> str(ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]))
    '2 times (2 to 2)'
  """
  ones, others = _pairs(ones, others)
  if not (np.minimum(ones, others) > 0).all():
    raise ValueError('expected positive values')
  return Ratio(*map(float, np.exp(_interval(np.log(ones / others)))))


def difference(ones: Any, others: Any, *, unit: str = 'points') -> Difference:
  """Subtract the values of a method from those of another, by equal seeds.

  The interval is Student's and has a confidence of 95%.

  Args:
    ones: [seeds], values of one method, such as percentages.
    others: [seeds], values of the method to subtract.
    unit: unit of the difference. Default: percentage points.

  Raises:
    ValueError: if there are fewer than three seeds.

  Example:
    >>> str(difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]))
    '2 points (2 to 2)'
  """
  ones, others = _pairs(ones, others)
  return Difference(*_interval(ones - others), unit)


def _pairs(ones: Any, others: Any) -> tuple[np.ndarray, np.ndarray]:
  """Return the values of two methods as arrays, if there are enough."""
  ones, others = np.asarray(ones, float), np.asarray(others, float)
  if ones.ndim != 1 or ones.shape != others.shape or len(ones) < 3:
    raise ValueError(
      'expected the values of at least 3 seeds for each method, got shapes '
      f'{ones.shape} and {others.shape}'
    )
  return ones, others


def _interval(values: np.ndarray) -> tuple[float, float, float]:
  """Return mean, lower and upper end of Student's interval."""
  mean = float(values.mean())
  quantile = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
  width = float(quantile * stats.sem(values))
  return mean, mean - width, mean + width


def shown(value: float) -> str:
  """Return a number with two digits, without an exponent if it is short.

  Example:
    >>> shown(123.4), shown(0.05), shown(2.345)
    ('123', '0.05', '2.3')
  """
  return f'{value:.0f}' if 100 <= value < 1e4 else f'{value:.2g}'


def best(losses: Any) -> int:
  """Return the place of the lowest loss, by the mean logarithm over the seeds.

  Args:
    losses: [rates, seeds].

  Example:
    >>> best([[0.2, 0.2], [0.01, 0.5], [0.3, 0.1]])
    1
  """
  return int(np.log(np.asarray(losses, float)).mean(axis=1).argmin())


def edge_note(places: Any, count: int) -> str:
  """Return a remark on best rates at the edge of a grid, for the page.

  Args:
    places: mapping from a label to the place of its best rate.
    count: number of rates.

  Example:
    >>> edge_note({'SSGD': 0, 'I = 4': 1}, 3)
    'The best rate of SSGD is at the edge of the grid.'
  """
  at = [label for label, place in places.items() if place in (0, count - 1)]
  if not at:
    return 'No best rate is at the edge of the grid.'
  rates = 'rates of' if len(at) > 1 else 'rate of'
  verb = 'are' if len(at) > 1 else 'is'
  return f'The best {rates} {", ".join(at)} {verb} at the edge of the grid.'

"""How much a verdict depends on the seeds.

An ordering of two methods has a probability over the seeds. A verdict is
evaluated again with seeds drawn from those that ran, with replacement.

Example:
  >>> in_order([0.1, 0.3], [0.2, 0.4])
  0.75
"""

from collections.abc import Mapping, Sequence
import math
from typing import get_args

import numpy as np

from experiments.papers.quantities import Measured, Measurement, Quantity
from experiments.papers.rules import Rule, Verdict

NUM_DRAWS = 200
# Fewer seeds have too few resamplings to call a fraction of them a probability.
FEWEST_SEEDS = 3
# Fraction of the resamplings below which a verdict depends on the seeds.
SURE = 0.95


def in_order(
  ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray
) -> float:
  """Return the probability that a seed of ours is below a seed of theirs.

  It is the fraction of the pairs of seeds in this order. A tie counts half.

  Args:
    ours: the numbers of one method, one for each seed.
    theirs: the numbers of the other method.
  """
  one, other = np.asarray(ours)[:, None], np.asarray(theirs)
  return float(((one < other) + 0.5 * (one == other)).mean())


def num_seeds(measured: Measured) -> int:
  """Return the fewest seeds of a number that has any; 0 if none has seeds.

  The fewest, because a comparison is no surer than its least sure number.

  Args:
    measured: numbers of a claim.
  """
  numbers = (m for q in measured.values() for m in q.cases.values())
  return min((len(m.seeds) for m in numbers if m.seeds), default=0)


def verdicts(
  rule: Rule, measured: Measured, num_draws: int = NUM_DRAWS
) -> dict[Verdict, float]:
  """Return the fraction of each verdict when the seeds are drawn again.

  The seeds of all numbers are drawn together, because runs with one seed share
  their data. It is empty if a number with seeds has fewer than three of them.

  Args:
    rule: the rule of the claim.
    measured: its numbers.
    num_draws: number of resamplings. Default: 200.
  """
  if num_seeds(measured) < FEWEST_SEEDS:
    return {}
  sizes = {len(m.seeds) for q in measured.values() for m in q.cases.values()}
  rng = np.random.default_rng(0)
  found = []
  for _ in range(num_draws):
    drawn = {size: rng.integers(size, size=size) for size in sizes if size}
    found.append(rule.verdict(_drawn(measured, drawn)))
  return {
    verdict: found.count(verdict) / num_draws
    for verdict in get_args(Verdict)
    if verdict in found
  }


def percentages(shares: Mapping[Verdict, float]) -> dict[Verdict, int]:
  """Return shares in whole percent, whose sum is 100.

  All are rounded down, and the largest fractions are then rounded up.

  Args:
    shares: the fraction of each verdict, with the sum 1.

  Example:
    >>> percentages({'yes': 0.545, 'partly': 0.455})
    {'yes': 55, 'partly': 45}
  """
  # Rounded because 100 times a share of 200 draws may be just below a half.
  exact = {v: round(100 * share, 6) for v, share in shares.items()}
  whole = {v: math.floor(x) for v, x in exact.items()}
  missing = round(sum(exact.values())) - sum(whole.values())
  by_fraction = sorted(exact, key=lambda v: whole[v] - exact[v])
  up = by_fraction[:missing]
  return {v: n + (v in up) for v, n in whole.items()}


def _drawn(measured: Measured, drawn: Mapping[int, np.ndarray]) -> Measured:
  return {
    name: Quantity(
      {case: _one(m, drawn) for case, m in q.cases.items()}, q.unit
    )
    for name, q in measured.items()
  }


def _one(m: Measurement, drawn: Mapping[int, np.ndarray]) -> Measurement:
  if not m.seeds:
    return m
  seeds = tuple(m.seeds[i] for i in drawn[len(m.seeds)])
  before, after = (sum(own) / len(own) for own in (m.seeds, seeds))
  # A value that is no mean, such as a ratio of means, moves with the mean.
  moved = after if _close(m.value, before) else m.value + after - before
  return Measurement(moved, seeds, m.error)


def _close(a: float, b: float) -> bool:
  return a == b or math.isclose(a, b, rel_tol=1e-9)

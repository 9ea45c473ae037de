"""The claim of T1 that gives both methods their best rates."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.papers import speed
from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import above, every, some
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.t01_pr_sgd import mlp
from experiments.papers.t01_pr_sgd.judging import when
from experiments.papers.t01_pr_sgd.runs import MODERATE, SSGD

# The loss to reach is that of SSGD with the rate this many places below its
# best, because at the best rate no run with I > 1 reaches the loss of SSGD.
PLACE = 2


def claim(trained: mlp.Trained) -> Claim:
  """Judge the time to a loss, each method at the rate that is fastest to it."""
  rates = list(trained.by_rate)
  target = rates[min(PLACE, len(rates) - 1)]
  reference = trained.synchronous[target]
  found = {SSGD: _best(trained.synchronous, reference)}
  for label in trained.by_rate[target]:
    if label != SSGD:
      own = {rate: runs[label] for rate, runs in trained.by_rate.items()}
      found[label] = _best(own, reference)
  speedup = 'speedup over SSGD at its best rate'
  moderate = [f'I = {p}' for p in MODERATE if f'I = {p}' in found]
  faster = above(speedup, 1, seeds='each')
  seconds = {label: times for label, (_, times, _) in found.items()}
  edges = [label for label, (_, _, at_edge) in found.items() if at_edge]
  return Claim(
    text='Against time, PR-SGD is faster than SSGD if each has its best rate '
    '(MLP, digits).',
    source=f'{STATED}: its figure; both rates are tuned here',
    measured={
      speedup: by_case(
        {n: seconds[SSGD] / own for n, own in seconds.items() if n != SSGD}
      ),
      'time to the loss': by_case(seconds, 's'),
      'best rate': by_case({n: rate for n, (rate, _, _) in found.items()}),
    },
    rule=Rule(every(faster, moderate), some(faster, moderate)),
    setting='Modeled time to the lowest loss that SSGD at rate '
    f'{target} has after {speed.BEFORE_DROPS:.0%} of the steps. Of SSGD the '
    f'rates are {_listed(trained.synchronous)}, of PR-SGD '
    f'{_listed(trained.by_rate)}. The best has the least mean time.'
    + (f' At the edge of their rates: {"; ".join(edges)}.' if edges else ''),
    note='An earlier rule compared the means over the seeds only.',
  )


def _best(
  by_rate: Mapping[str, Any], reference: Any
) -> tuple[float, np.ndarray, bool]:
  """Return the fastest rate, its times by seed, and whether it is an edge."""
  times = {
    float(rate): np.array(
      [
        when(own, 'modeled_seconds', ref, speed.BEFORE_DROPS)
        for own, ref in zip(runs, reference, strict=True)
      ]
    )
    for rate, runs in by_rate.items()
  }
  # A rate that fails for some seeds is better than one that fails for all.
  best = min(times, key=lambda r: (times[r].mean(), np.isinf(times[r]).sum()))
  return best, times[best], best in (min(times), max(times))


def _listed(by_rate: Mapping[str, Any]) -> str:
  return ', '.join(f'{rate:g}' for rate in sorted(map(float, by_rate)))


def curves(trained: mlp.Trained) -> dict[str, Any]:
  """Return the losses of all runs by rate and label, [seeds][points]."""
  everything = {
    rate: {SSGD: own, **trained.by_rate.get(rate, {})}
    for rate, own in trained.synchronous.items()
  }
  return {
    rate: {
      label: [[float(f'{r["loss"]:.5g}') for r in h] for h in own]
      for label, own in runs.items()
    }
    for rate, runs in everything.items()
  }

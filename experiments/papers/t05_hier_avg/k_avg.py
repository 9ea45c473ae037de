"""Hier-AVG against K-AVG, and K-AVG by its K, each at its best rate."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.papers import resampling
from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import (
  All,
  Compare,
  Ref,
  above,
  at_most,
  below,
  mostly,
  some,
)
from experiments.papers.quantities import (
  Measurement,
  Quantity,
  by_case,
  number,
)
from experiments.papers.rules import Rule
from experiments.papers.t05_hier_avg.training import (
  K2,
  K_AVG,
  NUM_STEPS,
  OURS_NAME,
  RARE_K2,
  RARE_NAME,
  RATES,
  TESTED,
)

_STATED_OF_K = f'{STATED} (arXiv 1708.01012)'
# Loss relative to K-AVG(8) up to which a method is comparable.
COMPARABLE = 1.1


class Best(NamedTuple):
  """A method at the learning rate with its lowest training loss.

  Attributes:
    rate: index of the rate.
    loss: [seeds], nats, a mean over the last quarter of the run.
    accuracy: [seeds], % of the test images, a mean over the same part.
  """

  rate: int
  loss: np.ndarray
  accuracy: np.ndarray

  @property
  def at_edge(self) -> bool:
    """Whether the rate is the lowest or the highest of all."""
    return self.rate in (0, len(RATES) - 1)


def claims(trained: Mapping[str, Any]) -> list[Claim]:
  """Judge Hier-AVG against K-AVG, and K-AVG against itself.

  Args:
    trained: results of `training.train` by method.
  """
  best = {name: _best(own) for name, own in trained.items()}
  return [*_of_hier_avg(best), *_of_k(best)]


def _best(own: Mapping[str, Any]) -> Best:
  def last(key: str) -> np.ndarray:
    values = np.array(own[key])
    found: np.ndarray = values[..., -values.shape[-1] // 4 :].mean(-1)
    return found

  loss, accuracy = last('loss'), 100 * last('accuracy')
  rate = int(np.nan_to_num(loss.mean(axis=1), nan=np.inf).argmin())
  return Best(rate, loss[rate], accuracy[rate])


def _setting(best: Mapping[str, Best], names: Sequence[str]) -> str:
  edges = [n for n in names if best[n].at_edge]
  return (
    f'Means over the last quarter of {NUM_STEPS} steps, each method at the '
    f'learning rate of {", ".join(map(str, RATES))} with its lowest training '
    f'loss. Test accuracy on {TESTED} images.'
    + (f' At the edge of the rates: {"; ".join(edges)}.' if edges else '')
  )


def _of_hier_avg(best: Mapping[str, Best]) -> list[Claim]:
  ours, equal, often = OURS_NAME, 'K-AVG(32)', 'K-AVG(8)'
  setting = _setting(best, (ours, RARE_NAME, equal, often))

  def measured(one: str, other: str) -> dict[str, Quantity]:
    names = (one, other)
    lower_loss = resampling.in_order(best[one].loss, best[other].loss)
    higher = resampling.in_order(best[other].accuracy, best[one].accuracy)
    return {
      'pairs of seeds in which its loss is lower': number(lower_loss),
      'pairs of seeds in which its accuracy is higher': number(higher),
      **_measured(best, names),
      'global rounds': by_case(
        {n: NUM_STEPS // _global_period(n) for n in names}
      ),
    }

  def over(one: str, other: str) -> Measurement:
    # Seed by seed, so that both are drawn again when a verdict is resampled.
    ones, others = best[one].loss, best[other].loss
    return Measurement(ones.mean() / others.mean(), tuple(ones / others))

  def lower(one: str, other: str) -> Compare:
    return below(Ref('loss', one), Ref('loss', other))

  ratio = 'loss relative to K-AVG(8)'
  near = at_most(Ref(ratio, ours), COMPARABLE)
  # Without local averages, the limit must be exceeded.
  control = above(Ref(ratio, equal), COMPARABLE)
  better = above(Ref('test accuracy', ours), Ref('test accuracy', often))
  return [
    Claim(
      text='At equal global rounds and gradients, Hier-AVG trains better than '
      'K-AVG.',
      source=f'{STATED}: local averages train faster',
      measured=measured(ours, equal),
      rule=Rule(mostly(lower(ours, equal)), lower(ours, equal)),
      setting=setting,
    ),
    Claim(
      text='Comparable speed with fewer global reductions than K-AVG.',
      source=f'{STATED}; the limits are ours',
      measured={
        ratio: by_case({n: over(n, often) for n in (ours, equal)}),
        **measured(ours, often),
      },
      rule=Rule(All((near, control)), at_most(Ref(ratio, ours), COMPARABLE**2)),
      setting=setting,
      note=f'{equal} has as many global reductions as {ours}, but no local '
      'averages. It must exceed the limit, because otherwise the limit cannot '
      'show what local averages do. An earlier rule without this control had '
      'the verdict yes.',
    ),
    Claim(
      text='Hier-AVG often has a better test accuracy than K-AVG with fewer '
      'global reductions.',
      source=STATED,
      measured=measured(ours, often),
      rule=Rule(mostly(better), better),
      setting=setting,
    ),
    Claim(
      text='Less frequent global averages sometimes train faster.',
      source=STATED,
      measured=measured(RARE_NAME, ours),
      rule=Rule(mostly(lower(RARE_NAME, ours)), lower(RARE_NAME, ours)),
      setting=setting,
      note='One pair of intervals was tried, which can show such a case and '
      'cannot exclude one.',
    ),
  ]


def _measured(
  best: Mapping[str, Best], names: Sequence[str]
) -> dict[str, Quantity]:
  return {
    'loss': by_case({n: best[n].loss for n in names}, 'nats'),
    'test accuracy': by_case({n: best[n].accuracy for n in names}, '%'),
    'learning rate': by_case({n: RATES[best[n].rate] for n in names}),
  }


def _of_k(best: Mapping[str, Best]) -> list[Claim]:
  """Judge K-AVG by its K, at equal steps, which are equal samples."""
  names = [f'K-AVG({k})' for k in K_AVG]
  one, *more = names
  rare = 'K-AVG(32)'
  few = min(more[: more.index(rare)], key=lambda n: best[n].loss.mean())
  relative = 'loss relative to K = 1'
  setting, measured = _setting(best, names), _measured(best, names)
  lower = below(relative, 1, seeds='each')
  drop = below(Ref('test accuracy', rare), Ref('test accuracy', few))
  return [
    Claim(
      text='More local steps, K > 1, train better than K = 1 at equal samples.',
      source=f'{_STATED_OF_K}; the candidates for K are ours',
      measured={
        relative: by_case({n: best[n].loss / best[one].loss for n in more}),
        **measured,
      },
      rule=Rule(some(lower), some(below(relative, 1))),
      setting=setting,
    ),
    Claim(
      text='The test accuracy drops at K = 32.',
      source=f'{_STATED_OF_K}; compared with the best smaller K > 1',
      measured=measured,
      rule=Rule(mostly(drop), drop),
      setting=setting,
    ),
  ]


def _global_period(name: str) -> int:
  if name == RARE_NAME:
    return RARE_K2
  return int(name[6:-1]) if name.startswith('K-AVG') else K2

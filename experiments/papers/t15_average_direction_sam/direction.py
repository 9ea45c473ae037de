"""Whether D-SGD turns the gradient as average-direction SAM does."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
import numpy as np

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import All, Ref, above, at_least, every
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.t15_average_direction_sam import training
from experiments.papers.t15_average_direction_sam.training import (
  NUM_LANDSCAPE,
  OBSERVED,
  POINTS,
  RATES,
  SEEDS,
  STEPS,
  N,
)
from experiments.tools import drawing, styles
from prsgd_jax.science import averaged_direction

# Pairs of Gaussian steps. The own direction has more because its rule has a
# threshold close to 1.
PAIRS = {'own': 96, 'isotropic': 32}
ALIGNED, SHARE = 0.9, 0.9


def measure(
  network: images.Network, train: images.Examples, points: Any, batch: int
) -> list[dict[str, Any]]:
  """Compare the turn of the mean gradient with SAM, at the middle rate."""
  grad_fn = jax.grad(lambda p, rows, key: network.loss(p, rows))
  seen, middle = train.rows(slice(NUM_LANDSCAPE)), len(RATES[batch]) // 2
  found = []
  for i in range(POINTS):
    row: dict[str, Any] = {
      'batch': batch,
      'rate': RATES[batch][middle],
      'step': (i + 1) * STEPS[batch] // POINTS,
    }
    for name, pairs in PAIRS.items():
      turned = [
        averaged_direction.averaged_direction(
          grad_fn,
          training.at(points, middle, s, (i + 1) * OBSERVED // POINTS - 1),
          seen,
          training.key(),
          num_pairs=pairs,
          isotropic=name == 'isotropic',
        )
        for s in range(len(SEEDS))
      ]
      row[name] = [t.cosine for t in turned]
      row[f'{name}_ceiling'] = [t.ceiling for t in turned]
      row[f'{name}_ratio'] = [t.ratio for t in turned]
    row['turn'] = [t.turn / t.gradient for t in turned]
    found.append(row)
  return found


def claims(turns: Sequence[Mapping[str, Any]]) -> list[Claim]:
  """Judge the direction, and the isotropic one as a control."""
  return [_direction_claim(turns), _control_claim(turns)]


def _turn_case(row: Mapping[str, Any]) -> str:
  return f'batch {row["batch"]}, step {row["step"]}'


def _turn_setting() -> str:
  where = ' and '.join(
    f'total batch {b} at rate {r[len(r) // 2]:g}' for b, r in RATES.items()
  )
  return (
    f'Ring of {N}, {where}; L on {NUM_LANDSCAPE} training images, SAM by '
    f'{PAIRS["own"]} antithetic pairs of Gaussian steps, by '
    f'{PAIRS["isotropic"]} with isotropic noise. The noise of the pairs lowers '
    'a cosine of 1 to the ceiling, which two halves of the pairs give; the '
    f'rule judges the cosine over its ceiling. {training.network_in_words()}'
  )


def _over_ceiling(row: Mapping[str, Any], name: str) -> np.ndarray:
  """Return the cosines of the seeds at a point, over their ceilings."""
  return np.array(row[name]) / np.array(row[f'{name}_ceiling'], float)


def _direction_claim(turns: Sequence[Mapping[str, Any]]) -> Claim:
  share = f'share of points with cosine over ceiling of at least {ALIGNED:g}'
  by_batch = {
    f'batch {b}': np.mean(
      [_over_ceiling(t, 'own') >= ALIGNED for t in turns if t['batch'] == b],
      axis=0,
    )
    for b in RATES
  }
  return Claim(
    text='The mean gradient of D-SGD deviates from the gradient at the mean '
    'model in the direction of average-direction SAM, whose perturbations have '
    'the covariance of the replicas.',
    source=STATED,
    measured={
      share: by_case(by_batch),
      'cosine': by_case({_turn_case(t): t['own'] for t in turns}),
      'ceiling': by_case({_turn_case(t): t['own_ceiling'] for t in turns}),
      'norm of the deviation over the norm for SAM': by_case(
        {_turn_case(t): t['own_ratio'] for t in turns}
      ),
      'norm of the deviation over the norm of the gradient': by_case(
        {_turn_case(t): t['turn'] for t in turns}
      ),
    },
    rule=Rule(every(at_least(share, SHARE)), every(above(share, 0.5))),
    setting=_turn_setting(),
  )


def _control_claim(turns: Sequence[Mapping[str, Any]]) -> Claim:
  own = 'median cosine over ceiling'
  other = f'{own} with isotropic noise'

  def medians(name: str) -> Quantity:
    return by_case(
      {
        f'batch {b}': np.median(
          [_over_ceiling(t, name) for t in turns if t['batch'] == b], axis=0
        )
        for b in RATES
      }
    )

  return Claim(
    text='The covariance matters: isotropic perturbations of equal size point '
    'in another direction.',
    source=OURS,
    measured={own: medians('own'), other: medians('isotropic')},
    rule=Rule(
      every(All((above(own, Ref(other), seeds='all'), above(own, ALIGNED)))),
      every(above(own, Ref(other))),
    ),
    setting=_turn_setting(),
  )


def draw(turns: Sequence[Mapping[str, Any]], axis: Axes) -> None:
  """Draw the cosines along the runs."""
  names = {
    (batch, name): f'{told}, batch {batch}'
    for batch in RATES
    for name, told in (('own', 'own covariance'), ('isotropic', 'isotropic'))
  }
  # Other colors, because the methods in the next panels have their own.
  colors = styles.categories(('blue', '-', 'green', '--', 'pink', 'sky'))
  chosen = ('blue', 'pink', 'green', 'sky')
  looks = dict(zip(names.values(), (colors[c] for c in chosen), strict=True))
  for (batch, name), label in names.items():
    rows = [t for t in turns if t['batch'] == batch]
    share = [t['step'] / STEPS[batch] for t in rows]
    cosines = np.array([t[name] for t in rows]).T
    drawing.seeds(axis, share, cosines, looks[label], label=label)
  axis.set(
    xlabel='fraction of the run',
    ylabel='cosine with average-direction SAM',
    title=f'ring, n = {N}',
  )

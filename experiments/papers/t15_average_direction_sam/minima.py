"""The minima that the methods find: sharpness, spread and test accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
import numpy as np

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Order,
  above,
  at_least,
  every,
  some,
)
from experiments.papers.quantities import Measurement, Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.t15_average_direction_sam import training
from experiments.papers.t15_average_direction_sam.training import (
  GRAPHS,
  LOOKS,
  METHODS,
  NUM_CHOOSING,
  NUM_LANDSCAPE,
  OBSERVED,
  RATES,
  SEEDS,
)
from experiments.tools import drawing
from prsgd_jax.science import landscape

# The spread varies from step to step, so that it is a mean over these points.
LAST = OBSERVED // 4
# Smallest ratio of the effects at two batches that is only partly kept.
KEPT = 0.8
# Below this test accuracy, in %, a run did not train; all others reach 91.
TRAINED = 80
MEANS_ONLY = (
  'An earlier rule compared the means of three seeds, with the verdict yes.'
)
# Another run, done once.
TRIED = (
  'A run whose pixels were centered over 4096 images, not 8192, is partly: its '
  'ratios at the middle rates were 0.89 (full), 0.92 (exponential) and 0.89 '
  '(ring), and above 1.1 at the other rates.'
)


def measure(
  network: images.Network,
  splits: Sequence[images.Examples],
  points: Any,
  method: str,
  batch: int,
) -> list[dict[str, Any]]:
  """Measure the mean model at the end of every run of a method and a batch.

  Args:
    network: the network.
    splits: images that train, that choose the rate, and that test.
    points: parameters along the runs.
    method: a key of `METHODS`.
    batch: a key of `RATES`.
  """
  train, choosing, test = splits
  grad_fn = jax.grad(lambda p, rows, key: network.loss(p, rows))
  seen, key = train.rows(slice(NUM_LANDSCAPE)), training.key()
  found = []
  for k, rate in enumerate(RATES[batch]):
    row: dict[str, Any] = {'method': method, 'batch': batch, 'rate': rate}
    names = ('sharpness', 'chosen_by', 'accuracy', 'loss', 'spread')
    values: dict[str, list[float]] = {name: [] for name in names}
    for s in range(len(SEEDS)):
      params = training.at(points, k, s, -1)
      mean = images.mean_of(params)
      curved = landscape.curvature(grad_fn, mean, seen, key, tolerance=0.05)
      values['sharpness'].append(curved.sharpness)
      for name, held in (('chosen_by', choosing), ('accuracy', test)):
        share = float(network.accuracy(mean, held.rows(slice(None))))
        values[name].append(100 * share)
      values['loss'].append(float(network.loss(mean, train.rows(slice(None)))))
      last = [_spread(training.at(points, k, s, i)) for i in range(-LAST, 0)]
      values['spread'].append(float(np.mean(last)))
    found.append({**row, **values})
  return found


def _spread(params: Any) -> float:
  """Return (1/N) sum_j |w_j - w_a|^2."""
  return float(
    sum(
      np.square(x - x.mean(axis=0)).sum() / len(x)
      for x in jax.tree.leaves(params)
    )
  )


def claims(ends: Sequence[Mapping[str, Any]]) -> list[Claim]:
  """Judge sharpness, spread and test accuracy by method, rate and batch."""
  return [
    _flatter_claim(ends),
    _spread_claim(ends),
    _topology_claim(ends),
    _batch_claim(ends),
    _accuracy_claim(ends),
  ]


def _by_method(
  ends: Sequence[Mapping[str, Any]], name: str
) -> dict[str, dict[str, Sequence[float]]]:
  """Return the values by case of batch and rate, then by method."""
  found: dict[str, dict[str, Sequence[float]]] = {}
  for row in ends:
    case = f'batch {row["batch"]}, rate {row["rate"]:g}'
    found.setdefault(case, {})[row['method']] = row[name]
  return found


def _ratio(ends: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Return the ratio of sharpness, SSGD over a graph, by case and graph."""
  return {
    case: {g: np.array(own['SSGD']) / np.array(own[g]) for g in GRAPHS}
    for case, own in _by_method(ends, 'sharpness').items()
  }


def _setting() -> str:
  return (
    'The sharpness is the largest eigenvalue of the Hessian of the mean model '
    f'on {NUM_LANDSCAPE} training images. {training.in_words()}'
  )


def _flatter_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  ratios = _ratio(ends)
  names = {g: f'sharpness of SSGD over {g}' for g in GRAPHS}
  flatter = [above(name, 1, seeds='each') for name in names.values()]
  return Claim(
    text='D-SGD finds flatter minima than SSGD at the same learning rate.',
    source=STATED,
    measured={
      **{
        f'sharpness of {m}': by_case(
          {c: own[m] for c, own in _by_method(ends, 'sharpness').items()}
        )
        for m in METHODS
      },
      **{
        name: by_case({case: own[g] for case, own in ratios.items()})
        for g, name in names.items()
      },
    },
    rule=Rule(
      every(All(tuple(flatter))),
      every(All(tuple(above(name, 1) for name in names.values()))),
    ),
    setting=_setting(),
    note='Full is W = J in order A: all models are averaged at every step, but '
    f'each worker adds its own gradient. With three seeds, it was a yes. '
    f'{_untrained(ends)}',
  )


def _untrained(ends: Sequence[Mapping[str, Any]]) -> str:
  """Return a sentence on the runs of which little is to be learned."""
  found = [
    f'{own["method"]}, batch {own["batch"]}, rate {own["rate"]:g}: '
    f'{count} of {len(own["accuracy"])}'
    for own in ends
    if (count := sum(x < TRAINED for x in own['accuracy']))
  ]
  listed = '; '.join(found) or 'none'
  return f'Runs whose test accuracy is below {TRAINED}%: {listed}.'


def _middle() -> tuple[str, ...]:
  """Return the case of the middle rate of each batch."""
  return tuple(f'batch {b}, rate {r[len(r) // 2]:g}' for b, r in RATES.items())


def _measured_by_method(
  ends: Sequence[Mapping[str, Any]], name: str
) -> dict[str, Quantity]:
  """Return a number by method, a quantity for the middle rate of a batch."""
  found = _by_method(ends, name)
  return {
    f'{name}, {case}': by_case({m: found[case][m] for m in METHODS})
    for case in _middle()
  }


def _spread_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  measured = _measured_by_method(ends, 'spread')
  rises = [Order(name, tuple(METHODS), 'rise', 'each') for name in measured]
  two_only = [Order(name, ('full', 'ring'), 'rise') for name in measured]
  return Claim(
    text='The sparser the graph, the farther apart are the replicas.',
    source=f'{OURS}, of the premise of the next claim',
    measured=measured,
    rule=Rule(All(tuple(rises)), All(tuple(two_only))),
    setting='The spread is (1/n) sum_j |w_j - w_a|^2, a mean over '
    f'{LAST} points of the last quarter of a run. {training.in_words()}',
    note=MEANS_ONLY,
  )


def _topology_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  measured = _measured_by_method(ends, 'sharpness')
  falls = [Order(name, tuple(METHODS), 'fall', 'each') for name in measured]
  two_only = [Order(name, ('full', 'ring'), 'fall') for name in measured]
  return Claim(
    text='The sparser the graph, the flatter is the minimum.',
    source=f'{OURS}, of the order of the graphs; the regularizer tr(H Xi) / 2 '
    f'is {STATED}',
    measured=measured,
    rule=Rule(All(tuple(falls)), All(tuple(two_only))),
    setting=_setting(),
    note=MEANS_ONLY,
  )


def _batch_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  small, large = min(RATES), max(RATES)
  ratios = _ratio(ends)
  effects = {b: f'sharpness of SSGD over D-SGD, batch {b}' for b in RATES}
  change = f'{effects[large]}, over its value at batch {small}'
  names = (*effects.values(), change)
  found: dict[str, dict[str, Any]] = {name: {} for name in names}
  for pair in zip(RATES[small], RATES[large], strict=True):
    own = {
      b: ratios[f'batch {b}, rate {rate:g}']
      for b, rate in zip((small, large), pair, strict=True)
    }
    for graph in GRAPHS:
      case = f'{graph}, rates {pair[0]:g} and {pair[1]:g}'
      for b, effect in effects.items():
        found[effect][case] = own[b][graph]
      found[change][case] = Measurement(
        own[large][graph].mean() / own[small][graph].mean(),
        tuple(own[large][graph] / own[small][graph]),
      )
  below_kept = [
    f'{case}: {", ".join(f"{x:.2f}" for x in ratio.seeds)}'
    for case, ratio in found[change].items()
    if ratio.value < KEPT
  ]
  return Claim(
    text='The effect on the sharpness does not decrease as the total batch '
    'grows.',
    source=STATED,
    measured={name: by_case(values) for name, values in found.items()},
    rule=Rule(
      every(at_least(change, 1, seeds='each')), every(at_least(change, KEPT))
    ),
    setting='Each pair of learning rates is in proportion to the root of the '
    f'batch. A decrease by at most {1 - KEPT:.0%}, our tolerance, is partly. '
    f'{_setting()}',
    note=f'{MEANS_ONLY} {TRIED} {_untrained(ends)} A run that did not train '
    'has no minimum, and its seed decides a ratio of means. Below '
    f'{KEPT:g}, by seed: {"; ".join(below_kept) or "none"}.',
  )


def best(ends: Sequence[Mapping[str, Any]], method: str, batch: int) -> Any:
  """Return the row of the rate with the largest mean of `chosen_by`."""
  rows = [r for r in ends if (r['method'], r['batch']) == (method, batch)]
  return max(rows, key=lambda r: np.nan_to_num(np.mean(r['chosen_by'])))


def _accuracy_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  gains: dict[str, Any] = {}
  accuracy: dict[str, Any] = {}
  rates: dict[str, float] = {}
  at_edge = []
  for batch in RATES:
    top = {m: best(ends, m, batch) for m in METHODS}
    for m, row in top.items():
      case = f'{m}, batch {batch}'
      accuracy[case], rates[case] = row['accuracy'], row['rate']
      if row['rate'] in (
        min(RATES[batch]),
        max(RATES[batch]),
      ):
        at_edge.append(f'{case}: {row["rate"]:g}')
      if m != 'SSGD':
        gains[case] = np.array(row['accuracy']) - top['SSGD']['accuracy']
  gain = 'gain over SSGD'
  large = [case for case in gains if case.endswith(f'batch {max(RATES)}')]
  grid = '; '.join(
    f'{", ".join(f"{r:g}" for r in own)} at batch {b}'
    for b, own in RATES.items()
  )
  return Claim(
    text='At the larger total batch, D-SGD generalizes better than SSGD.',
    source=STATED,
    measured={
      gain: by_case(gains, 'points'),
      'test accuracy': by_case(accuracy, '%'),
      'best rate': by_case(rates),
    },
    rule=Rule(
      every(above(gain, 0, seeds='each'), large), some(above(gain, 0), large)
    ),
    setting=f'Each method at its best of the rates {grid}, by the accuracy on '
    f'{NUM_CHOOSING} other training images. Best rates at an edge of the grid: '
    f'{"; ".join(at_edge) or "none"}. {training.in_words()}',
    note=f'{_both_gains(gains)} The paper compares at one rate per batch and '
    'finds up to 5 points on CIFAR-10 from pretrained weights.',
  )


def _both_gains(gains: Mapping[str, Any]) -> str:
  """Return a sentence on the gain at the smaller batch, beside the larger."""
  small, large = (
    [np.mean(gains[f'{g}, batch {b}']) for g in GRAPHS] for b in sorted(RATES)
  )
  larger = sum(a < b for a, b in zip(small, large, strict=True))
  told = [', '.join(f'{x:.2f}' for x in own) for own in (small, large)]
  return (
    f'The gain is {told[0]} points at batch {min(RATES)}, and {told[1]} at '
    f'batch {max(RATES)} ({", ".join(GRAPHS)}); so it grows with the batch on '
    f'{larger} of {len(GRAPHS)} graphs.'
  )


def draw(ends: Sequence[Mapping[str, Any]], middle: Axes, right: Axes) -> None:
  """Draw the sharpness and the test error by learning rate."""
  for batch in RATES:
    for method, style in LOOKS.items():
      rows = [r for r in ends if (r['method'], r['batch']) == (method, batch)]
      rates = [r['rate'] for r in rows]
      dash = '-' if batch == max(RATES) else '--'
      style = style._replace(linestyle=dash)
      label = f'{method}, batch {batch}'
      sharp = np.array([r['sharpness'] for r in rows]).T
      drawing.seeds(middle, rates, sharp, style, label=label)
      error = 100 - np.array([r['accuracy'] for r in rows]).T
      drawing.seeds(right, rates, error, style)
  for axis in (middle, right):
    drawing.log(axis, 'x')
    axis.set_xlabel('learning rate')
  drawing.log(middle, 'y')
  middle.set(ylabel='largest eigenvalue', title='sharpness of the mean model')
  right.set(ylabel='test error of the mean model, %', title='generalization')

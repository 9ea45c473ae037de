"""T15: D-SGD as average-direction SAM, sharpness and test error by topology."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Order,
  Ref,
  above,
  at_least,
  every,
  some,
)
from experiments.papers.quantities import Measurement, Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import averaged_direction, landscape

SEEDS = (0, 1, 2)
N, HIDDEN = 16, (50, 50)
NUM_TRAIN, NUM_LANDSCAPE = 4096, 1024
NUM_CHOOSING = 4096  # training images that choose the rates
# Total batch -> learning rates, in proportion to its root; steps.
RATES = {128: (0.05, 0.1, 0.2), 2048: (0.2, 0.4, 0.8)}
STEPS = {128: 1200, 2048: 320}
# Points of a run with its parameters, and those with the direction of SAM.
OBSERVED, POINTS = 40, 8
# The spread varies from step to step, so that it is a mean over these points.
LAST = OBSERVED // 4
# Pairs of Gaussian steps. The own direction has more because its rule has a
# threshold close to 1.
PAIRS = {'own': 96, 'isotropic': 32}
ALIGNED, SHARE = 0.9, 0.9
# Smallest ratio of the effects at two batches that is only partly kept.
KEPT = 0.8
# Another run, done once.
TRIED = (
  'A run whose pixels were centered over 4096 images, not 8192, is partly: its '
  'ratios at the middle rates were 0.89 (full), 0.92 (exponential) and 0.89 '
  '(ring), and above 1.1 at the other rates.'
)
# From no spread of the replicas to the largest.
METHODS: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'SSGD': lambda rate: pr.ssgd(optax.sgd(rate)),
  'full': lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.mixing.mean()),
  'exponential': lambda rate: pr.d_psgd(
    optax.sgd(rate), mixing=pr.graphs.exponential()
  ),
  'ring': lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.graphs.ring()),
}
GRAPHS = tuple(METHODS)[1:]
LOOKS = {
  'SSGD': styles.method('ssgd'),
  **styles.variants('d_psgd', GRAPHS),
}


def measure(setting: Setting) -> Outcome:
  """Train by every method, batch and rate; look at ends and at the ring."""
  train, test = images.load(setting, 'mnist', NUM_TRAIN + NUM_CHOOSING)
  choosing = images.Examples(*(x[NUM_TRAIN:] for x in train))
  train = images.Examples(*(x[:NUM_TRAIN] for x in train))
  network = images.Network(HIDDEN)
  ends: list[dict[str, Any]] = []
  turns: list[dict[str, Any]] = []
  for batch in RATES:
    for method in METHODS:
      points = _train(network, train, method, batch)
      splits = (train, choosing, test)
      ends += _ends(network, splits, points, method, batch)
      if method == 'ring':
        turns += _turns(network, train, points, batch)
  claims = [
    _direction_claim(turns),
    _control_claim(turns),
    _flatter_claim(ends),
    _spread_claim(ends),
    _topology_claim(ends),
    _batch_claim(ends),
    _accuracy_claim(ends),
  ]
  return Outcome(claims, {'ends': ends, 'turns': turns}, SEEDS)


def _train(
  network: images.Network, train: images.Examples, method: str, batch: int
) -> Any:
  """Return parameters along the runs, leaves [rates, seeds, points, N, ...]."""

  def loss_fn(p: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return network.loss(p, train.draw(key, batch // N))

  return simulate(
    METHODS[method],
    RATES[batch],
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=N,
    num_steps=STEPS[batch],
    observe=lambda params: params,
    every=STEPS[batch] // OBSERVED,
  )


def _at(points: Any, *index: int) -> Any:
  return jax.tree.map(lambda x: x[index], points)


def _ends(
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
  seen, key = train.rows(slice(NUM_LANDSCAPE)), _key()
  found = []
  for k, rate in enumerate(RATES[batch]):
    row: dict[str, Any] = {'method': method, 'batch': batch, 'rate': rate}
    names = ('sharpness', 'chosen_by', 'accuracy', 'loss', 'spread')
    values: dict[str, list[float]] = {name: [] for name in names}
    for s in range(len(SEEDS)):
      params = _at(points, k, s, -1)
      mean = images.mean_of(params)
      curved = landscape.curvature(grad_fn, mean, seen, key, tolerance=0.05)
      values['sharpness'].append(curved.sharpness)
      for name, held in (('chosen_by', choosing), ('accuracy', test)):
        share = float(network.accuracy(mean, held.rows(slice(None))))
        values[name].append(100 * share)
      values['loss'].append(float(network.loss(mean, train.rows(slice(None)))))
      last = [_spread(_at(points, k, s, i)) for i in range(-LAST, 0)]
      values['spread'].append(float(np.mean(last)))
    found.append({**row, **values})
  return found


def _key() -> jax.Array:
  return jax.random.key(0, impl='threefry2x32')


def _spread(params: Any) -> float:
  """Return (1/N) sum_j |w_j - w_a|^2."""
  return float(
    sum(
      np.square(x - x.mean(axis=0)).sum() / len(x)
      for x in jax.tree.leaves(params)
    )
  )


def _turns(
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
          _at(points, middle, s, (i + 1) * OBSERVED // POINTS - 1),
          seen,
          _key(),
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
    f'rule judges the cosine over its ceiling. {_network()}'
  )


def _network() -> str:
  return (
    f'MLP 196-{"-".join(map(str, HIDDEN))}-10 on {NUM_TRAIN} images of MNIST '
    'at 14 x 14, drawn with replacement; no momentum.'
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


def _runs() -> str:
  steps = ', '.join(f'{n} steps at batch {b}' for b, n in STEPS.items())
  return f'{N} workers; {steps}. {_network()}'


def _setting() -> str:
  return (
    'The sharpness is the largest eigenvalue of the Hessian of the mean model '
    f'on {NUM_LANDSCAPE} training images. {_runs()}'
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
    'each worker adds its own gradient.',
  )


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
  rises = [Order(name, tuple(METHODS), 'rise') for name in measured]
  two_only = [Order(name, ('full', 'ring'), 'rise') for name in measured]
  return Claim(
    text='The sparser the graph, the farther apart are the replicas.',
    source=f'{OURS}, of the premise of the next claim',
    measured=measured,
    rule=Rule(All(tuple(rises)), All(tuple(two_only))),
    setting='The spread is (1/n) sum_j |w_j - w_a|^2, a mean over '
    f'{LAST} points of the last quarter of a run. {_runs()}',
  )


def _topology_claim(ends: Sequence[Mapping[str, Any]]) -> Claim:
  measured = _measured_by_method(ends, 'sharpness')
  falls = [Order(name, tuple(METHODS), 'fall') for name in measured]
  two_only = [Order(name, ('SSGD', 'ring'), 'fall') for name in measured]
  return Claim(
    text='The sparser the graph, the flatter is the minimum.',
    source=f'{STATED}: the regularizer is tr(H Xi) / 2; the order of the '
    f'graphs: {OURS}',
    measured=measured,
    rule=Rule(All(tuple(falls)), All(tuple(two_only))),
    setting=_setting(),
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
  return Claim(
    text='The effect on the sharpness does not decrease as the total batch '
    'grows.',
    source=STATED,
    measured={name: by_case(values) for name, values in found.items()},
    rule=Rule(every(at_least(change, 1)), every(at_least(change, KEPT))),
    setting='Each pair of learning rates is in proportion to the root of the '
    f'batch. A decrease by at most {1 - KEPT:.0%}, our tolerance, is partly. '
    f'{_setting()}',
    note=TRIED,
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
      if row['rate'] in (min(RATES[batch]), max(RATES[batch])):
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
    f'{"; ".join(at_edge) or "none"}. {_runs()}',
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


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw cosines along the run, and sharpness and test error by rate."""
  figure.set_size_inches(drawing.WIDTH, 4.2)
  left, middle, right = figure.subplots(1, 3)
  _draw_cosines(data['turns'], left)
  for batch in RATES:
    for method, style in LOOKS.items():
      rows = [
        r for r in data['ends'] if (r['method'], r['batch']) == (method, batch)
      ]
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
  drawing.legend_below(figure)


def _draw_cosines(turns: Sequence[Mapping[str, Any]], axis: Axes) -> None:
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


TARGET = Target(
  name='t15_average_direction_sam',
  title='D-SGD as average-direction SAM: direction, sharpness, test error',
  paper='Zhu, He, Chen, Song, Tao 2023 (arXiv 2306.02913)',
  measure=measure,
  draw=draw,
)

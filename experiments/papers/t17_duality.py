"""T17: the two determinants of generalization along SSGD and DPSGD."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax
from scipy import stats

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  above,
  at_least,
  below,
  every,
  within,
)
from experiments.papers.quantities import Measurement, by_case, number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import duality

SEEDS = (0, 1, 2)
N, HIDDEN = 16, (30, 30)
NUM_TRAIN, NUM_TEST, NUM_HESSIAN = 4096, 500, 1024
TOTAL_BATCH, NUM_STEPS, POINTS = 2048, 320, 4
RATES = (0.2, 0.4, 0.8)
METHODS = {
  'SSGD': lambda rate: pr.ssgd(optax.sgd(rate)),
  'DPSGD': lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.graphs.ring()),
}
LOOKS = {'SSGD': styles.method('ssgd'), 'DPSGD': styles.method('d_psgd')}
# Above this training loss, in nats, a run hardly trained; others reach 0.12.
TRAINED = 0.2
# Largest relative difference of two losses that float32 explains.
EXACT = 1e-3
IN_JOURNAL = f'{STATED}: the abstract of the journal version, not the preprint'


def measure(setting: Setting) -> Outcome:
  """Train by both methods, and decompose the gap along the runs."""
  train, test = images.load(setting, 'mnist', NUM_TRAIN)
  test = images.Examples(test.image[:NUM_TEST], test.label[:NUM_TEST])
  network = images.Network(HIDDEN)
  rows = []
  for method in METHODS:
    points = _train(network, train, method)
    for k, rate in enumerate(RATES):
      for i in range(POINTS) if k == len(RATES) // 2 else (POINTS - 1,):
        found = [
          decompose(
            images.mean_of(jax.tree.map(lambda x, a=(k, s, i): x[a], points)),
            train,
            test,
          )
          for s in range(len(SEEDS))
        ]
        step = (i + 1) * NUM_STEPS // POINTS
        values = {name: [f[name] for f in found] for name in found[0]}
        rows.append({'method': method, 'rate': rate, 'step': step, **values})
  claims = [
    _exact_claim(rows),
    _gap_claim(rows),
    _flatter_claim(rows),
    _loss_claim(rows),
  ]
  return Outcome(claims, {'rows': rows}, SEEDS)


def _train(network: images.Network, train: images.Examples, method: str) -> Any:
  def loss_fn(p: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return network.loss(p, train.draw(key, TOTAL_BATCH // N))

  return simulate(
    METHODS[method],
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=N,
    num_steps=NUM_STEPS,
    observe=lambda params: params,
    every=NUM_STEPS // POINTS,
  )


class Layer(NamedTuple):
  """The weights of the layer, and what follows it; a tree of arrays."""

  kernel: jax.Array
  bias: jax.Array
  last: Mapping[str, jax.Array]

  def losses(self, activity: jax.Array, label: jax.Array) -> jax.Array:
    """Return the losses of examples by the activities before the layer."""
    hidden = jax.nn.relu(activity @ self.kernel + self.bias)
    logits = hidden @ self.last['kernel'] + self.last['bias']
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)

  def along(
    self, change: jax.Array, share: Any, activity: jax.Array, label: jax.Array
  ) -> jax.Array:
    """Return the losses with a share of a change of the weights."""
    moved = self._replace(kernel=self.kernel + share * change)
    return moved.losses(activity, label)


def decompose(
  params: Any, train: images.Examples, test: images.Examples
) -> dict[str, float]:
  """Return the gap and its determinants at the layer between hidden units.

  Every test example is paired with the nearest training example of its class,
  by the activities before the layer.
  """
  first, middle, last = (params[f'Dense_{i}'] for i in range(3))
  layer = Layer(jnp.asarray(middle['kernel']), middle['bias'], last)

  def active(examples: images.Examples) -> jax.Array:
    return jax.nn.relu(examples.image @ first['kernel'] + first['bias'])

  seen, unseen = active(train), active(test)
  pair = nearest(*map(np.asarray, (seen, train.label, unseen, test.label)))
  inputs, label = seen[pair], test.label
  duals = duality.dual_weights(layer.kernel, inputs, unseen)
  # An image that activates no unit has no dual weights.
  known = np.isfinite(duals).all(axis=(1, 2))
  inputs, others, label = inputs[known], unseen[known], label[known]
  duals = duals[known]
  there, here = layer.losses(others, label), layer.losses(inputs, label)
  dual, *orders = expansions(layer, jnp.asarray(duals), inputs, label)
  hessian = _hessian(layer, seen[:NUM_HESSIAN], train.label[:NUM_HESSIAN])
  found = duality.determinants(hessian, duals)
  return {
    'train_loss': float(layer.losses(seen, train.label).mean()),
    'test_loss': float(there.mean()),
    'gap': float(there.mean() - here.mean()),
    'second_order': found.gap,
    'expansion': float((orders[0] + orders[1]).mean()),
    'first_order': float(orders[0].mean()),
    'sharpness': float(found.sharpness[0]),
    'spread': float(found.spread.sum()),
    'size': float(jnp.linalg.norm(layer.kernel)),
    'duality_error': float(
      (jnp.abs(dual - there) / (there.mean() + there)).max()
    ),
    'known': float(known.mean()),
  }


@jax.jit
def _hessian(layer: Layer, activity: jax.Array, label: jax.Array) -> jax.Array:
  """Return the Hessian of the mean loss by the weights, float[P, P]."""

  def loss(flat: jax.Array) -> jax.Array:
    kernel = flat.reshape(layer.kernel.shape)
    return layer._replace(kernel=kernel).losses(activity, label).mean()

  return jax.hessian(loss)(layer.kernel.ravel())


@jax.jit
def expansions(
  layer: Layer, changes: jax.Array, activity: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return every example's loss at changed weights, and its first two orders.

  Args:
    layer: the layer.
    changes: the changes of its weights, float[K, D, M].
    activity: the activities before it, float[K, D].
    label: the classes, int[K].
  """

  def of(change: jax.Array, x: jax.Array, y: jax.Array) -> Any:
    def loss(share: jax.Array) -> jax.Array:
      return layer.along(change, share, x, y)

    zero, one = jnp.zeros(()), jnp.ones(())
    second = jax.grad(jax.grad(loss))(zero) / 2
    return loss(one), jax.grad(loss)(zero), second

  found: tuple[jax.Array, jax.Array, jax.Array] = jax.vmap(of)(
    changes, activity, label
  )
  return found


def nearest(
  seen: np.ndarray, label: np.ndarray, unseen: np.ndarray, other: np.ndarray
) -> np.ndarray:
  """Return the nearest row of `seen` of the same class, for each of `unseen`.

  Args:
    seen: float[M, D], with the classes `label`, int[M].
    unseen: float[K, D], with the classes `other`, int[K].
  """
  square = (seen**2).sum(axis=-1) - 2 * unseen @ seen.T
  return np.where(other[:, None] == label, square, np.inf).argmin(axis=1)


def _case(row: Mapping[str, Any]) -> str:
  return f'{row["method"]}, rate {row["rate"]:g}'


def _ends(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  return [row for row in rows if row['step'] == NUM_STEPS]


def _setting() -> str:
  return (
    f'Layer {HIDDEN[0]} x {HIDDEN[1]} of an MLP 196-{HIDDEN[0]}-{HIDDEN[1]}-10 '
    f'on {NUM_TRAIN} images of MNIST at 14 x 14; {N} workers, total batch '
    f'{TOTAL_BATCH}, {NUM_STEPS} steps, no momentum; DPSGD on a ring. '
    f'{NUM_TEST} test images, each paired with the nearest training image of '
    'its class, which is our choice (the pairs of the paper: not verified). '
    f'The Hessian is of the loss on {NUM_HESSIAN} training images.'
  )


def _exact_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  error = 'largest relative difference of the losses'
  fewest = min(_ends(rows), key=lambda row: min(row['known']))
  left_out = 1 - min(fewest['known'])
  return Claim(
    text='The loss on a test image is the loss on its training image at dual '
    'weights.',
    source=f'{OURS}: an identity, which checks the code',
    measured={
      error: by_case(
        {_case(r): np.array(r['duality_error']) for r in _ends(rows)}
      ),
      'share of images with dual weights': by_case(
        {_case(r): r['known'] for r in _ends(rows)}
      ),
    },
    rule=Rule(every(below(error, EXACT, seeds='each'))),
    setting=_setting(),
    note='Each loss is divided by itself plus the mean loss. A training image '
    'that activates no unit before the layer has no dual weights, and its pair '
    f'is left out: at most {left_out:.1%} of the pairs of a seed '
    f'({_case(fewest)}).',
  )


def _gap_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  ends = _ends(rows)
  pairs = [
    np.array([r[name] for r in ends]) for name in ('gap', 'second_order')
  ]
  correlation = [
    float(stats.spearmanr(*(p[:, s] for p in pairs)).statistic)
    for s in range(len(SEEDS))
  ]
  ranked = 'rank correlation over the solutions of a seed'
  ratio = 'second order over the gap'
  close = All((at_least(ratio, 0.5), below(ratio, 2)))
  return Claim(
    text='The gap between test and training loss is about the sum over '
    'eigen-directions of sharpness times spread of the dual weights, '
    'sum lambda_n sigma_n^2 / 2.',
    source=STATED,
    measured={
      ranked: number(correlation),
      'gap': by_case({_case(r): r['gap'] for r in ends}, 'nats'),
      'second order': by_case(
        {_case(r): r['second_order'] for r in ends}, 'nats'
      ),
      ratio: by_case(
        {
          _case(r): np.array(r['second_order']) / np.array(r['gap'])
          for r in ends
        }
      ),
      'both orders of each example over the gap': by_case(
        {_case(r): np.array(r['expansion']) / np.array(r['gap']) for r in ends}
      ),
      'first order of each example over the gap': by_case(
        {
          _case(r): np.array(r['first_order']) / np.array(r['gap'])
          for r in ends
        }
      ),
    },
    rule=Rule(
      All((at_least(ranked, 0.8), every(close))), at_least(ranked, 0.5)
    ),
    setting=_setting(),
    note='The gap is between the losses of the pairs. The sum has the mean '
    'Hessian in place of the Hessian of each example, and no term of first '
    'order. The last columns have the gradient and the Hessian of each '
    'example.',
  )


def _ratios(
  rows: Sequence[Mapping[str, Any]], name: str
) -> dict[str, Measurement]:
  """Return the ratio of a number, SSGD over DPSGD, at the end, by rate."""
  found = {}
  for rate in RATES:
    one, other = (
      np.array(r[name])
      for m in METHODS
      for r in _ends(rows)
      if (r['method'], r['rate']) == (m, rate)
    )
    ratio = Measurement(one.mean() / other.mean(), tuple(one / other))
    found[f'rate {rate:g}'] = ratio
  return found


def _untrained(rows: Sequence[Mapping[str, Any]]) -> str:
  """Return sentences on the runs that did not train, and on those that did."""
  found = []
  for row in _ends(rows):
    losses = [f'{x:.2f}' for x in row['train_loss'] if not x <= TRAINED]
    if losses:
      found.append(f'{_case(row)}: {", ".join(losses)}')
  return (
    f'Training losses above {TRAINED:g} nats, of runs that hardly trained: '
    f'{"; ".join(found) or "none"}. Their ratios say little of solutions. On '
    'another machine, two of the same three seeds of SSGD at rate 0.8 hardly '
    'trained.'
  )


def _flatter_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  names = {
    'sharpness': 'sharpness of SSGD over DPSGD',
    'size': 'norm of the weights of SSGD over DPSGD',
    'spread': 'sum of sigma_n^2 of SSGD over DPSGD',
  }
  flatter = above(names['sharpness'], 1, seeds='each')
  return Claim(
    text='Decentralized learning finds flatter solutions without changing '
    'their size.',
    source=IN_JOURNAL,
    measured={
      title: by_case(_ratios(rows, name)) for name, title in names.items()
    },
    rule=Rule(
      every(All((flatter, within(names['size'], 1, absolute=0.1)))),
      every(above(names['sharpness'], 1)),
    ),
    setting=_setting(),
    note=_untrained(rows),
  )


def _loss_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  gap, loss = 'gap of SSGD over DPSGD', 'test loss of SSGD over DPSGD'
  middle = f'rate {RATES[len(RATES) // 2]:g}'
  return Claim(
    text='Decentralized learning generalizes better.',
    source=IN_JOURNAL,
    measured={
      gap: by_case(_ratios(rows, 'gap')),
      loss: by_case(_ratios(rows, 'test_loss')),
    },
    rule=Rule(
      every(All((above(gap, 1, seeds='each'), above(loss, 1, seeds='each')))),
      every(above(gap, 1), [middle]),
    ),
    setting=_setting(),
    note=_untrained(rows),
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw both determinants, the size and the gap along the runs."""
  figure.set_size_inches(drawing.WIDTH, 6.5)
  axes = figure.subplots(2, 3).ravel()
  titles = {
    'sharpness': 'largest eigenvalue of the layer',
    'spread': r'spread of the dual weights, $\sum \sigma_n^2$',
    'size': 'norm of the weights of the layer',
    'gap': 'gap of the losses, nats',
    'test_loss': 'loss on test images, nats',
  }
  rate = RATES[len(RATES) // 2]
  for axis, (name, title) in zip(axes, titles.items(), strict=False):
    for method, style in LOOKS.items():
      own = [
        r for r in data['rows'] if (r['method'], r['rate']) == (method, rate)
      ]
      values = np.array([r[name] for r in own]).T
      steps = [r['step'] for r in own]
      drawing.seeds(axis, steps, values, style, label=method)
    axis.set(xlabel='steps', ylabel=title)
    if name in ('sharpness', 'gap', 'test_loss'):
      drawing.log(axis, 'y')
  for method, style in LOOKS.items():
    own = [r for r in _ends(data['rows']) if r['method'] == method]
    axes[-1].plot(
      np.ravel([r['second_order'] for r in own]),
      np.ravel([r['gap'] for r in own]),
      **style._replace(linestyle='none')._asdict(),
    )
  low, high = axes[-1].get_xlim()
  ends = [max(low, 1e-3), high]
  axes[-1].plot(ends, ends, 'k:', lw=1, label='equal')
  axes[-1].set(
    xlabel=r'$\sum \lambda_n \sigma_n^2 / 2$, nats',
    ylabel='gap of the losses, nats',
    title='ends, all rates',
  )
  axes[0].set_title(f'learning rate {rate:g}')
  drawing.legend_below(figure)


TARGET = Target(
  name='t17_duality',
  title='Activity-weight duality: sharpness and size along SSGD and DPSGD',
  paper='Feng, Zhang, Tu 2023 (Nature Machine Intelligence; preprint by Feng '
  'and Tu, arXiv 2203.10736)',
  measure=measure,
  draw=draw,
)

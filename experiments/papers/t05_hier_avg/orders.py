"""The orders of loss and drift by K1 and by S, and the drift of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import All, Direction, Order, below, every
from experiments.papers.quantities import by_case, number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t05_hier_avg.training import K2, ORDER_RATES, P, drift
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import laws

RISING = ('K1 = 1, S = 4', 'K1 = 4, S = 4', 'K1 = 16, S = 4', 'K-AVG(32)')
FALLING = (
  'K-AVG(32)',
  'K1 = 4, S = 2',
  'K1 = 4, S = 4',
  'K1 = 4, S = 8',
  'K1 = 4, S = 16',
)
# Without gradients: entries of x, and rounds.
DIMENSION, NOISE_ROUNDS, NOISE_SEEDS = 64, 40, (0, 1, 2, 3, 4)
TOLERANCE = 0.03


def drift_of_noise(k1: int, size: int) -> dict[str, Any]:
  """Measure the drift of pure noise at the end of each step of a round.

  The law gives the drift before an average: the drift after the previous step,
  plus the noise of one step.
  """

  def noise(x: jax.Array, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return jax.random.normal(key, x.shape) @ x

  seen = simulate(
    lambda rate: pr.hier_avg(
      optax.sgd(rate), local_period=k1, global_period=K2, group_size=size
    ),
    (1.0,),
    NOISE_SEEDS,
    loss_fn=noise,
    start=jnp.zeros(DIMENSION),
    num_replicas=P,
    num_steps=K2 * NOISE_ROUNDS,
    observe=drift,
  )
  by_round = seen.reshape(-1, K2).mean(axis=0) / DIMENSION
  law = laws.hier_avg_drift(
    np.arange(1, K2),
    num_replicas=P,
    local_period=k1,
    global_period=K2,
    group_size=size,
  )
  return {
    'k1': k1,
    'size': size,
    'measured': (by_round[:-1] + 1 - 1 / P).tolist(),
    'law': law.tolist(),
  }


def claims(
  trained: Mapping[str, Any], noise: Sequence[Mapping[str, Any]]
) -> list[Claim]:
  """Judge the orders, and the law of the drift.

  Args:
    trained: results of `training.train` by method.
    noise: results of `drift_of_noise`.
  """
  return [
    _order_claim(trained, 'loss', RISING),
    _order_claim(trained, 'loss', FALLING),
    _order_claim(trained, 'drift', RISING),
    _order_claim(trained, 'drift', FALLING),
    _law_claim(noise),
  ]


def _means(trained: Mapping[str, Any], name: str, key: str) -> np.ndarray:
  """Return means over the run, float[rates, seeds], at `ORDER_RATES`."""
  return np.mean(trained[name][key], axis=-1)[: len(ORDER_RATES)]


def _order_claim(
  trained: Mapping[str, Any], key: str, names: Sequence[str]
) -> Claim:
  """Judge the order of the loss, or of the drift, by K1 or by S."""
  direction: Direction = 'rise' if names is RISING else 'fall'
  sign = 1 if names is RISING else -1
  values = np.stack([_means(trained, name, key) for name in names])
  ordered = sign * np.diff(values, axis=0) > 0
  orders = {
    name: Order(name, (*names,), direction, 'each')
    for name in (f'{key} at rate {rate:g}' for rate in ORDER_RATES)
  }
  what, source = {
    'loss': (
      'Training loss',
      f'{STATED}: more frequent local averages with more participants train '
      'faster',
    ),
    'drift': ('Drift', DERIVED),
  }[key]
  how = 'rises with K1' if names is RISING else 'falls with S'
  fixed = 'S = 4' if names is RISING else 'K1 = 4'
  return Claim(
    text=f'{what} {how} at fixed K2 = {K2} (P = {P}, {fixed}).',
    source=source,
    measured={
      'neighboring pairs in order, seed by seed': number(
        ordered.sum(), f'of {ordered.size}'
      ),
      **{
        quantity: by_case(
          dict(zip(names, own, strict=True)), 'nats' if key == 'loss' else ''
        )
        for quantity, own in zip(orders, values.swapaxes(0, 1), strict=True)
      },
    },
    rule=Rule(
      All((*orders.values(),)), [*orders.values()][-1]._replace(seeds='mean')
    ),
    setting='Means over the run. The loss is measured on the mean model with '
    'training images. K-AVG(32) is Hier-AVG with K1 = 32, or with S = 1.',
    note='An earlier rule compared the means over the seeds only.',
  )


def _law_claim(noise: Sequence[Mapping[str, Any]]) -> Claim:
  errors = {
    f'K1 = {n["k1"]}, S = {n["size"]}': 100
    * np.abs(np.divide(n['measured'], n['law']) - 1).max()
    for n in noise
  }
  error = f'largest error over t = 2 .. {K2}'
  return Claim(
    text='Without gradients, with unit noise, at step t of a round before '
    'averaging: D(t) = ((t - 1) mod K1 + 1)(1 - 1/P) + floor((t - 1)/K1) K1 '
    '(1/S - 1/P).',
    source=DERIVED,
    measured={error: by_case(errors, '%')},
    rule=Rule(every(below(error, 100 * TOLERANCE))),
    setting=f'Mean of {NOISE_ROUNDS} rounds, {len(NOISE_SEEDS)} seeds and '
    f'{DIMENSION} entries.',
  )


def draw(data: Mapping[str, Any], axes: Mapping[str, Axes]) -> None:
  """Draw losses, drift and its law.

  Args:
    data: the results.
    axes: 'loss K1', 'loss S', 'drift K1', 'drift S' and 'law'.
  """
  _draw_orders([axes['loss K1'], axes['loss S']], data, 'loss')
  _draw_orders([axes['drift K1'], axes['drift S']], data, 'drift')
  for name in ('loss K1', 'loss S'):
    axes[name].set_ylabel('training loss, mean over the run, nats')
  for name in ('drift K1', 'drift S'):
    axes[name].set_ylabel('drift (1/P) Σ|xᵢ - x̄|², mean')
    axes[name].set_yscale('log')
  _draw_law(axes['law'], data['noise'])


def _draw_orders(
  axes: Sequence[Axes], data: Mapping[str, Any], key: str
) -> None:
  """Draw a quantity against K1 at S = 4, and against S at K1 = 4."""
  panels = (
    ('K1, at S = 4', RISING, (1, 4, 16, 32)),
    ('S, at K1 = 4', FALLING, (1, 2, 4, 8, 16)),
  )
  rates = styles.variants('hier_avg', data['rates'])
  for axis, (what, names, x) in zip(axes, panels, strict=True):
    for i, (rate, style) in enumerate(rates.items()):
      seen = np.array([_means(data['trained'], n, key)[i] for n in names])
      drawing.spread(axis, x, seen, style, label=f'rate {rate:g}')
    axis.set_xscale('log', base=2)
    axis.set_xticks(x, [str(v) for v in x])
    axis.set_xlabel(what)


def _draw_law(axis: Axes, noise: Sequence[Mapping[str, Any]]) -> None:
  """Draw the drift of noise in a round: K1 by color, S by marker."""
  t = np.arange(2, K2 + 1)
  colors = styles.ordinal(n['k1'] for n in noise)
  sizes = sorted({n['size'] for n in noise})
  for n in noise:
    color, marker = colors[n['k1']], 'osD^'[sizes.index(n['size'])]
    label = f'K1 = {n["k1"]}, S = {n["size"]}'
    axis.plot(t, n['measured'], marker, color=color, ms=4, label=label)
    axis.plot(t, n['law'], color=color, lw=1)
  axis.plot([], [], color='black', lw=1, label='D(t)')
  axis.set_xlabel('step t of a round')
  axis.set_ylabel('drift of noise without gradients')

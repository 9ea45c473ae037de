"""T5: Hier-AVG, the size of its groups and the period of their averages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images, resampling
from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import (
  All,
  Compare,
  Direction,
  Order,
  Ref,
  above,
  at_most,
  below,
  every,
  mostly,
  some,
)
from experiments.papers.quantities import Quantity, by_case, number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target, train
from experiments.running.records import records
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import laws

P, K2 = 16, 32
# K1 and S; K1 = K2 and S = 1 are both K-AVG(K2).
PAIRS = ((1, 4), (4, 4), (16, 4), (4, 2), (4, 8), (4, 16))
K_AVG = (8, 32, 128)
# Of a Hier-AVG with rarer global averages.
RARE_K2 = 128
OURS_NAME, RARE_NAME = 'K1 = 4, S = 4', f'K1 = 4, S = 4, K2 = {RARE_K2}'
RISING = ('K1 = 1, S = 4', 'K1 = 4, S = 4', 'K1 = 16, S = 4', 'K-AVG(32)')
FALLING = (
  'K-AVG(32)',
  'K1 = 4, S = 2',
  'K1 = 4, S = 4',
  'K1 = 4, S = 8',
  'K1 = 4, S = 16',
)
RATES = (0.05, 0.1, 0.2, 0.4)
# The orders are judged at each of them; a method is judged at its best rate.
ORDER_RATES = RATES[:3]
SEEDS = (0, 1, 2, 3)
BATCH_SIZE, HIDDEN, HELD, TESTED = 4, (32,), 512, 2000
# One more than K2, because then every place of a round is observed once.
EVERY = K2 + 1
NUM_STEPS = K2 * EVERY
# Without gradients: entries of x, and rounds.
DIMENSION, NOISE_ROUNDS, NOISE_SEEDS = 64, 40, (0, 1, 2, 3, 4)
TOLERANCE = 0.03
# Loss relative to K-AVG(8) up to which a method is comparable.
COMPARABLE = 1.1

FULL: dict[str, Any] = {
  'dataset': 'cifar10',
  'model': 'resnet18',
  'batch_size': 32,  # ours
  # Recalled, not verified: these and 200 epochs.
  'learning_rate': 0.1,
  'learning_rate_drops': (150.0,),
  'momentum': 0.9,
  'weight_decay': 5e-4,  # ours
  'augment': True,
  'num_epochs': 200.0,
}
FULL_SIZES: tuple[int, ...] = (16, 32)
FULL_S = 4
FULL_K1: tuple[int, ...] = (1, 2, 4, 8, 16)
FULL_K: tuple[int, ...] = (4, 8, 16, 32)

Make = Callable[[jax.Array], pr.base.ReplicaTransformation]


def measure(setting: Setting) -> Outcome:
  """Train with every K1 and S, and with K-AVG."""
  return _cpu(setting) if setting.scale == 'cpu' else _full(setting)


def _methods() -> dict[str, Make]:
  """Return the algorithm of a learning rate, by label."""

  def hier_avg(k1: int, size: int, k2: int = K2) -> Make:
    return lambda rate: pr.hier_avg(
      optax.sgd(rate), local_period=k1, global_period=k2, group_size=size
    )

  def k_avg(period: int) -> Make:
    return lambda rate: pr.k_avg(optax.sgd(rate), period=period)

  return {
    **{f'K1 = {k1}, S = {s}': hier_avg(k1, s) for k1, s in PAIRS},
    RARE_NAME: hier_avg(4, 4, RARE_K2),
    **{f'K-AVG({k})': k_avg(k) for k in K_AVG},
  }


def _cpu(setting: Setting) -> Outcome:
  data = images.load(setting, 'mnist')
  trained = {name: _train(make, *data) for name, make in _methods().items()}
  noise = [_noise(k1, size) for k1, size in PAIRS]
  claims = [
    _order_claim(trained, 'loss', RISING),
    _order_claim(trained, 'loss', FALLING),
    _order_claim(trained, 'drift', RISING),
    _order_claim(trained, 'drift', FALLING),
    _law_claim(noise),
    *_k_avg_claims(trained),
  ]
  shown = {'rates': ORDER_RATES, 'trained': trained, 'noise': noise}
  return Outcome(claims, shown, SEEDS)


def _train(
  make: Make, examples: images.Examples, test: images.Examples
) -> dict[str, Any]:
  """Return loss and test accuracy of the mean, and the drift.

  They are lists [rates][seeds][T / EVERY].
  """
  network = images.Network(HIDDEN)
  held, unseen = examples.rows(slice(HELD)), test.rows(slice(TESTED))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return network.loss(params, examples.draw(key, BATCH_SIZE))

  def observe(params: Any) -> Any:
    mean = images.mean_of(params)
    return {
      'loss': network.loss(mean, held),
      'drift': drift(params),
      'accuracy': network.accuracy(mean, unseen),
    }

  found = simulate(
    make,
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(examples),
    num_replicas=P,
    num_steps=NUM_STEPS,
    observe=observe,
    every=EVERY,
  )
  return {name: values.tolist() for name, values in found.items()}


def drift(params: Any) -> jax.Array:
  """Return (1/P) sum_i |x_i - xbar|^2 of leaves [P, ...]."""
  return sum(
    jnp.square(x - x.mean(axis=0)).sum() / x.shape[0]
    for x in jax.tree.leaves(params)
  )


def _noise(k1: int, size: int) -> dict[str, Any]:
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
    name: Order(name, (*names,), direction)
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
    rule=Rule(All((*orders.values(),)), [*orders.values()][-1]),
    setting='Means over the run. The loss is measured on the mean model with '
    'training images. K-AVG(32) is Hier-AVG with K1 = 32, or with S = 1.',
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


def _k_avg_claims(trained: Mapping[str, Any]) -> list[Claim]:
  """Judge Hier-AVG against K-AVG, each at its best rate."""

  def last(name: str, key: str) -> np.ndarray:
    values = np.array(trained[name][key])
    return values[..., -values.shape[-1] // 4 :].mean(-1)

  best = {n: int(last(n, 'loss').mean(axis=1).argmin()) for n in trained}
  losses = {n: last(n, 'loss')[best[n]] for n in trained}
  accuracies = {n: 100 * last(n, 'accuracy')[best[n]] for n in trained}
  ours, equal, often = OURS_NAME, 'K-AVG(32)', 'K-AVG(8)'
  rounds = {n: NUM_STEPS // _global_period(n) for n in trained}
  edges = [
    n for n in (ours, RARE_NAME, equal, often) if best[n] in (0, len(RATES) - 1)
  ]
  setting = (
    f'Means over the last quarter of {NUM_STEPS} steps, each method at the '
    f'learning rate of {", ".join(map(str, RATES))} with its lowest training '
    f'loss. Test accuracy on {TESTED} images.'
    + (f' At the edge of the rates: {"; ".join(edges)}.' if edges else '')
  )

  def measured(one: str, other: str) -> dict[str, Quantity]:
    names = (one, other)
    chance = resampling.in_order(losses[one], losses[other])
    higher = resampling.in_order(accuracies[other], accuracies[one])
    return {
      'pairs of seeds in which its loss is lower': number(chance),
      'pairs of seeds in which its accuracy is higher': number(higher),
      'loss': by_case({n: losses[n] for n in names}, 'nats'),
      'test accuracy': by_case({n: accuracies[n] for n in names}, '%'),
      'learning rate': by_case({n: RATES[best[n]] for n in names}),
      'global rounds': by_case({n: rounds[n] for n in names}),
    }

  def lower(one: str, other: str) -> Compare:
    return below(Ref('loss', one), Ref('loss', other))

  ratio = 'loss relative to K-AVG(8)'
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
        ratio: number(losses[ours] / losses[often].mean()),
        **measured(ours, often),
      },
      rule=Rule(at_most(ratio, COMPARABLE), at_most(ratio, COMPARABLE**2)),
      setting=setting,
    ),
    Claim(
      text='Hier-AVG has a better test accuracy than K-AVG with fewer global '
      'reductions.',
      source=f'{STATED}: often',
      measured=measured(ours, often),
      rule=Rule(mostly(better), better),
      setting=setting,
    ),
    Claim(
      text='Less frequent global averages train faster.',
      source=f'{STATED}: sometimes',
      measured=measured(RARE_NAME, ours),
      rule=Rule(mostly(lower(RARE_NAME, ours)), lower(RARE_NAME, ours)),
      setting=setting,
    ),
  ]


def _global_period(name: str) -> int:
  if name == RARE_NAME:
    return RARE_K2
  return int(name[6:-1]) if name.startswith('K-AVG') else K2


def _full(setting: Setting) -> Outcome:
  """Train the paper's networks; in a test, an MLP for two steps."""
  fields: dict[str, Any] = {**FULL, 'log_every': 49, 'eval_every': 490}
  sizes, group = FULL_SIZES, FULL_S
  k1s, ks = FULL_K1, FULL_K
  if setting.scale == 'test':
    fields |= {'dataset': 'digits', 'model': 'mlp', 'batch_size': 2}
    fields |= {'num_steps': 2, 'log_every': 1, 'eval_every': 2}
    sizes, group, k1s, ks = (4,), 2, (4,), (32,)
  fields['checkpoint_every'] = fields['eval_every']
  curves: dict[str, dict[str, list[records.Record]]] = {}
  for p in sizes:
    hier = {
      f'K1 = {k1}': (
        'hier_avg',
        {'local_period': k1, 'global_period': K2, 'group_size': group},
      )
      for k1 in k1s
    }
    k_avg = {f'K-AVG({k})': ('k_avg', {'period': k}) for k in ks}
    curves[str(p)] = {
      label: train(
        setting, algorithm, options, **fields, num_replicas=p, seed=0
      )
      for label, (algorithm, options) in {**hier, **k_avg}.items()
    }
  claims = [_full_claim(p, own, group) for p, own in curves.items()]
  return Outcome(claims, {'curves': curves}, (0,))


def _full_claim(
  p: str, curves: Mapping[str, list[records.Record]], group: int
) -> Claim:
  ends = {name: history[-1] for name, history in curves.items()}
  own = [name for name in ends if not name.startswith('K-AVG')]
  accuracy = 'test accuracy'
  better = above(accuracy, Ref(accuracy, f'K-AVG({K2})'))
  return Claim(
    text='Hier-AVG often has a better test accuracy than K-AVG with fewer '
    f'global reductions (P = {p}, S = {group}, K2 = {K2}).',
    source=STATED,
    measured={
      accuracy: by_case(
        {name: 100 * end['test_accuracy'] for name, end in ends.items()}, '%'
      ),
      'sent by one replica': by_case(
        {name: end['bytes_sent'] for name, end in ends.items()}, 'bytes'
      ),
      'modeled time': by_case(
        {name: end['modeled_seconds'] for name, end in ends.items()}, 's'
      ),
    },
    rule=Rule(every(better, own), some(better, own)),
    setting=f'K-AVG({K2}) has as many global rounds. One seed.',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw losses, drift and its law; at full scale, error against cost."""
  if 'curves' in data:
    _draw_full(data['curves'], figure)
    return
  figure.set_size_inches(drawing.WIDTH, 6.5)
  axes = figure.subplot_mosaic(
    [['loss K1', 'loss S', 'law'], ['drift K1', 'drift S', 'law']]
  )
  _draw_orders([axes['loss K1'], axes['loss S']], data, 'loss')
  _draw_orders([axes['drift K1'], axes['drift S']], data, 'drift')
  for name in ('loss K1', 'loss S'):
    axes[name].set_ylabel('training loss, mean over the run, nats')
  for name in ('drift K1', 'drift S'):
    axes[name].set_ylabel('drift (1/P) Σ|xᵢ - x̄|², mean')
    axes[name].set_yscale('log')
  _draw_law(axes['law'], data['noise'])
  drawing.legend_below(figure)


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


def _draw_full(
  curves: Mapping[str, Mapping[str, list[records.Record]]], figure: Figure
) -> None:
  *panels, last = figure.subplots(1, len(curves) + 1, squeeze=False)[0]
  for i, (axis, (p, own)) in enumerate(
    zip(panels, curves.items(), strict=True)
  ):
    looks = styles.looks(
      {n: 'k_avg' if n.startswith('K-AVG') else 'hier_avg' for n in own}
    )
    for name, history in own.items():
      kept = [r for r in history if 'test_accuracy' in r]
      error = drawing.error_percent([r['test_accuracy'] for r in kept])
      time = [r['modeled_seconds'] for r in kept]
      drawing.curve(axis, time, error, looks[name], label=name)
      last.plot(
        kept[-1]['bytes_sent'] / 1e6,
        error[-1],
        looks[name].marker,
        color=looks[name].color,
        fillstyle='none' if i else 'full',
      )
    axis.set_title(f'P = {p}')
    axis.set_xlabel('modeled time, s')
  last.set_title(f'at the end; hollow: P = {list(curves)[-1]}')
  last.set_xlabel('MB sent by one replica, groups included')
  drawing.log(last, 'x')
  for axis in (*panels, last):
    drawing.log(axis, 'y')
    axis.set_ylabel('test error of the average, %')
  drawing.legend_below(figure)


TARGET = Target(
  name='t05_hier_avg',
  title='Hier-AVG: period and size of the groups',
  paper='Zhou, Cong 2019 (arXiv 1903.05133); Zhou, Cong 2018 (arXiv '
  '1708.01012); on the CPU an MLP of 32 on MNIST at 14 x 14 pixels, batches '
  'of 4',
  measure=measure,
  draw=draw,
  scales=('cpu', 'full'),
)

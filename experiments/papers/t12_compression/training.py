"""The savings of compressors in training, at equal bytes and equal steps."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers import images, resampling
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  Ref,
  above,
  below,
  every,
  mostly,
  some,
)
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t12_compression import resnet
from experiments.papers.target import Setting
from experiments.tools import drawing, styles
import prsgd_jax as pr

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 8, (32,)
EVERY = 10
SEEDS = (0, 1, 2, 3, 4)
# Each rate is twice the one before; every method has the best of its own. They
# fall linearly to 0 in a run, because the steps of signs do not shrink alone.
RATES = tuple(2.0**k for k in range(-3, 4))
SIGN_RATES = tuple(2.0**k for k in range(-10, -3))
# Steps of SSGD whose bytes are the budget of every method.
BUDGET_STEPS = 100
SSGD = 'SSGD'

SIGN = 'signSGD, majority'

Make = Callable[[optax.GradientTransformation], pr.base.ReplicaTransformation]
METHODS: dict[str, Make] = {
  SSGD: pr.ssgd,
  'QSGD, s = 7': lambda tx: pr.qsgd(tx, levels=7),
  'TernGrad': pr.terngrad,
  SIGN: pr.sign_sgd,
  'top 5 %, error feedback': lambda tx: pr.error_feedback_sgd(
    tx, compressor=pr.codecs.top_k(0.05)
  ),
}

# Method -> algorithm, which has the color and the marker.
ALGORITHMS = {
  name: algorithm for name, (algorithm, _) in resnet.METHODS.items()
}


def measure(setting: Setting) -> tuple[dict[str, Any], list[Claim]]:
  """Train with each compressor for equal bytes; return data and claims."""
  train, test = images.load(setting, 'digits')
  sizes = {name: _bytes_per_step(make, train) for name, make in METHODS.items()}
  budget = sizes[SSGD] * BUDGET_STEPS
  chosen, equal = {}, {}
  for name, make in METHODS.items():
    num_steps = int(budget / sizes[name]) // EVERY * EVERY
    run = functools.partial(_train, make, rates_of(name), train, test)
    trained = run(num_steps)
    chosen[name] = {'bytes_per_step': sizes[name], **_best(name, trained)}
    # Another run, because the rate falls over the length of a run.
    if num_steps != BUDGET_STEPS:
      trained = run(BUDGET_STEPS)
    equal[name] = _best(name, trained)
  data = {'budget': budget, 'chosen': chosen}
  return data, [bytes_claim(chosen, budget), steps_claim(equal)]


def rates_of(name: str) -> tuple[float, ...]:
  """Return the learning rates that are tried for a method."""
  return SIGN_RATES if name == SIGN else RATES


def _bytes_per_step(make: Make, train: images.Examples) -> float:
  """Return the bytes that one replica sends in a step."""
  key = jax.random.key(0, impl='threefry2x32')
  params = jax.eval_shape(images.Network(HIDDEN).start(train), key)
  shapes = pr.base.Replica(params, params)
  spent = pr.ledger.account(make(optax.sgd(0.1)), shapes, NUM_REPLICAS, 1)
  return float(spent.bytes_sent[-1])


def _train(
  make: Make,
  rates: Sequence[float],
  train: images.Examples,
  test: images.Examples,
  num_steps: int,
) -> dict[str, np.ndarray]:
  """Train; return loss and accuracy, [rates, seeds, T / EVERY]."""
  network = images.Network(HIDDEN)
  everything, held = train.rows(slice(None)), test.rows(slice(None))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return network.loss(params, train.draw(key, BATCH_SIZE))

  def observe(params: Any) -> Any:
    # Replica 0 only, because all replicas are equal.
    x = jax.tree.map(lambda leaf: leaf[0], params)
    return network.loss(x, everything), network.accuracy(x, held)

  loss, accuracy = simulate(
    lambda rate: make(optax.sgd(lambda step: rate * (1 - step / num_steps))),
    rates,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=NUM_REPLICAS,
    num_steps=num_steps,
    observe=observe,
    every=EVERY,
  )
  # A finite number, because the losses are averaged and JSON has no NaN.
  loss = np.nan_to_num(loss, nan=1e9, posinf=1e9)
  return {'loss': loss, 'accuracy': accuracy}


def _best(name: str, trained: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Return the runs at the rate with the lowest final training loss."""
  best = int(trained['loss'][:, :, -1].mean(axis=1).argmin())
  rates = rates_of(name)
  return {
    'steps': trained['loss'].shape[-1] * EVERY,
    'rate': rates[best],
    'at_edge': best in (0, len(rates) - 1),
    'loss': trained['loss'][best].tolist(),
    'accuracy': trained['accuracy'][best].tolist(),
  }


def _setting(of: str, chosen: Mapping[str, Any]) -> str:
  edges = [name for name, own in chosen.items() if own['at_edge']]
  return (
    f'{of} Each method has the best learning rate of {RATES[0]:g}, twice it '
    f'... {RATES[-1]:g} for its training loss, signSGD of '
    f'{SIGN_RATES[0]:.2g} to {SIGN_RATES[-1]:.2g}; it falls linearly to 0. MLP '
    f'of {HIDDEN[0]} on the digits, N = {NUM_REPLICAS}, batches of '
    f'{BATCH_SIZE}.'
    + (f' At the edge of its rates: {"; ".join(edges)}.' if edges else '')
  )


def bytes_claim(chosen: Mapping[str, Any], budget: float) -> Claim:
  """Judge the methods at equal bytes."""
  loss, accuracy = 'training loss', 'test accuracy'
  others = [name for name in chosen if name != SSGD]
  lower = below(loss, Ref(loss, SSGD))
  ends = {n: [c[-1] for c in own['loss']] for n, own in chosen.items()}
  return Claim(
    text='At equal bytes, compressed gradients train further.',
    source=f'{STATED}: they save communication; without numbers',
    measured={
      loss: by_case(ends, 'nats'),
      'pairs of seeds in which it is lower than SSGD': by_case(
        {n: resampling.in_order(ends[n], ends[SSGD]) for n in others}
      ),
      accuracy: by_case(
        {
          n: [100 * c[-1] for c in own['accuracy']] for n, own in chosen.items()
        },
        '%',
      ),
      'steps': by_case({n: own['steps'] for n, own in chosen.items()}),
      'learning rate': by_case({n: own['rate'] for n, own in chosen.items()}),
    },
    rule=Rule(every(mostly(lower), others), some(mostly(lower), others)),
    setting=_setting(f'{budget / 1e6:.2f} MB sent by each replica.', chosen),
    note='An earlier run had constant rates, at which signSGD did not gain.',
  )


def steps_claim(equal: Mapping[str, Any]) -> Claim:
  """Judge the methods at equal steps."""
  loss = 'training loss'
  others = [name for name in equal if name != SSGD]
  higher = above(loss, Ref(loss, SSGD))
  ends = {n: [c[-1] for c in own['loss']] for n, own in equal.items()}
  return Claim(
    text='At equal steps, compressed gradients lose by their noise or bias.',
    source=f'{OURS}: equal bytes and equal steps must differ',
    measured={
      loss: by_case(ends, 'nats'),
      'pairs of seeds in which it is higher than SSGD': by_case(
        {n: resampling.in_order(ends[SSGD], ends[n]) for n in others}
      ),
      'learning rate': by_case({n: own['rate'] for n, own in equal.items()}),
    },
    rule=Rule(every(mostly(higher), others), some(mostly(higher), others)),
    setting=_setting(f'After {BUDGET_STEPS} steps.', equal),
    note=_note(ends),
  )


def _note(ends: Mapping[str, Sequence[float]]) -> str:
  """Return which methods have a lower loss than SSGD, and what that means."""
  lower = [n for n, own in ends.items() if np.mean(own) < np.mean(ends[SSGD])]
  if not lower:
    return ''
  return (
    f'{"; ".join(lower)}: below SSGD, whose rate is the best one of the same '
    f'grid. Neighboring rates differ by a factor of two, and {BUDGET_STEPS} '
    'steps are too few for SSGD to converge, so it is not at its best. Whether '
    'the order holds in a longer run was not tested.'
  )


def draw(data: Mapping[str, Any], axes: Sequence[Axes]) -> None:
  """Draw training loss and test error against bytes."""
  panels = (
    ('loss', 'training loss, nats'),
    ('accuracy', 'test error, %'),
  )
  for axis, (key, title) in zip(axes, panels, strict=True):
    for name, own in data['chosen'].items():
      values = np.array(own[key])
      if key == 'accuracy':
        values = drawing.error_percent(values)
      steps = EVERY * np.arange(1, values.shape[1] + 1)
      sent = steps * own['bytes_per_step'] / 1e6
      label = f'{name}, rate {own["rate"]:.2g}'
      style = styles.method(ALGORITHMS[name])
      drawing.seeds(axis, sent, values, style, label=label)
    axis.set_xlim(0, data['budget'] / 1e6)
    axis.set_xlabel('MB sent by each replica')
    axis.set_ylabel(title)
    drawing.log(axis, 'y')

"""The savings of compressors in training, at equal bytes and equal steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  above,
  below,
  every,
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
SEEDS = (0, 1, 2)
# Each rate is twice the one before; every method has the best of them.
RATES = tuple(2.0**k for k in range(-9, 2))
# Steps of SSGD whose bytes are the budget of every method.
BUDGET_STEPS = 100
SSGD = 'SSGD'

Make = Callable[[jax.Array], pr.base.ReplicaTransformation]
METHODS: dict[str, Make] = {
  SSGD: lambda rate: pr.ssgd(optax.sgd(rate)),
  'QSGD, s = 7': lambda rate: pr.qsgd(optax.sgd(rate), levels=7),
  'TernGrad': lambda rate: pr.terngrad(optax.sgd(rate)),
  'signSGD, majority': lambda rate: pr.sign_sgd(optax.sgd(rate)),
  'top 5 %, error feedback': lambda rate: pr.error_feedback_sgd(
    optax.sgd(rate), compressor=pr.codecs.top_k(0.05)
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
  trained = {
    name: _train(make, train, test, int(budget / sizes[name]) // EVERY * EVERY)
    for name, make in METHODS.items()
  }
  chosen = {
    name: {'bytes_per_step': sizes[name], **_best(own)}
    for name, own in trained.items()
  }
  data = {'rates': RATES, 'budget': budget, 'chosen': chosen}
  return data, _claims(trained, chosen, budget)


def _bytes_per_step(make: Make, train: images.Examples) -> float:
  """Return the bytes that one replica sends in a step."""
  key = jax.random.key(0, impl='threefry2x32')
  params = jax.eval_shape(images.Network(HIDDEN).start(train), key)
  shapes = pr.base.Replica(params, params)
  spent = pr.ledger.account(make(jnp.asarray(0.1)), shapes, NUM_REPLICAS, 1)
  return float(spent.bytes_sent[-1])


def _train(
  make: Make, train: images.Examples, test: images.Examples, num_steps: int
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
    make,
    RATES,
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


def _best(trained: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Return the runs at the rate with the lowest final training loss."""
  best = int(trained['loss'][:, :, -1].mean(axis=1).argmin())
  return {
    'steps': trained['loss'].shape[-1] * EVERY,
    'rate': best,
    'loss': trained['loss'][best].tolist(),
    'accuracy': trained['accuracy'][best].tolist(),
  }


def _claims(
  trained: Mapping[str, Mapping[str, np.ndarray]],
  chosen: Mapping[str, Any],
  budget: float,
) -> list[Claim]:
  equal = {
    name: own['loss'][:, :, BUDGET_STEPS // EVERY - 1].mean(axis=1).min()
    for name, own in trained.items()
  }
  ratios = {name: equal[name] / equal[SSGD] for name in equal if name != SSGD}
  return [bytes_claim(chosen, budget), steps_claim(ratios)]


def _setting(of: str) -> str:
  return (
    f'{of} Each method has the best learning rate of {RATES[0]:.2g}, twice it '
    f'... {RATES[-1]:g} for its training loss. MLP of {HIDDEN[0]} on the '
    f'digits, N = {NUM_REPLICAS}, batches of {BATCH_SIZE}.'
  )


def bytes_claim(chosen: Mapping[str, Any], budget: float) -> Claim:
  """Judge the methods at equal bytes."""
  loss, accuracy = 'training loss', 'test accuracy'
  others = [name for name in chosen if name != SSGD]
  better = All(
    (below(loss, Ref(loss, SSGD)), above(accuracy, Ref(accuracy, SSGD)))
  )
  return Claim(
    text='At equal bytes, compressed gradients train further.',
    source=f'{STATED}: they save communication; without numbers',
    measured={
      loss: by_case(
        {n: [c[-1] for c in own['loss']] for n, own in chosen.items()}, 'nats'
      ),
      accuracy: by_case(
        {
          n: [100 * c[-1] for c in own['accuracy']] for n, own in chosen.items()
        },
        '%',
      ),
      'steps': by_case({n: own['steps'] for n, own in chosen.items()}),
      'learning rate': by_case(
        {n: RATES[own['rate']] for n, own in chosen.items()}
      ),
    },
    rule=Rule(every(better, others), some(better, others)),
    setting=_setting(f'{budget / 1e6:.2f} MB sent by each replica.'),
  )


def steps_claim(ratios: Mapping[str, float]) -> Claim:
  """Judge the methods at equal steps.

  Args:
    ratios: method -> training loss over the training loss of SSGD.
  """
  loss = 'training loss over that of SSGD'
  return Claim(
    text='At equal steps, compressed gradients lose by their noise or bias.',
    source=f'{OURS}: equal bytes and equal steps must differ',
    measured={loss: by_case(ratios)},
    rule=Rule(every(above(loss, 1)), some(above(loss, 1))),
    setting=_setting(f'After {BUDGET_STEPS} steps.'),
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
      label = f'{name}, rate {data["rates"][own["rate"]]:.2g}'
      style = styles.method(ALGORITHMS[name])
      drawing.seeds(axis, sent, values, style, label=label)
    axis.set_xlim(0, data['budget'] / 1e6)
    axis.set_xlabel('MB sent by each replica')
    axis.set_ylabel(title)
    drawing.log(axis, 'y')

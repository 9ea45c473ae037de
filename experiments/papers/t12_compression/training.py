"""What compressors save in training, at equal bytes and at equal steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers import images
from experiments.papers.simulation import simulate
from experiments.papers.t12_compression import resnet
from experiments.papers.target import Claim, Setting, verdict
from experiments.tools import drawing, styles
import prsgd_jax as pr

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 8, (32,)
EVERY = 10
SEEDS = (0, 1, 2)
# Each twice the one before, of all methods.
RATES = tuple(2.0**k for k in range(-9, 2))
# Steps of SSGD that cost as many bytes as are given to each of them.
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

# Of each method: its color and marker are those of the algorithm.
ALGORITHMS = {
  name: algorithm for name, (algorithm, _) in resnet.METHODS.items()
}


def measure(setting: Setting) -> tuple[dict[str, Any], list[Claim]]:
  """Trains with each compressor for as many bytes; the data and the claims."""
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
  """What one replica sends."""
  key = jax.random.key(0, impl='threefry2x32')
  params = jax.eval_shape(images.Network(HIDDEN).start(train), key)
  shapes = pr.base.Replica(params, params)
  spent = pr.ledger.account(make(jnp.asarray(0.1)), shapes, NUM_REPLICAS, 1)
  return float(spent.bytes_sent[-1])


def _train(
  make: Make, train: images.Examples, test: images.Examples, num_steps: int
) -> dict[str, np.ndarray]:
  """Loss and accuracy along the runs, [rates, seeds, T / EVERY]."""
  network = images.Network(HIDDEN)
  everything, held = train.rows(slice(None)), test.rows(slice(None))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return network.loss(params, train.draw(key, BATCH_SIZE))

  def observe(params: Any) -> Any:
    # All replicas are the same.
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
  # Of a run that diverged the loss is as large as a float can say.
  loss = np.nan_to_num(loss, nan=1e9, posinf=1e9)
  return {'loss': loss, 'accuracy': accuracy}


def _best(trained: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The runs at the learning rate with the least training loss at the end."""
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
  losses = {name: np.array(own['loss'])[:, -1] for name, own in chosen.items()}
  found = {
    name: 100 * np.array(own['accuracy'])[:, -1] for name, own in chosen.items()
  }
  shown = '; '.join(
    f'{name} {chosen[name]["steps"]} steps, loss {losses[name].mean():.4f} (± '
    f'{np.ptp(losses[name]) / 2:.4f}), accuracy {found[name].mean():.1f} % (± '
    f'{np.ptp(found[name]) / 2:.1f}), rate {RATES[chosen[name]["rate"]]:.2g}'
    for name in chosen
  )
  gains = [
    losses[SSGD].mean() / losses[name].mean() for name in losses if name != SSGD
  ]
  better = [
    found[name].mean() - found[SSGD].mean() for name in found if name != SSGD
  ]
  equal = {
    name: own['loss'][:, :, BUDGET_STEPS // EVERY - 1].mean(axis=1).min()
    for name, own in trained.items()
  }
  ratios = {name: equal[name] / equal[SSGD] for name in equal if name != SSGD}
  rule = (
    f'each at the best learning rate of {RATES[0]:.2g}, twice it ... '
    f'{RATES[-1]:g} for its training loss; MLP of {HIDDEN[0]} on the digits, '
    f'N = {NUM_REPLICAS}, batches of {BATCH_SIZE}'
  )
  return [
    Claim(
      says='at equal bytes compressed gradients train further (as such: they '
      'save communication; no numbers of the papers)',
      measured=f'{budget / 1e6:.2f} MB sent by each replica: {shown}',
      reproduced=verdict(
        min(gains) > 1 and min(better) > 0, max(gains) > 1 and max(better) > 0
      ),
      tried='lower training loss and higher test accuracy than SSGD for every '
      f'method (partly: for one); {rule}',
    ),
    Claim(
      says='at equal steps they lose something by their noise or bias (ours: '
      'the check that equal bytes and equal steps are not the same)',
      measured=f'training loss over that of SSGD after {BUDGET_STEPS} steps: '
      + ', '.join(f'{name} {r:.2f}' for name, r in ratios.items()),
      reproduced=verdict(min(ratios.values()) > 1, max(ratios.values()) > 1),
      tried='above 1 for every method (partly: for one), which is then at its '
      f'best rate for so many steps; {rule}',
    ),
  ]


def draw(data: Mapping[str, Any], axes: Sequence[Axes]) -> None:
  """Training loss and test error against bytes."""
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

"""T13: PR-SGD and K-AVG on a recurrent network."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.reproduce import speed
from experiments.reproduce.simulation import simulate
from experiments.reproduce.target import (
  Claim,
  Outcome,
  Setting,
  Target,
  verdict,
)
import prsgd_jax as pr
from prsgd_jax import augmentation, classification, models
from prsgd_jax.datasets import load_dataset

SEEDS = (0, 1, 2)
MODERATE = (4, 16)
PERIODS = (1, *MODERATE, 64)
# More steps than K-AVG with K = 1, at most, to be called flat.
FLAT = 1.25

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 16, 32
RATE, MOMENTUM = 0.2, 0.9
NUM_STEPS, EVERY = 384, 16
NUM_TRAIN, NUM_LOOKED_AT = 8192, 1024


def measure(setting: Setting) -> Outcome:
  """Trains an LSTM over the rows of MNIST with every period."""
  mnist = load_dataset('mnist', setting.data_dir)
  statistics = augmentation.channel_statistics(mnist.train['image'][:NUM_TRAIN])

  def batch(split: Mapping[str, np.ndarray], size: int) -> dict[str, jax.Array]:
    images = jnp.asarray(split['image'][:size])
    return {
      'image': augmentation.normalise(images, *statistics),
      'label': jnp.asarray(split['label'][:size]),
    }

  examples = batch(mnist.train, NUM_TRAIN)
  seen = batch(mnist.train, NUM_LOOKED_AT)
  unseen = batch(mnist.test, NUM_LOOKED_AT)
  task = classification.classifier(
    models.LSTMClassifier(mnist.num_classes, hidden=HIDDEN)
  )

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    row = jax.random.randint(key, (BATCH_SIZE,), 0, NUM_TRAIN)
    drawn = jax.tree.map(lambda x: x[row], examples)
    return task.loss_fn(params, {}, drawn, key)[0]

  def observe(params: Any) -> dict[str, jax.Array]:
    average = jax.tree.map(lambda x: x.mean(axis=0), params)
    return {
      'loss': task.eval_fn(average, {}, seen)['loss'].mean(),
      'accuracy': task.eval_fn(average, {}, unseen)['accuracy'].mean(),
    }

  curves = {}
  for name, make in (('PR-SGD', pr_sgd), ('K-AVG', k_avg)):
    found = simulate(
      make,
      PERIODS,
      SEEDS,
      loss_fn=loss_fn,
      start=lambda key: task.init(key, {'image': seen['image'][:1]})[0],
      num_replicas=NUM_REPLICAS,
      num_steps=NUM_STEPS,
      observe=observe,
      every=EVERY,
    )
    curves[name] = jax.tree.map(np.ndarray.tolist, found)
  data = {'curves': curves, 'periods': PERIODS, 'every': EVERY}
  return Outcome([_claim(name, curves) for name in curves], data, SEEDS)


# The chains of `pr.pr_sgd` and `pr.k_avg`, with the period a number that the
# compiled program is given: one program for all periods.


def pr_sgd(period: jax.Array) -> pr.ReplicaTransformation:
  """Order A: the gradient is of the point before the average."""
  return pr.chain(
    pr.gradient(), pr.sync(pr.mean(), when=_every(period)), _local_update()
  )


def k_avg(period: jax.Array) -> pr.ReplicaTransformation:
  """Order C: the average is of what the steps have made."""
  return pr.chain(
    pr.gradient(), _local_update(), pr.sync(pr.mean(), when=_every(period))
  )


def _local_update() -> pr.ReplicaTransformation:
  return pr.local_update(optax.sgd(RATE, momentum=MOMENTUM))


def _every(period: jax.Array) -> Callable[[Any], Any]:
  return lambda step: (step + 1) % period == 0


def _claim(name: str, curves: Mapping[str, Any]) -> Claim:
  """Whether the steps to a loss hardly depend on the period."""
  steps = EVERY * np.arange(1, NUM_STEPS // EVERY + 1)
  synchronous = np.array(curves['K-AVG']['loss'])[0]
  losses = np.array(curves[name]['loss'])
  taken: dict[int, np.ndarray] = {}
  for period, runs in zip(PERIODS, losses, strict=True):
    pairs = [(s, r, speed.target_loss(s)) for s, r in zip(synchronous, runs)]
    ratios = [
      speed.when_reached(steps, r, t) / speed.when_reached(steps, s, t)
      for s, r, t in pairs
    ]
    taken[period] = np.array(ratios)
  flat = [bool(taken[period].mean() <= FLAT) for period in MODERATE]
  told = ', '.join(f'{p} {speed.spread(v, ".2f")}' for p, v in taken.items())
  ends = ', '.join(
    f'{p} {speed.spread(v, ".4f")}'
    for p, v in zip(PERIODS, losses[:, :, -1], strict=True)
  )
  accuracy = np.array(curves[name]['accuracy'])[:, :, -1]
  tests = ', '.join(
    f'{p} {speed.spread(v, ".1%")}'
    for p, v in zip(PERIODS, accuracy, strict=True)
  )
  return Claim(
    f'{name} trains recurrent networks as well, with an average every few '
    'steps (the speech and language side of the papers; no number of theirs)',
    f'steps to the same training loss, in those of SSGD, by period: {told}; '
    f'loss at the end: {ends}; test accuracy: {tests}',
    verdict(all(flat), any(flat)),
    f'yes if at most {FLAT} for the periods {MODERATE}, partly if for one. The '
    f'loss is the least of SSGD (K = 1) after {speed.SHARE:.0%} of '
    f'{NUM_STEPS} steps. LSTM with {HIDDEN} units over the rows of {NUM_TRAIN} '
    f'images of MNIST, {NUM_REPLICAS} x {BATCH_SIZE} drawn with replacement, '
    f'rate {RATE} and momentum {MOMENTUM} for all',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Training loss against steps and against rounds of communication."""
  figure.set_size_inches(11, 6.5)
  axes = figure.subplots(2, 2, sharey=True)
  for row, (name, found) in zip(axes, data['curves'].items(), strict=True):
    for period, runs in zip(data['periods'], found['loss'], strict=True):
      losses = np.array(runs)
      steps = data['every'] * np.arange(1, losses.shape[1] + 1)
      for axis, x in zip(row, (steps, steps / period), strict=True):
        (line,) = axis.plot(x, losses.mean(axis=0), label=f'{period}')
        low, high = losses.min(axis=0), losses.max(axis=0)
        axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
    row[0].set_ylabel(f'{name}: training loss\nof the average, nats')
    row[0].set_xlabel('steps')
    row[1].set_xlabel('rounds of communication')
    row[1].set_xscale('log')
    for axis in row:
      axis.set_yscale('log')
      axis.grid(alpha=0.3)
    row[0].legend(title='period', fontsize='small')


TARGET = Target(
  name='t13_sequences',
  title='PR-SGD and K-AVG on an LSTM over the rows of images',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629); Zhou, Cong 2018 (arXiv '
  '1708.01012); their applications to speech and language',
  measure=measure,
  draw=draw,
)

"""T13: PR-SGD and K-AVG on a recurrent network."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import classifying, speed
from experiments.papers.claims import Claim
from experiments.papers.conditions import at_most, every, some
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data.datasets import load_dataset

SEEDS = (0,)
MODERATE = (4, 16)
PERIODS = (1, *MODERATE, 64)
METHODS = {'PR-SGD': pr.pr_sgd, 'K-AVG': pr.k_avg}
# Steps relative to K-AVG with K = 1 up to which the loss hardly depends on K.
FLAT = 1.25

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 16, 32
MOMENTUM = 0.9
# Learning rate -> steps. The lower rate has more because the drift is the rate
# times the period.
RATES = {0.2: 384, 0.05: 768}
EVERY = 16
NUM_TRAIN, NUM_OBSERVED = 8192, 1024


def measure(setting: Setting) -> Outcome:
  """Train an LSTM over the rows of MNIST with every period."""
  mnist = load_dataset('mnist', setting.data_dir)
  problem = classifying.problem(
    models.LSTMClassifier(mnist.num_classes, hidden=HIDDEN),
    mnist,
    batch_size=BATCH_SIZE,
    num_train=NUM_TRAIN,
    num_observed=NUM_OBSERVED,
  )
  curves: dict[str, Any] = {str(rate): {} for rate in RATES}
  for rate, num_steps in RATES.items():
    tx = optax.sgd(rate, momentum=MOMENTUM)
    for name, algorithm in METHODS.items():
      found = simulate(
        functools.partial(_of_period, algorithm, tx),
        PERIODS,
        SEEDS,
        loss_fn=problem.loss_fn,
        start=problem.start,
        num_replicas=NUM_REPLICAS,
        num_steps=num_steps,
        observe=problem.observe,
        every=EVERY,
      )
      curves[str(rate)][name] = jax.tree.map(np.ndarray.tolist, found)
  data = {'curves': curves, 'periods': PERIODS, 'every': EVERY}
  claims = [
    _claim(rate, name, curves[str(rate)]) for rate in RATES for name in METHODS
  ]
  return Outcome(claims, data, SEEDS)


def _of_period(
  algorithm: Callable[..., pr.base.ReplicaTransformation],
  tx: optax.GradientTransformation,
  period: jax.Array,
) -> pr.base.ReplicaTransformation:
  return algorithm(tx, period=classifying.every(period))


def _claim(rate: float, name: str, curves: Mapping[str, Any]) -> Claim:
  """Judge whether the steps to a loss hardly depend on the period."""
  steps = EVERY * np.arange(1, RATES[rate] // EVERY + 1)
  losses = np.array(curves[name]['loss'])  # [periods, seeds, points]
  taken = np.zeros(losses.shape[:2])
  for i, synchronous in enumerate(np.array(curves['K-AVG']['loss'])[0]):
    least = speed.target_loss(synchronous)
    unit = speed.when_reached(steps, synchronous, least)
    for k in range(len(PERIODS)):
      taken[k, i] = speed.when_reached(steps, losses[k, i], least) / unit
  accuracy = 100 * np.array(curves[name]['test_accuracy'])
  relative = 'steps relative to SSGD'
  moderate = [_case(period) for period in MODERATE]
  flat = at_most(relative, FLAT)
  tried = ' and '.join(f'{r} for {n} steps' for r, n in RATES.items())
  return Claim(
    text=f'{name} trains recurrent networks as well, with an average every few '
    f'steps (rate {rate}).',
    source='the speech and language experiments of the papers, without numbers',
    measured={
      relative: _by_period(taken),
      'final loss of the average': _by_period(losses[:, :, -1], 'nats'),
      'test accuracy': _by_period(accuracy[:, :, -1], '%'),
    },
    rule=Rule(every(flat, moderate), some(flat, moderate)),
    setting='Steps to the lowest training loss that SSGD (K = 1) has after '
    f'{speed.SHARE:.0%} of {RATES[rate]} steps. LSTM with {HIDDEN} units over '
    f'the rows of {NUM_TRAIN} images of MNIST, {NUM_REPLICAS} x {BATCH_SIZE} '
    f'drawn with replacement, momentum {MOMENTUM}.',
    note=f'Rates tried: {tried}. The lower rate was added because the higher '
    'one was not flat.',
  )


def _case(period: int) -> str:
  return f'period {period}'


def _by_period(values: np.ndarray, unit: str = '') -> Quantity:
  return by_case(dict(zip(map(_case, PERIODS), values, strict=True)), unit)


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the training loss against steps and against rounds."""
  figure.set_size_inches(drawing.WIDTH, 6.5)
  axes = figure.subplots(len(data['curves']), 2, sharey='row')
  for pair, (rate, methods) in zip(axes, data['curves'].items(), strict=True):
    for name, found in methods.items():
      looks = styles.variants(METHODS[name].__name__, data['periods'])
      for period, runs in zip(data['periods'], found['loss'], strict=True):
        label = f'{name}, period {period}'
        losses = np.array(runs)
        _draw_curve(pair, period, data['every'], losses, looks[period], label)
    for axis, title in zip(pair, ('steps', 'rounds'), strict=True):
      axis.set_xlabel(title)
      axis.set_title(f'rate {rate}')
      drawing.log(axis, 'y')
    pair[0].set_ylabel('training loss of the average, nats')
    pair[1].set_xscale('log')
  drawing.legend_below(figure)


def _draw_curve(
  axes: Sequence[Any],
  period: int,
  every: int,
  losses: np.ndarray,
  style: styles.Style,
  label: str,
) -> None:
  """Draw the mean over the seeds from the first average on, and the range."""
  steps = every * np.arange(1, losses.shape[1] + 1)
  kept = steps >= period
  for axis, x in zip(axes, (steps[kept], steps[kept] / period), strict=True):
    drawing.seeds(axis, x, losses[:, kept], style, label=label)


TARGET = Target(
  name='t13_sequences',
  title='PR-SGD and K-AVG on an LSTM over the rows of images',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629); Zhou, Cong 2018 (arXiv '
  '1708.01012); their applications to speech and language',
  measure=measure,
  draw=draw,
)

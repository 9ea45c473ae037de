"""T13: PR-SGD and K-AVG on a recurrent network."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import classifying, speed
from experiments.papers.simulation import simulate
from experiments.papers.target import (
  Claim,
  Outcome,
  Setting,
  Target,
  verdict,
)
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data.datasets import load_dataset

SEEDS = (0,)
MODERATE = (4, 16)
PERIODS = (1, *MODERATE, 64)
METHODS = {'PR-SGD': pr.pr_sgd, 'K-AVG': pr.k_avg}
# More steps than K-AVG with K = 1, at most, to be called flat.
FLAT = 1.25

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 16, 32
MOMENTUM = 0.9
# Learning rate -> steps. Replicas drift apart by rate times period.
RATES = {0.2: 384, 0.05: 768}
EVERY = 16
NUM_TRAIN, NUM_OBSERVED = 8192, 1024


def measure(setting: Setting) -> Outcome:
  """Trains an LSTM over the rows of MNIST with every period."""
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
  """Whether the steps to a loss hardly depend on the period."""
  steps = EVERY * np.arange(1, RATES[rate] // EVERY + 1)
  losses = np.array(curves[name]['loss'])  # [periods, seeds, points]
  taken = np.zeros(losses.shape[:2])
  for i, synchronous in enumerate(np.array(curves['K-AVG']['loss'])[0]):
    least = speed.target_loss(synchronous)
    unit = speed.when_reached(steps, synchronous, least)
    for k in range(len(PERIODS)):
      taken[k, i] = speed.when_reached(steps, losses[k, i], least) / unit
  flat = [bool(taken[PERIODS.index(p)].mean() <= FLAT) for p in MODERATE]
  accuracy = np.array(curves[name]['test_accuracy'])
  return Claim(
    f'{name} trains recurrent networks as well, with an average every few '
    'steps (the speech and language side of the papers; no number of theirs)',
    f'rate {rate}: steps to the same training loss, in those of SSGD, by '
    f'period: {_listed(taken, ".2f")}; loss of the average at the end: '
    f'{_listed(losses[:, :, -1], ".4f")}; its test accuracy: '
    f'{_listed(accuracy[:, :, -1], ".1%")}',
    verdict(all(flat), any(flat)),
    f'yes if at most {FLAT} for the periods {MODERATE}, partly if for one. The '
    f'loss is the least of SSGD (K = 1) after {speed.SHARE:.0%} of the '
    f'{RATES[rate]} steps. LSTM with {HIDDEN} units over the rows of '
    f'{NUM_TRAIN} images of MNIST, {NUM_REPLICAS} x {BATCH_SIZE} drawn with '
    f'replacement, momentum {MOMENTUM}. Rates tried, the lower because the '
    f'higher was not flat: {_rates()}',
  )


def _rates() -> str:
  return ', '.join(f'{rate} for {steps} steps' for rate, steps in RATES.items())


def _listed(values: np.ndarray, form: str) -> str:
  """Each period with its values, one for each seed."""
  pairs = zip(PERIODS, values, strict=True)
  return ', '.join(f'{p}: {speed.spread(v, form)}' for p, v in pairs)


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Training loss against steps and against rounds of communication."""
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
  """The mean of the seeds from the first average on, and their range."""
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

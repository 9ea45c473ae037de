"""G3: unlike data, rare averages, and corrections of the drift."""

from collections.abc import Callable, Mapping
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.gallery import comparing, digits
from experiments.gallery.entry import Entry
from experiments.papers import classifying
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data import samplers
from prsgd_jax.data.datasets import load_dataset

SEEDS = (0, 1, 2, 3)
RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
PERIODS = (1, 4, 16, 64)
ALPHAS = (0.1, 1.0, 100.0)
NUM_STEPS = 512


def _local(rate: jax.Array, period: jax.Array) -> pr.base.ReplicaTransformation:
  return pr.k_avg(optax.sgd(rate), period=classifying.every(period))


def _scaffold(
  rate: jax.Array, period: jax.Array
) -> pr.base.ReplicaTransformation:
  return pr.scaffold(
    optax.sgd(rate),
    period=classifying.every(period),
    learning_rate=lambda step: rate,
  )


def _k_gt(rate: jax.Array, period: jax.Array) -> pr.base.ReplicaTransformation:
  return pr.k_gt(
    optax.sgd(rate),
    period=classifying.every(period),
    learning_rate=lambda step: rate,
    mixing=pr.graphs.ring(),
  )


METHODS: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'local SGD': _local,
  'SCAFFOLD': _scaffold,
  'gradient tracking on a ring': _k_gt,
}
LOOKS = {
  'local SGD': styles.method('k_avg'),
  'SCAFFOLD': styles.method('scaffold'),
  'gradient tracking on a ring': styles.method('k_gt'),
}
# The settings of the sentences.
UNLIKE, ALIKE, SHORT, LONG = 0.1, 100.0, 4, 64
CORRECTED = (4, 16, 64)


def measure(setting: Setting) -> Outcome:
  """Train by every method, rate, period and likeness of the data."""
  dataset = load_dataset('digits', setting.data_dir)
  grid = {'rate': RATES, 'period': PERIODS}
  losses: dict[str, Any] = {name: [] for name in METHODS}
  for alpha in ALPHAS:
    found: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    for seed in SEEDS:
      shards = samplers.dirichlet_shards(
        dataset.train['label'], digits.NUM_REPLICAS, alpha=alpha, seed=seed
      )
      own = digits.problem(dataset, shards)
      for name, make in METHODS.items():
        ends = digits.final_losses(own, make, grid, (seed,), NUM_STEPS)
        found[name].append(ends[..., 0])
    for name, of_seeds in found.items():
      losses[name].append(np.stack(of_seeds, axis=-1).tolist())
  data = {
    'losses': losses,  # by method: [alphas, rates, periods, seeds]
    'alphas': ALPHAS,
    'rates': RATES,
    'periods': PERIODS,
  }
  return Outcome((), data, SEEDS)


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the methods where the data are most and least unlike."""

  local, scaffold, tracking = METHODS

  def lengthened(alpha: float) -> str:
    ends = (at_best(data, local, alpha, period) for period in (LONG, 1))
    return str(comparing.ratio(*ends))

  def over_local(
    name: str, period: int, alpha: float, *, equal_bytes: bool = False
  ) -> str:
    other = period / relative_bytes(name) if equal_bytes else period
    return str(
      comparing.ratio(
        at_best(data, name, alpha, period), between(data, local, alpha, other)
      )
    )

  def at_equal_bytes(name: str) -> str:
    *others, last = [
      f'{over_local(name, period, UNLIKE, equal_bytes=True)} at I = {period}'
      for period in CORRECTED
    ]
    return f'{", ".join(others)} and {last}'

  def best_rate(name: str) -> float:
    losses = _of_rates(data, name, ALIKE, SHORT)
    return float(data['rates'][comparing.best(losses)])

  slower = best_rate(scaffold)
  at_its_rate = comparing.ratio(
    *(
      _of_rates(data, name, ALIKE, SHORT)[data['rates'].index(slower)]
      for name in (scaffold, local)
    )
  )
  return (
    f'At alpha = {UNLIKE:g}, local SGD with I = {LONG} ends at '
    f'{lengthened(UNLIKE)} the loss with I = 1; with like data (alpha = '
    f'{ALIKE:g}) it is {lengthened(ALIKE)}.',
    f'On unlike data, SCAFFOLD at I = {LONG} ends at '
    f'{over_local(scaffold, LONG, UNLIKE)} the loss of local SGD, and gradient '
    f'tracking on a ring at I = {SHORT} at '
    f'{over_local(tracking, SHORT, UNLIKE)}; but at equal bytes, with the '
    f'interval of local SGD as much shorter, SCAFFOLD ends at '
    f'{at_equal_bytes(scaffold)}, and gradient tracking at '
    f'{at_equal_bytes(tracking)}.',
    f'On like data and at I = {SHORT}, SCAFFOLD ends at '
    f'{over_local(scaffold, SHORT, ALIKE)} the loss of local SGD, because its '
    f'best rate, {slower:g}, is below that of local SGD, {best_rate(local):g}: '
    f'with the rate {slower:g} for both, it ends at {at_its_rate}.',
  )


def relative_bytes(name: str) -> float:
  """Return the bytes of a method over those of local SGD with equal I."""
  shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((1000,), jnp.float32))
  sent = [
    pr.ledger.account(
      METHODS[one](RATES[0], SHORT), shapes, digits.NUM_REPLICAS, SHORT
    ).bytes_sent[-1]
    for one in (name, 'local SGD')
  ]
  return float(sent[0] / sent[1])


def between(
  data: Mapping[str, Any], name: str, alpha: float, period: float
) -> np.ndarray:
  """Return losses `[seeds]` as `at_best`, also between two intervals.

  There, the logarithm of the loss is linear in the logarithm of the interval.
  """
  x = np.log(data['periods'])
  losses = [at_best(data, name, alpha, known) for known in data['periods']]
  curves = np.log(losses).T
  return np.exp([np.interp(np.log(period), x, curve) for curve in curves])


def at_best(
  data: Mapping[str, Any], name: str, alpha: float, period: int
) -> np.ndarray:
  """Return the losses `[seeds]` of a method at its best rate."""
  losses = _of_rates(data, name, alpha, period)
  return losses[comparing.best(losses)]


def _of_rates(
  data: Mapping[str, Any], name: str, alpha: float, period: int
) -> np.ndarray:
  """Return the losses `[rates, seeds]` of a method."""
  own = np.array(data['losses'][name][data['alphas'].index(alpha)])
  return own[:, data['periods'].index(period)]


def _is_at_edge(
  data: Mapping[str, Any], name: str, alpha: float, period: int
) -> bool:
  losses = _of_rates(data, name, alpha, period)
  return comparing.best(losses) in (0, len(losses) - 1)


def _bytes() -> str:
  parts = [
    f'{name} sends {comparing.shown(relative_bytes(name))} times'
    for name in list(METHODS)[1:]
  ]
  return f'With equal I, {" and ".join(parts)} the bytes of local SGD.'


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  rates = ', '.join(map(str, data['rates']))
  cases = itertools.product(data['losses'], data['alphas'], data['periods'])
  at_edge = any(_is_at_edge(data, *case) for case in cases)
  return (
    f'MLP 64-{digits.HIDDEN}-10 on the digits, {digits.NUM_REPLICAS} replicas '
    f'with batches of {digits.BATCH_SIZE}, SGD without momentum, {NUM_STEPS} '
    'steps. A seed also draws the classes of each replica. Loss: training loss '
    f'of the average at the end, over all data, at the best of the rates '
    f'{rates}. Near the largest stable rate, rounding changes a run, so that '
    'the same seeds may show another order in a program with other rates. '
    f'{_bytes()} The loss between two intervals is interpolated. The rates '
    'are apart by a factor of two, which no interval includes. '
    + (
      'A hollow marker: the best rate is at the edge of these, so that a wider '
      'grid could reach a lower loss.'
      if at_edge
      else 'No best rate is at the edge of the grid.'
    )
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the loss at the best rate by period, a panel for each alpha."""
  figure.set_size_inches(drawing.WIDTH, 4)
  periods = data['periods']
  panels = figure.subplots(1, len(data['alphas']), sharey=True)
  for axis, alpha in zip(panels, data['alphas'], strict=True):
    for name in data['losses']:
      ends = [at_best(data, name, alpha, period) for period in periods]
      drawing.seeds(axis, periods, np.transpose(ends), LOOKS[name], label=name)
      edge = [_is_at_edge(data, name, alpha, period) for period in periods]
      axis.plot(
        np.array(periods)[edge],
        np.mean(ends, axis=1)[edge],
        **LOOKS[name]._replace(linestyle='none')._asdict(),
        mfc='white',
      )
    axis.set(xscale='log', yscale='log', title=f'alpha = {alpha:g}')
    axis.set_xticks(periods, [str(period) for period in periods])
    axis.minorticks_off()
    axis.set_xlabel('I, steps between averages')
  panels[0].set_ylabel('training loss at the best rate, nats')
  drawing.legend_below(figure)


ENTRY = Entry(
  target=Target(
    name='g3_unlike_data',
    title='Unlike data and rare averages: when does a correction pay?',
    paper='Karimireddy et al. 2020 (arXiv 1910.06378); Hsu, Qi, Brown 2019 '
    '(arXiv 1909.06335)',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)

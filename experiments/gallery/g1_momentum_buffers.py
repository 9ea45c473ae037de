"""G1: momentum buffers at an average: kept, averaged or reset."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.gallery import comparing, digits
from experiments.gallery.entry import Entry
from experiments.papers import classifying
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data.datasets import load_dataset

SEEDS = (0, 1, 2, 3, 4)
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
PERIODS = (4, 8, 16, 32)
NUM_STEPS, MOMENTUM = 480, 0.9
ORDERS = {'A': pr.pr_sgd, 'C': pr.k_avg}
BUFFERS = ('kept', 'averaged', 'reset')
LOOKS = {
  'kept': styles.Style(styles.HUES['red'], 's'),
  'averaged': styles.Style(styles.HUES['blue'], 'o'),
  'reset': styles.Style(styles.HUES['green'], '^'),
  'synchronous SGD': styles.Style(styles.HUES['black'], 'o', '--'),
}
# The settings of the sentences.
HIGH, LONG, LOW, SHORT = 0.4, 16, 0.05, 4

Make = Callable[..., pr.base.ReplicaTransformation]


def measure(setting: Setting) -> Outcome:
  """Train by every order, treatment of the buffers, rate and period."""
  own = digits.problem(load_dataset('digits', setting.data_dir))
  grid = {'rate': RATES, 'period': PERIODS}
  losses = {
    order: {
      buffers: digits.final_losses(
        own, _algorithm(order, buffers), grid, SEEDS, NUM_STEPS
      ).tolist()
      for buffers in BUFFERS
    }
    for order in ORDERS
  }

  def synchronous(rate: jax.Array) -> pr.base.ReplicaTransformation:
    return pr.ssgd(optax.sgd(rate, momentum=MOMENTUM))

  reference = digits.final_losses(
    own, synchronous, {'rate': RATES}, SEEDS, NUM_STEPS
  )
  data = {
    'losses': losses,
    'synchronous': reference.tolist(),
    'rates': RATES,
    'periods': PERIODS,
  }
  return Outcome((), data, SEEDS)


def _algorithm(order: str, buffers: str) -> Make:
  def make(rate: jax.Array, period: jax.Array) -> pr.base.ReplicaTransformation:
    tx = optax.sgd(rate, momentum=MOMENTUM)
    mean = pr.mixing.mean()
    averages = {
      'kept': pr.sync(mean),
      'averaged': pr.sync(mean, ('params', 'opt_state')),
      'reset': pr.chain(pr.sync(mean), pr.restart(tx)),
    }
    return ORDERS[order](
      tx, period=classifying.every(period), average=averages[buffers]
    )

  return make


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the treatments at a high and a low rate, and at the best rates."""

  def at(order: str, buffers: str, rate: float, period: int) -> np.ndarray:
    place = data['rates'].index(rate), data['periods'].index(period)
    return np.array(data['losses'][order][buffers])[place]

  def kept_over_reset(order: str, rate: float, period: int) -> str:
    ends = (at(order, b, rate, period) for b in ('kept', 'reset'))
    return str(comparing.ratio(*ends))

  def at_best(buffers: str, period: int) -> np.ndarray:
    place = data['periods'].index(period)
    of_rates = np.array(data['losses']['C'][buffers])[:, place]
    return of_rates[comparing.best(of_rates)]

  def averaged_over(buffers: str, period: int, *, equal_bytes: bool) -> str:
    # An average with the buffers sends twice the bytes.
    other = period // 2 if equal_bytes else period
    ends = at_best('averaged', period), at_best(buffers, other)
    return str(comparing.ratio(*ends))

  def both(period: int, *, equal_bytes: bool) -> str:
    kept, reset = (
      averaged_over(b, period, equal_bytes=equal_bytes)
      for b in ('kept', 'reset')
    )
    return f'{kept} the loss with kept and {reset} the loss with reset ones'

  return (
    f'At rate {HIGH} and I = {LONG}, local SGD with kept buffers (order C) '
    f'ends at {kept_over_reset("C", HIGH, LONG)} the loss with reset ones; in '
    f'order A it is {kept_over_reset("A", HIGH, LONG)}.',
    f'A reset also discards momentum: at rate {LOW} and I = {SHORT}, the loss '
    f'with kept buffers is {kept_over_reset("C", LOW, SHORT)} the loss with '
    'reset ones.',
    f'With the best rate of each (order C) and I = {LONG}, averaged buffers '
    f'end at {both(LONG, equal_bytes=False)}; they send twice the bytes, and '
    f'at equal bytes, with the others at I = {LONG // 2}, they end at '
    f'{both(LONG, equal_bytes=True)}.',
  )


def best_rates(data: Mapping[str, Any]) -> dict[str, int]:
  """Return the place of the best rate by treatment, order and period."""
  return {
    f'{buffers} buffers at I = {period} in order {order}': comparing.best(
      np.array(values)[:, i]
    )
    for order, by_buffers in data['losses'].items()
    for buffers, values in by_buffers.items()
    for i, period in enumerate(data['periods'])
  }


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  rates = ', '.join(map(str, data['rates']))
  return (
    f'MLP 64-{digits.HIDDEN}-10 on the digits, {digits.NUM_REPLICAS} replicas '
    f'with batches of {digits.BATCH_SIZE} from common data, momentum '
    f'{MOMENTUM}, {NUM_STEPS} steps, rates {rates}. Loss: training loss of the '
    f'average at the end; above that of guessing, {digits.GUESSING:.1f}, it '
    f'counts as {digits.GUESSING:.1f}. '
    + comparing.edge_note(best_rates(data), len(data['rates']))
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the loss by rate, a panel for each order and period."""
  figure.set_size_inches(drawing.WIDTH, 5.5)
  orders, periods = data['losses'], data['periods']
  panels = figure.subplots(
    len(orders), len(periods), sharex=True, sharey=True, squeeze=False
  )
  for row, (order, by_buffers) in zip(panels, orders.items(), strict=True):
    for i, (axis, period) in enumerate(zip(row, periods, strict=True)):
      shown = {b: np.array(v)[:, i] for b, v in by_buffers.items()}
      shown['synchronous SGD'] = np.array(data['synchronous'])
      for name, values in shown.items():
        label = f'{name} buffers' if name in by_buffers else name
        drawing.seeds(axis, data['rates'], values.T, LOOKS[name], label=label)
      axis.set(xscale='log', yscale='log', title=f'order {order}, I = {period}')
      axis.set_xticks(data['rates'], [f'{r:g}' for r in data['rates']])
      axis.minorticks_off()
    row[0].set_ylabel('training loss at the end, nats')
  for axis in panels[-1]:
    axis.set_xlabel('learning rate')
  drawing.legend_below(figure)


ENTRY = Entry(
  target=Target(
    name='g1_momentum_buffers',
    title='Momentum buffers at an average: keep, average or reset?',
    paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), which leaves this open',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)

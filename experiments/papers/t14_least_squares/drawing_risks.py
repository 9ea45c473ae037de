"""The figure of T14."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
import numpy as np

from experiments.papers.t14_least_squares import runs
from experiments.papers.t14_least_squares.runs import (
  DIMENSION,
  NOISE,
  REACHED,
  REPLICAS,
)
from experiments.tools import drawing, styles


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw variances by N b, risks by the length, and serial steps by b."""
  figure.set_size_inches(drawing.WIDTH, 4)
  left, middle, right = figure.subplots(1, 3)
  _draw_variances(data['rows'], left)
  _draw_lengths(data['lengths'], middle)
  batches = [r['batch_size'] for r in data['rows']]
  taken = np.array([runs.serial_steps(r) for r in data['rows']])
  look = styles.method('tail_averaging')
  drawing.spread(right, batches, taken, look, label='half of the largest rate')
  right.plot(
    batches, taken[0].mean() / np.array(batches), 'k:', lw=1, label='∝ 1/b'
  )
  right.set(
    xscale='log',
    yscale='log',
    xlabel='batch size b',
    ylabel=f'steps to {REACHED:g} of the first risk',
    title='serial steps',
  )
  right.legend()


def _draw_variances(rows: Sequence[Mapping[str, Any]], axis: Axes) -> None:
  looks = styles.variants('tail_averaging', REPLICAS)
  for n, style in looks.items():
    sizes = [n * r['batch_size'] for r in rows]
    seen = [r['tail'][0]['variance'][f'N = {n}']['seeds'] for r in rows]
    bare = style._replace(linestyle='none')
    drawing.spread(axis, sizes, seen, bare, label=f'N = {n}')
  sizes = sorted({n * r['batch_size'] for r in rows for n in REPLICAS})
  first = rows[-1]['exact'][0]['N = 1']['tail']['variance']
  first *= rows[-1]['batch_size']
  axis.plot(sizes, first / np.array(sizes), 'k:', lw=1, label='∝ 1/(N b)')
  axis.set(
    xscale='log',
    yscale='log',
    xlabel='N b, examples per step',
    ylabel='variance of the tail average',
    title='one learning rate',
  )
  axis.legend()


def _draw_lengths(lengths: Sequence[Mapping[str, Any]], axis: Axes) -> None:
  steps = [row['steps'] for row in lengths]
  names = {'last': 'one_shot_averaging', 'tail': 'tail_averaging'}
  for which, algorithm in names.items():
    seen = [row[which]['variance']['N = 1']['seeds'] for row in lengths]
    style = styles.method(algorithm)._replace(linestyle='none')
    told = 'last iterate' if which == 'last' else 'tail average'
    drawing.spread(axis, steps, seen, style, label=told)
    exact = [row['exact']['N = 1'][which]['variance'] for row in lengths]
    label = 'exact' if which == 'last' else '_'
    axis.plot(steps, exact, 'k-', lw=1, label=label)
  optimal = [NOISE * DIMENSION / (t - t // 2) / 2 for t in steps]
  axis.plot(steps, optimal, 'k--', lw=1, label=r'$\sigma^2 d / 2(T - s)$')
  axis.set(
    xscale='log',
    yscale='log',
    xlabel='T, steps',
    ylabel='variance, b = 1, N = 1',
    title='tail against last iterate',
  )
  axis.set_xticks(steps, [str(t) for t in steps])
  axis.xaxis.set_minor_locator(NullLocator())
  axis.legend()

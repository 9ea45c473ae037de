"""The figure of T1."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.papers.t01_pr_sgd import mlp
from experiments.papers.t01_pr_sgd.judging import FLAT, steps
from experiments.papers.t01_pr_sgd.runs import SSGD
from experiments.running.records import records
from experiments.tools import drawing, styles

X = {
  'epoch': 'epochs of all replicas together',
  'modeled_seconds': 'modeled time, s',
}
ERROR_OF_AVERAGE = 'test error\nof the average, %'


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw loss and error against epochs and modeled time, two rows a task."""
  tasks, relative = data['tasks'], data.get('relative')
  rows = 2 * len(tasks)
  figure.set_size_inches(drawing.WIDTH, 2.6 * (rows + bool(relative)))
  axes = figure.subplots(rows + bool(relative), 2, squeeze=False)
  for i, (task, histories) in enumerate(tasks.items()):
    setting, _, loss = task.rpartition(', ')
    looks = styles.looks(
      {name: 'ssgd' if name == SSGD else 'pr_sgd' for name in histories}
    )
    for k, y in enumerate(('loss', 'test_accuracy')):
      for axis, x in zip(axes[2 * i + k], X, strict=True):
        for label, runs in histories.items():
          _draw_curve(axis, label, looks[label], runs, x, y)
        drawing.log(axis, 'y')
        axis.set_title(setting)
        axis.set_xlabel(X[x])
        axis.set_ylabel(
          f'training loss, nats\n({loss})' if y == 'loss' else ERROR_OF_AVERAGE
        )
  if relative:
    # Results of earlier versions were relative to SSGD.
    _draw_rates(axes[-1], relative, data.get('relative_to', SSGD))
  drawing.legend_below(figure)


def _draw_rates(
  axes: Sequence[Axes], relative: Mapping[str, Mapping[str, Any]], unit: str
) -> None:
  """Draw the epochs against the interval, and the flat intervals, by rate."""
  left, right = axes
  for rate, style in styles.variants('k_avg', list(relative)).items():
    own = relative[rate]
    x = [steps(label) for label in own]
    y = np.array(list(own.values()), float).mean(axis=1)
    drawing.curve(left, x, y, style, label=f'rate {rate}')
    flat = [i for i, value in zip(x, y, strict=True) if value <= FLAT]
    right.plot(
      float(rate), max(flat, default=0), style.marker, color=style.color
    )
  left.axhline(FLAT, color='k', lw=1, ls=':')
  left.set_xscale('log')
  ticks = (1, 4, 16, 128, mlp.FIELDS['num_steps'])
  left.set_xticks(ticks, [str(tick) for tick in ticks])
  left.minorticks_off()
  left.set_xlabel('I, steps between averages')
  left.set_ylabel(f'epochs relative to {unit}')
  right.set_xscale('log')
  right.set_xticks([float(rate) for rate in relative], list(relative))
  right.minorticks_off()
  added = drawing.zero_and_log(right, 'y', 1)
  right.set_xlabel(f'learning rate ({added})')
  right.set_ylabel(f'longest I up to {FLAT:g} times\nthe epochs of {unit}')
  for axis in axes:
    axis.set_title('MLP, digits')


def _draw_curve(
  axis: Axes,
  label: str,
  style: styles.Style,
  runs: list[list[records.Record]],
  x: str,
  y: str,
) -> None:
  """Draw the mean over the seeds, with a band over their range."""
  kept = [[record for record in history if y in record] for history in runs]
  values = np.array([[record[y] for record in history] for history in kept])
  if y == 'test_accuracy':
    values = drawing.error_percent(values)
  name = label if label == SSGD else f'PR-SGD, {label}'
  at = [record[x] for record in kept[0]]
  drawing.seeds(axis, at, values, style, label=name)

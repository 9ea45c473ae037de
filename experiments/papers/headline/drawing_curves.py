"""The headline figure: loss and error against epochs and two kinds of time."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.papers.headline import curves as numbers
from experiments.papers.headline.host_times import HostTimes
from experiments.papers.headline.setting import (
  CURVES,
  SHOWN,
  SSGD,
  TIMED,
  title,
)
from experiments.tools import drawing, styles

_ESTIMATED = {
  'train_loss': 'training loss, nats',
  'test_accuracy': 'test error, %',
}
_MEAN = {
  'train_loss_mean_statistics': 'training loss, nats',
  'test_accuracy_mean_statistics': 'test error, %',
}


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw a row of losses, a row of errors, and a row with mean statistics.

  Args:
    data: `curves`, as `curves.read` returns them, and `host_times`, the
      measured times as a dict.
    figure: the figure.
  """
  figure.set_size_inches(drawing.WIDTH, 8.2)
  axes = figure.subplots(3, 3, squeeze=False)
  curves, times = data['curves'], HostTimes(**data['host_times'])
  labels = numbers.labels(curves, SHOWN)
  looks = styles.looks({label: CURVES[label][0] for label in labels})
  rate = times.bits_per_second / 1e6
  measured = f'time by measured steps and\naverages at {rate:g} Mb/s, h'
  along = {
    'epochs of all replicas together': lambda own: own['epoch'],
    'modeled time, h': lambda own: np.array(own['modeled_seconds']) / 3600,
    measured: lambda own: np.array(numbers.host_seconds(own, times)) / 3600,
  }
  for row, (name, text) in zip(axes, _ESTIMATED.items(), strict=False):
    for axis, (along_text, position) in zip(row, along.items(), strict=True):
      timed = [label for label in labels if label in TIMED]
      wanted = timed if along_text == measured else labels
      _panel(axis, curves, wanted, looks, position, name)
      axis.set_xlabel(along_text)
      axis.locator_params(axis='x', nbins=3)
    row[0].set_ylabel(f'{text}\n(statistics estimated again)')
  epochs = along['epochs of all replicas together']
  for axis, (name, text) in zip(axes[2], _MEAN.items(), strict=False):
    _panel(axis, curves, labels, looks, epochs, name)
    axis.set_ylabel(f'{text}\n(mean statistics)')
  _panel(axes[2][2], curves, labels, looks, epochs, 'consensus_distance')
  axes[2][2].set_ylabel('squared distance of the\nreplicas from their average')
  # Replicas of synchronous SGD have no distance.
  axes[2][2].set_visible(set(labels) != {SSGD})
  for axis in axes[2]:
    axis.set_xlabel('epochs of all replicas together')
  drawing.legend_below(figure)


def _panel(
  axis: Axes,
  curves: Mapping[str, Any],
  labels: Sequence[str],
  looks: Mapping[str, styles.Style],
  position: Any,
  name: str,
) -> None:
  """Draw one measure of all curves, with a band over their seeds."""
  for label in labels:
    runs = list(curves[label].values())
    # Curves of unequal length are drawn up to the end of the shortest.
    length = min(len(own['step']) for own in runs)
    values = np.array([own[name][:length] for own in runs], float)
    if 'accuracy' in name:
      values = drawing.error_percent(values)
    if name == 'consensus_distance':
      values = np.where(values > 0, values, np.nan)
    at = position(runs[0])[:length]
    drawing.seeds(axis, at, values, looks[label], label=title(label))
  drawing.log(axis, 'y')

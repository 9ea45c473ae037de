"""The headline figure as a table, from the saved results only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.papers import quantities
from experiments.papers.headline import curves as numbers
from experiments.papers.headline import setting
from experiments.papers.headline.curves import Curve, Curves
from experiments.papers.headline.host_times import HostTimes
from experiments.running.records import records
from experiments.tools import tables
from experiments.tools.tables import Column

_RELATIVE = 'steps to the same losses, relative'


def of_curves(
  data: Mapping[str, Any], wanted: Sequence[str] = setting.SHOWN
) -> str:
  """Return a Markdown table with a row for each curve.

  Args:
    data: data of the outcome of `t01_long` or `t01_long_resnet20`.
    wanted: the curves to show. Default: all.
  """
  curves: Curves = data['curves']
  times = HostTimes(**data['host_times'])
  rate = f'{times.bits_per_second / 1e6:g} Mb/s'

  def hours(own: Curve) -> float:
    return numbers.host_seconds(own, times)[-1] / 3600

  def row(label: str) -> dict[str, str]:
    runs = numbers.by_seed(curves, label)
    of_seeds = {
      'test accuracy, %': [numbers.accuracy(own) for own in runs],
      'training loss': [own['train_loss'][-1] for own in runs],
      _RELATIVE: [
        numbers.relative(*pair, 'step')
        for pair in numbers.paired(curves, label, setting.SSGD)
      ],
      # These are equal for all seeds.
      'averages': [runs[0]['rounds'][-1]],
      'sent by a replica, GB': [runs[0]['bytes_sent'][-1] / 1e9],
      'modeled hours': [runs[0]['modeled_seconds'][-1] / 3600],
      f'hours by measured steps and rounds, {rate}': (
        [hours(runs[0])] if label in setting.TIMED else []
      ),
    }
    shown = {k: _shown(x) for k, x in of_seeds.items() if x}
    if numbers.any_late(curves, label, setting.SSGD):
      shown[_RELATIVE] = f'≥ {shown[_RELATIVE]}'
    return {'curve': setting.title(label), 'seeds': str(len(runs)), **shown}

  rows = [row(label) for label in numbers.labels(curves, wanted)]
  names = dict.fromkeys(name for row in rows for name in row)
  return tables.markdown(rows, [Column(name) for name in names])


def of_lengths(data: Mapping[str, Any]) -> str:
  """Return a Markdown table of the accuracy lost to SSGD, in points.

  Args:
    data: data of the outcome of `t01_length`.
  """
  gaps = numbers.by_interval(data['gaps'])
  lengths = sorted({epochs for own in gaps.values() for epochs in own}, key=int)
  rows = [
    {
      'accuracy lost to SSGD, points': setting.title(label),
      **{
        f'{epochs} epochs': _shown(own[epochs]['accuracy'])
        for epochs in lengths
        if epochs in own
      },
    }
    for label, own in gaps.items()
  ]
  heads = ['accuracy lost to SSGD, points', *(f'{e} epochs' for e in lengths)]
  return tables.markdown(rows, [Column(name) for name in heads])


def _shown(values: Sequence[float]) -> str:
  """Return the mean and the range of the seeds: counts, or four digits."""
  rounded = [x if float(x).is_integer() else float(f'{x:.4g}') for x in values]
  return str(quantities.of_seeds(rounded))


def of_lengths_in_words(data: Mapping[str, Any]) -> str:
  """Return a sentence on what the rarest averages lose, by the length.

  Args:
    data: data of the outcome of `t01_length`.
  """
  label, own = [*numbers.by_interval(data['gaps']).items()][-1]
  lost = ', '.join(
    f'{np.mean(own[epochs]["accuracy"]):.2g} after {epochs}'
    for epochs in sorted(own, key=int)
  )
  most = max(len(found['accuracy']) for found in own.values())
  return (
    f'{setting.title(label)} loses accuracy to SSGD, in points by the epochs '
    f'of the run: {lost} (means of up to {most} seeds).'
  )


def source(outcome: records.Record) -> str:
  """Return the seeds, machine, commit and hours of an outcome.

  Args:
    outcome: one of `results_page.read`.
  """
  machine, missing = outcome['machine'], outcome['data']['missing']
  waiting = f' Runs that are not finished yet: {missing}.' if missing else ''
  seeds = ', '.join(map(str, outcome['seeds']))
  named = f'Seeds {seeds} at most' if ',' in seeds else f'Seed {seeds}'
  return (
    f'{named}, '
    f'{machine["cpus"]} {machine["device"]} cores, JAX {machine["jax"]}, '
    f'commit {outcome["commit"]}, {outcome["seconds"] / 3600:.1f} hours.'
    f'{waiting}'
  )

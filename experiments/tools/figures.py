"""Draw measures of runs as curves, with bands over their seeds."""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.running.records import records
from experiments.tools import drawing, figure_files, measures, styles
from experiments.tools.measures import SCALES, Scale, X, Y, flat

BANDS = ('range', 'std', 'none')
# Width and height of a panel in inches.
PANEL = (5, 3.5)
# Parts of a run's description that are not settings in the label of a curve.
_UNNAMED = ('algorithm', 'options', 'seed', 'data')
# Start of the logarithm, otherwise the smallest positive value, because
# rounding errors cause consensus distances of 1e-13.
_LEAST = {'consensus_distance': 1e-6}


class Run(NamedTuple):
  """Contents of a run's directory.

  Attributes:
    label: algorithm with its options.
    algorithm: name of the algorithm, which determines color and marker.
    settings: other values that determine the trajectory, except the seed.
    seed: seed of the run.
    history: records of the run.
    done: whether the run has finished.
    failed: reason why it ended early, or None.
  """

  label: str
  algorithm: str
  settings: dict[str, Any]
  seed: int
  history: list[records.Record]
  done: bool
  failed: str | None


class Curve(NamedTuple):
  """A measure of runs that differ only in the seed.

  Attributes:
    label: text in the legend.
    algorithm: name of the algorithm.
    seeds: number of runs.
    diverged: number of runs that diverged; the curve ends at the first.
    x: float[points], mean over seeds, in units of the axis.
    y: float[points], mean over seeds, in units of the axis.
    low: float[points], lower end of the band.
    high: float[points], upper end of the band.
  """

  label: str
  algorithm: str
  seeds: int
  diverged: int
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray
  high: np.ndarray


def find_runs(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
  """Return all directories of runs in and below these, without duplicates.

  Numbers in their names are sorted by value.

  Raises:
    ValueError: if a path contains no run.
  """
  found: dict[pathlib.Path, None] = {}
  for path in paths:
    below = sorted(
      pathlib.Path(path).rglob(records.CONFIG),
      key=lambda found: styles.natural(str(found)),
    )
    if not below:
      raise ValueError(f'{path} holds no run; pass a directory of runs')
    found.update(dict.fromkeys(p.parent for p in below))
  return list(found)


def read_runs(workdirs: Iterable[pathlib.Path]) -> list[Run]:
  """Read the runs of these directories, finished or not.

  Raises:
    ValueError: if a directory holds no run, or a damaged one.
  """
  return [_read_run(workdir) for workdir in workdirs]


def _read_run(workdir: pathlib.Path) -> Run:
  config = records.read_config(workdir)
  failure = records.read_failure(workdir)
  description = config['description']
  # Of a run of objects, whose label is the user's own, because the label of a
  # run of flags has all options.
  options = {
    name: value
    for name, value in flat(description['options'], _UNNAMED)
    if f'{name}={value}'.replace(',', '+') not in config['label']
  }
  return Run(
    label=config['label'],
    algorithm=description['algorithm'],
    settings={**options, **dict(flat(description, _UNNAMED))},
    seed=config['description']['seed'],
    history=records.read_records(workdir),
    done=records.finished(workdir, config.get('num_steps')) is not None,
    failed=None if failure is None else failure['failed'],
  )


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Group runs that differ only in the seed.

  Returns:
    Label -> runs. The label is the algorithm with its options, and the settings
    that differ between the runs.

  Raises:
    ValueError: if a run is given twice.
  """
  names = differing(runs)
  groups: dict[str, list[Run]] = {}
  for run in runs:
    added = [f'{n}={v}' for n, v in settings_of(run, names).items()]
    label = ' '.join([run.label, *added])
    same = groups.setdefault(label, [])
    if run.seed in (other.seed for other in same):
      raise ValueError(f'{label!r} with seed {run.seed} is given twice')
    same.append(run)
  return groups


def differing(runs: Sequence[Run]) -> list[str]:
  """Return the names of the settings that differ between runs."""
  values: dict[str, set[str]] = {}
  for run in runs:
    for name, value in run.settings.items():
      values.setdefault(name, set()).add(json.dumps(value))
  return [name for name, found in values.items() if len(found) > 1]


def settings_of(run: Run, names: Iterable[str]) -> dict[str, str]:
  """Return settings of a run by name, in the form of the command line."""
  return {n: _text(run.settings[n]) for n in names if n in run.settings}


def _text(value: Any) -> str:
  """Return a setting in the form of the command line."""
  if isinstance(value, list):
    return ','.join(map(_text, value))
  return f'{value:g}' if isinstance(value, float) else str(value)


def curves(
  runs: Sequence[Run], x: str, y: str, band: str = 'range'
) -> list[Curve]:
  """Return one curve for each group of runs that differ only in the seed.

  The points are the records with the measure, at the steps that all seeds
  recorded. If a run diverged, the curve ends there, and the legend says so.

  Args:
    runs: runs from `read_runs`.
    x: name in `X`, or of another number in the records.
    y: name in `Y`, or of another number in the records. A nested number has a
      name such as 'bytes_by_tier.global'.
    band: 'range' from the smallest to the largest value, 'std' one (biased)
      standard deviation to each side, 'none' an empty band.

  Raises:
    ValueError: if a name is unknown, or a run is given twice.
  """
  shown = _shown(runs, 'x', [x]) | _shown(runs, 'y', [y])
  if band not in BANDS:
    raise ValueError(f'unknown --band={band}; use one of {", ".join(BANDS)}')
  return [
    _curve(label, same, [(x, shown[x]), (y, shown[y])], band)
    for label, same in group(runs).items()
  ]


def _shown(
  runs: Sequence[Run], flag: str, names: Sequence[str]
) -> dict[str, Scale]:
  histories = [run.history for run in runs]
  known = {'x': X, 'y': Y}[flag]
  return {name: measures.find(histories, flag, name, known) for name in names}


def _curve(
  label: str,
  runs: Sequence[Run],
  shown: Sequence[tuple[str, Scale]],
  band: str,
) -> Curve:
  by_step = [measures.points(run.history, shown) for run in runs]
  steps = sorted(set.intersection(*map(set, by_step)))
  points = np.array([[one[t] for t in steps] for one in by_step], float)
  at, values = np.moveaxis(points.reshape((len(runs), len(steps), 2)), -1, 0)
  mean = values.mean(axis=0)
  low = high = mean
  if band == 'range':
    low, high = values.min(axis=0), values.max(axis=0)
  elif band == 'std':
    deviation = values.std(axis=0)
    low, high = mean - deviation, mean + deviation
  diverged = sum(run.failed is not None for run in runs)
  return Curve(
    label,
    runs[0].algorithm,
    len(runs),
    diverged,
    at.mean(axis=0),
    mean,
    low,
    high,
  )


def draw(
  runs: Sequence[Run],
  path: pathlib.Path,
  *,
  x: Sequence[str] = ('step', 'bytes_sent'),
  y: Sequence[str] = ('loss', 'test_error'),
  band: str = 'range',
  title: str | None = None,
  scales: Mapping[str, str] | None = None,
) -> None:
  """Draw every `y` (a row each) against every `x` (a column each) to a file.

  Args:
    runs: runs from `read_runs`.
    path: file to write; its extension selects the format, such as .png.
    x, y, band, title, scales: arguments of `make`.

  Raises:
    ValueError: if `make` refuses its arguments, or the file cannot be written.
  """
  made = make(runs, x=x, y=y, band=band, title=title, scales=scales)
  figure_files.save(made, path, dpi=120)


def make(
  runs: Sequence[Run],
  *,
  x: Sequence[str] = ('step', 'bytes_sent'),
  y: Sequence[str] = ('loss', 'test_error'),
  band: str = 'range',
  title: str | None = None,
  scales: Mapping[str, str] | None = None,
) -> Figure:
  """Return a figure with a row for every `y` and a column for every `x`.

  Args:
    runs: runs from `read_runs`.
    x: names in `X`, or of other numbers in the records.
    y: names in `Y`, or of other numbers in the records.
    band: 'range', 'std' or 'none', as in `curves`.
    title: text above all panels; None for none.
    scales: measure -> one of `SCALES`, to replace the measure's own scale.

  Raises:
    ValueError: if a name is unknown, a run is given twice, or a measure of
      `scales` is not in the figure.
  """
  panels = [[curves(runs, one, other, band) for one in x] for other in y]
  of = _shown(runs, 'x', x) | _shown(runs, 'y', y)
  for name, scale in (scales or {}).items():
    if name not in of or scale not in SCALES:
      raise ValueError(
        f'--{scale}={name} is not an axis of this figure; use one of '
        f'{", ".join(of)}'
      )
    of[name] = of[name]._replace(scale=scale)
  looks = styles.looks({c.label: c.algorithm for c in panels[0][0]})
  with drawing.look():
    size = (PANEL[0] * len(x), PANEL[1] * len(y))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(y), len(x), squeeze=False)
    for i, row in enumerate(panels):
      for j, panel in enumerate(row):
        shown = ((x[j], of[x[j]]), (y[i], of[y[i]]))
        _draw_panel(axes[i, j], panel, looks, *shown)
    drawing.legend_below(figure)
    if title:
      figure.suptitle(title)
  return figure


def _legend(curve: Curve) -> str:
  # Matplotlib reads $...$ as a formula, and omits a label that starts with _.
  label = curve.label.replace('$', r'\$')
  label = f' {label}' if label.startswith('_') else label
  if curve.diverged:
    return f'{label} ({curve.diverged} of {curve.seeds} diverged)'
  return label + (f' ({curve.seeds} seeds)' if curve.seeds > 1 else '')


def _draw_panel(
  axis: Axes,
  panel: Sequence[Curve],
  looks: Mapping[str, styles.Style],
  x: tuple[str, Scale],
  y: tuple[str, Scale],
) -> None:
  least = [
    _least(name, scale, [getattr(curve, along) for curve in panel])
    for along, (name, scale) in (('x', x), ('y', y))
  ]
  for curve in panel:
    points: Sequence[Any] = (curve.x, curve.y, curve.low, curve.high)
    if least[0] is not None:
      points = drawing.split_at_zero(*points)
    at, mean, low, high = points
    style, label = looks[curve.label], _legend(curve)
    drawing.curve(axis, at, mean, style, label=label, low=low, high=high)
  # Scaled after drawing, because fixed limits would hide later curves.
  _set_scale(axis, 'x', x[1], least[0])
  _set_scale(axis, 'y', y[1], least[1])


def _least(
  name: str, scale: Scale, values: Sequence[np.ndarray]
) -> float | None:
  """Return the start of the logarithm on a 'zero and log' axis, else None."""
  whole = np.concatenate(values)
  positive = whole[whole > 0]
  if scale.scale != 'zero and log' or not len(positive):
    return None
  least = _LEAST.get(name, float(positive.min()))
  return least if (whole < least).any() else None


def _set_scale(
  axis: Axes, along: drawing.Along, scale: Scale, least: float | None
) -> None:
  """Scale and label an axis."""
  label = scale.title
  if least is not None:
    added = drawing.zero_and_log(axis, along, least)
    label += f'{" " if chr(10) in label else chr(10)}({added})'
  elif scale.scale != 'linear':
    drawing.log(axis, along)
  getattr(axis, f'set_{along}label')(label)

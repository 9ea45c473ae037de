"""The standard figures: measures of runs, with bands over their seeds."""

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
# Inches: of a panel.
PANEL = (5, 3.5)
# Of the description of a run: what names no setting of its own.
_UNNAMED = ('algorithm', 'options', 'seed', 'data')
# Where the logarithm begins, if not at the least value that is not zero:
# rounding alone makes consensus distances of 1e-13.
_LEAST = {'consensus_distance': 1e-6}


class Run(NamedTuple):
  """What a run wrote.

  Attributes:
    label: its algorithm with the options.
    algorithm: its name, which determines color and marker.
    settings: what else determines its trajectory, by name; not the seed.
    seed: of the run.
    history: its records.
    done: whether it came to its end.
    failed: why it ended early, or None.
  """

  label: str
  algorithm: str
  settings: dict[str, Any]
  seed: int
  history: list[records.Record]
  done: bool
  failed: str | None


class Curve(NamedTuple):
  """A measure of the runs that differ in the seed alone.

  Attributes:
    label: of the runs.
    algorithm: its name.
    seeds: how many they are.
    diverged: how many of them did, where the curve ends.
    x: float[points], in the units shown; the mean over the seeds.
    y: float[points], likewise.
    low, high: float[points], the ends of the band.
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
  """The directories of runs in and below these, each once.

  Numbers in their names are sorted by value.

  Raises:
    ValueError: if there is none in one of them.
  """
  found: dict[pathlib.Path, None] = {}
  for path in paths:
    below = sorted(
      pathlib.Path(path).rglob(records.CONFIG),
      key=lambda found: styles.natural(str(found)),
    )
    if not below:
      raise ValueError(f'there is no run in {path}; pass a directory of runs')
    found.update(dict.fromkeys(p.parent for p in below))
  return list(found)


def read_runs(workdirs: Iterable[pathlib.Path]) -> list[Run]:
  """Reads the runs of these directories, done or not.

  Raises:
    ValueError: if one holds no run, or a damaged one.
  """
  return [_read_run(workdir) for workdir in workdirs]


def _read_run(workdir: pathlib.Path) -> Run:
  config = records.read_config(workdir)
  failure = records.read_failure(workdir)
  description = dict(flat(config['description'], _UNNAMED))
  return Run(
    label=config['label'],
    algorithm=config['description']['algorithm'],
    settings=description,
    seed=config['description']['seed'],
    history=records.read_records(workdir),
    done=records.finished(workdir, config.get('num_steps')) is not None,
    failed=None if failure is None else failure['failed'],
  )


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """The runs that differ in the seed alone, by a label that tells them apart.

  To the label of the algorithm it adds the settings in which the runs differ.

  Raises:
    ValueError: if a run is there twice.
  """
  names = differing(runs)
  groups: dict[str, list[Run]] = {}
  for run in runs:
    added = [f'{n}={v}' for n, v in settings_of(run, names).items()]
    label = ' '.join([run.label, *added])
    same = groups.setdefault(label, [])
    if run.seed in (other.seed for other in same):
      raise ValueError(f'{label!r} with seed {run.seed} is there twice')
    same.append(run)
  return groups


def differing(runs: Sequence[Run]) -> list[str]:
  """Return the names of the settings that are not the same in all runs."""
  values: dict[str, set[str]] = {}
  for run in runs:
    for name, value in run.settings.items():
      values.setdefault(name, set()).add(json.dumps(value))
  return [name for name, found in values.items() if len(found) > 1]


def settings_of(run: Run, names: Iterable[str]) -> dict[str, str]:
  """Return some settings of a run, as the command line has them."""
  return {n: _text(run.settings[n]) for n in names if n in run.settings}


def _text(value: Any) -> str:
  """A setting as the command line has it."""
  if isinstance(value, list):
    return ','.join(map(_text, value))
  return f'{value:g}' if isinstance(value, float) else str(value)


def curves(
  runs: Sequence[Run], x: str, y: str, band: str = 'range'
) -> list[Curve]:
  """One curve for all seeds of what is the same otherwise.

  Points are the records that have the measure, at the steps that all the seeds
  have: where one diverged, the curve ends, and the legend says so.

  Args:
    runs: as read.
    x: one of `X`, or another number that the runs recorded.
    y: one of `Y`, or another number that the runs recorded; those inside of
      others have names such as 'bytes_by_tier.global'.
    band: 'range' from least to most, 'std' the mean and one (biased) standard
      deviation to each side, 'none' an empty band.

  Raises:
    ValueError: if a name is none of these, or a run is there twice.
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
  """Draws every `y` (a row each) against every `x` (a column each) to a file.

  Args:
    runs: as read.
    path: whose ending is the format, such as .png, .svg or .pdf.
    x, y, band, title, scales: as in `make`.

  Raises:
    ValueError: as `curves`, or if the file cannot be written.
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
  """The figure that `draw` writes.

  Args:
    runs: as read.
    x, y: some of `X` and of `Y`, or other numbers that the runs recorded.
    band: as in `curves`.
    title: above all panels; none by default.
    scales: one of `SCALES` by measure, where its own scale is not wanted.

  Raises:
    ValueError: as `curves`, or if a measure of `scales` is not shown.
  """
  panels = [[curves(runs, one, other, band) for one in x] for other in y]
  of = _shown(runs, 'x', x) | _shown(runs, 'y', y)
  for name, scale in (scales or {}).items():
    if name not in of or scale not in SCALES:
      raise ValueError(
        f'--{scale}={name} is no axis of this figure; use one of '
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
  # Matplotlib reads $...$ as a formula, and leaves out what begins with _.
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
  # Scaled after the curves, because limits that are set hide what comes later.
  _set_scale(axis, 'x', x[1], least[0])
  _set_scale(axis, 'y', y[1], least[1])


def _least(
  name: str, scale: Scale, values: Sequence[np.ndarray]
) -> float | None:
  """Where the logarithm of an axis with a place for zero begins, if it has."""
  whole = np.concatenate(values)
  positive = whole[whole > 0]
  if scale.scale != 'zero and log' or not len(positive):
    return None
  least = _LEAST.get(name, float(positive.min()))
  return least if (whole < least).any() else None


def _set_scale(
  axis: Axes, along: drawing.Along, scale: Scale, least: float | None
) -> None:
  """Scales an axis and labels it."""
  label = scale.title
  if least is not None:
    added = drawing.zero_and_log(axis, along, least)
    label += f'{" " if chr(10) in label else chr(10)}({added})'
  elif scale.scale != 'linear':
    drawing.log(axis, along)
  getattr(axis, f'set_{along}label')(label)

"""The standard figures: measures of runs, with bands over their seeds."""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments import records, writing
from prsgd_jax import system_errors


class Scale(NamedTuple):
  """How a value of the records is shown.

  Attributes:
    title: what stands on the axis, with its unit.
    unit: what one of it is in the records.
    scale: matplotlib's name of the scale.
  """

  title: str
  unit: float = 1
  scale: str = 'linear'


X = {
  'step': Scale('steps'),
  'epoch': Scale('epochs (passes over the data, all replicas together)'),
  'rounds': Scale('communication rounds'),
  'bytes_sent': Scale('MiB sent per replica', 2**20, 'symlog'),
  'modelled_seconds': Scale('modelled time, s'),
  'seconds': Scale('measured time, s'),
}
Y = {
  'loss': Scale('training loss of the replicas, nats', scale='log'),
  'test_loss': Scale('test loss of their average, nats', scale='log'),
  'test_accuracy': Scale('test accuracy of their average, %', 0.01),
  'consensus_distance': Scale(
    'consensus distance, mean of |x_i - mean x|^2', scale='symlog'
  ),
}
BANDS = ('range', 'std', 'none')
# Of the description of a run: what names no setting of its own.
_UNNAMED = ('algorithm', 'options', 'seed', 'data')
# Where a symlog axis leaves zero, in the units shown.
_LINEAR = {'bytes_sent': 0.1, 'consensus_distance': 1e-6}


class Run(NamedTuple):
  """What a run wrote.

  Attributes:
    label: its algorithm with the options.
    settings: what else determines its trajectory, by name; not the seed.
    seed: of the run.
    history: its records.
    done: whether it came to its end.
    failed: why it ended early, or None.
  """

  label: str
  settings: dict[str, Any]
  seed: int
  history: list[records.Record]
  done: bool
  failed: str | None


class Curve(NamedTuple):
  """A measure of the runs that differ in the seed alone.

  Attributes:
    label: of the runs.
    seeds: how many they are.
    diverged: how many of them did, where the curve ends.
    x: float[points], in the units shown; the mean over the seeds.
    y: float[points], likewise.
    low, high: float[points], the ends of the band.
  """

  label: str
  seeds: int
  diverged: int
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray
  high: np.ndarray


def find_runs(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
  """The directories of runs in and below these, each once.

  Raises:
    ValueError: if there is none in one of them.
  """
  found: dict[pathlib.Path, None] = {}
  for path in paths:
    below = sorted(pathlib.Path(path).rglob(records.CONFIG))
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
  description = dict(_flat(config['description'], _UNNAMED))
  return Run(
    label=config['label'],
    settings=description,
    seed=config['description']['seed'],
    history=records.read_records(workdir),
    done=failure is None and records.read_summary(workdir) is not None,
    failed=None if failure is None else failure['failed'],
  )


def _flat(
  tree: Mapping[str, Any], without: Sequence[str] = (), prefix: str = ''
) -> Iterable[tuple[str, Any]]:
  """The leaves of nested mappings, by their names joined with points."""
  for name, value in tree.items():
    if name in without:
      continue
    if isinstance(value, Mapping):
      yield from _flat(value, (), f'{prefix}{name}.')
    else:
      yield prefix + name, value


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """The runs that differ in the seed alone, by a label that tells them apart.

  To the label of the algorithm it adds the settings in which the runs differ.

  Raises:
    ValueError: if a run is there twice.
  """
  values: dict[str, set[str]] = {}
  for run in runs:
    for name, value in run.settings.items():
      values.setdefault(name, set()).add(json.dumps(value))
  differ = [name for name, found in values.items() if len(found) > 1]
  groups: dict[str, list[Run]] = {}
  for run in runs:
    added = [
      f'{n}={_text(run.settings[n])}' for n in differ if n in run.settings
    ]
    label = ' '.join([run.label, *added])
    same = groups.setdefault(label, [])
    if run.seed in (other.seed for other in same):
      raise ValueError(f'{label!r} with seed {run.seed} is there twice')
    same.append(run)
  return groups


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
    x: one of `X`.
    y: one of `Y`.
    band: 'range' from least to most, 'std' the mean and one (biased) standard
      deviation to each side, 'none' an empty band.

  Raises:
    ValueError: if a name is none of these, or a run is there twice.
  """
  for name, value, table in (('x', x, X), ('y', y, Y), ('band', band, BANDS)):
    if value not in table:
      raise ValueError(
        f'unknown --{name}={value}; use one of {", ".join(table)}'
      )
  return [
    _curve(label, same, x, y, band) for label, same in group(runs).items()
  ]


def _curve(label: str, runs: Sequence[Run], x: str, y: str, band: str) -> Curve:
  by_step = [{r['step']: r for r in run.history if y in r} for run in runs]
  steps = sorted(set.intersection(*map(set, by_step)))
  at, values = (
    np.array(
      [[one[t][name] / unit for t in steps] for one in by_step], float
    ).reshape((len(runs), len(steps)))
    for name, unit in ((x, X[x].unit), (y, Y[y].unit))
  )
  mean = values.mean(axis=0)
  low = high = mean
  if band == 'range':
    low, high = values.min(axis=0), values.max(axis=0)
  elif band == 'std':
    deviation = values.std(axis=0)
    low, high = mean - deviation, mean + deviation
  diverged = sum(run.failed is not None for run in runs)
  return Curve(label, len(runs), diverged, at.mean(axis=0), mean, low, high)


def draw(
  runs: Sequence[Run],
  path: pathlib.Path,
  *,
  x: Sequence[str] = ('step', 'bytes_sent'),
  y: Sequence[str] = ('loss', 'test_accuracy'),
  band: str = 'range',
) -> None:
  """Draws every `y` (a row each) against every `x` (a column each) to a file.

  Args:
    runs: as read.
    path: whose ending is the format, such as .png, .svg or .pdf.
    x, y: some of `X` and of `Y`.
    band: as in `curves`.

  Raises:
    ValueError: as `curves`, or if the file cannot be written.
  """
  panels = [[curves(runs, one, other, band) for one in x] for other in y]
  size = (5 * len(x), 3.5 * len(y))
  figure = Figure(figsize=size, layout='constrained')
  axes = figure.subplots(len(y), len(x), squeeze=False)
  try:
    for i, row in enumerate(panels):
      for j, panel in enumerate(row):
        _draw_panel(axes[i, j], panel, x[j], y[i])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    widest = 0.6 + 0.08 * max(map(len, labels))  # inches, about
    figure.legend(
      handles,
      labels,
      loc='outside lower center',
      ncols=max(1, int(size[0] / widest)),
      fontsize='small',
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing.whole(path) as staging:
      figure.savefig(staging, dpi=120, format=path.suffix[1:] or None)
  except OSError as error:
    why = system_errors.reason(error)
    raise ValueError(
      f'{path} cannot be written ({why}); pass another --output'
    ) from error


def _legend(curve: Curve) -> str:
  if curve.diverged:
    return f'{curve.label} ({curve.diverged} of {curve.seeds} diverged)'
  return curve.label + (f' ({curve.seeds} seeds)' if curve.seeds > 1 else '')


def _draw_panel(axis: Any, panel: Sequence[Curve], x: str, y: str) -> None:
  for curve in panel:
    (line,) = axis.plot(
      curve.x, curve.y, marker='.', markersize=3, label=_legend(curve)
    )
    if (curve.low < curve.high).any():
      axis.fill_between(
        curve.x, curve.low, curve.high, color=line.get_color(), alpha=0.2, lw=0
      )
  for name, shown in ((x, X[x]), (y, Y[y])):
    along = 'x' if name == x else 'y'
    options = {'linthresh': _LINEAR[name]} if shown.scale == 'symlog' else {}
    getattr(axis, f'set_{along}scale')(shown.scale, **options)
    getattr(axis, f'set_{along}label')(shown.title)
  if X[x].scale == 'symlog':
    axis.set_xlim(left=0)
  axis.grid(alpha=0.3)

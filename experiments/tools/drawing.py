"""Text sizes, bands, scales and legends that all figures share."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import textwrap
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  NullFormatter,
  NullLocator,
)
import numpy as np

from experiments.tools.styles import Style

# Smallest text in points, at the size of the figure in inches.
LEAST_TEXT = 8
# Largest width of a saved figure in inches, so that a page shows it without
# shrinking its text.
WIDTH = 10
Along = Literal['x', 'y']
_LOOK: dict[Any, float] = {
  'font.size': 9,
  'axes.titlesize': 10,
  'axes.labelsize': 9,
  'xtick.labelsize': 8.5,
  'ytick.labelsize': 8.5,
  'legend.fontsize': 8.5,
  'legend.title_fontsize': 8.5,
  'legend.framealpha': 1,
  'figure.titlesize': 11,
  'lines.linewidth': 1.4,
  'lines.markersize': 4.5,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.alpha': 0.3,
}
# With more points than this, only some points of a curve get a marker.
_ALL_MARKED = 12
# A logarithmic axis with a smaller range also has labels at 2 and 5.
_FEW_DECADES = 100
# Height in inches that a legend may take without growing the figure.
_LEGEND_ROOM = 0.5


@contextlib.contextmanager
def look() -> Iterator[None]:
  """Give figures of the block the text sizes and lines of this project."""
  with matplotlib.rc_context(_LOOK):
    yield


def curve(
  axis: Axes,
  x: Any,
  y: Any,
  style: Style,
  *,
  label: str = '_',
  low: Any = None,
  high: Any = None,
) -> None:
  """Draw a line, with a band from `low` to `high` where they differ.

  Args:
    axis: axis to draw on.
    x: [points], horizontal positions.
    y: [points], values of the line.
    style: style of the line and its markers; the band has its color.
    label: text in the legend; '_' omits the line from the legend.
    low: [points], lower end of the band; None for no band.
    high: [points], upper end of the band; None for no band.
  """
  x, y = np.asarray(x, float), np.asarray(y, float)
  few = np.isfinite(y).sum() <= _ALL_MARKED
  # Each curve has another offset, so that markers do not cover each other.
  start = 0.037 * len(axis.lines) % 0.15
  every = None if few else (start, 0.15)
  axis.plot(x, y, **style._asdict(), markevery=every, label=label)
  if low is not None and (np.asarray(low) < np.asarray(high)).any():
    axis.fill_between(x, low, high, color=style.color, alpha=0.2, lw=0)


def seeds(
  axis: Axes, x: Any, values: Any, style: Style, *, label: str = '_'
) -> None:
  """Draw the mean over seeds, with a band from smallest to largest.

  Args:
    axis: axis to draw on.
    x: [points], horizontal positions.
    values: [seeds, points].
    style: style of the line and its markers.
    label: text in the legend; '_' omits the line from the legend.
  """
  values = np.asarray(values, float)
  curve(
    axis,
    x,
    values.mean(axis=0),
    style,
    label=label,
    low=values.min(axis=0),
    high=values.max(axis=0),
  )


def spread(
  axis: Axes,
  x: Any,
  values: Any,
  style: Style,
  *,
  label: str = '_',
  hollow: bool = False,
) -> None:
  """Draw a marker at the mean over seeds, and a bar over their range.

  Args:
    axis: axis to draw on.
    x: [points], horizontal positions.
    values: [points, seeds].
    style: style of the markers; a linestyle of 'none' omits the line.
    label: text in the legend; '_' omits the markers from the legend.
    hollow: whether to leave the markers unfilled.
  """
  values = np.asarray(values, float)
  mean = values.mean(axis=1)
  axis.errorbar(
    x,
    mean,
    [mean - values.min(axis=1), values.max(axis=1) - mean],
    **style._asdict(),
    mfc='none' if hollow else style.color,
    label=label,
  )


def log(axis: Axes, along: Along) -> None:
  """Make an axis logarithmic unless all its data are <= 0.

  An axis over less than two decades also has labels at 2 and 5.
  """
  if not np.isfinite(getattr(axis.dataLim, f'minpos{along}')):
    return
  getattr(axis, f'set_{along}scale')('log')
  axis.autoscale(axis=along)  # again, because the scale has changed
  low, high = sorted(getattr(axis, f'get_{along}lim')())
  if low > 0 and high / low < _FEW_DECADES and 1e-3 < high < 1e4:
    ticks = getattr(axis, f'{along}axis')
    subs = (1, 2, 3, 5) if high / low < _FEW_DECADES / 5 else (1, 2, 5)
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    ticks.set_minor_formatter(NullFormatter())


def zero_and_log(axis: Axes, along: Along, least: float) -> str:
  """Make an axis logarithmic, with a shaded linear part around zero.

  Args:
    axis: axis to scale, after its curves are drawn.
    along: 'x' or 'y'.
    least: start of the logarithmic part, > 0.

  Returns:
    Text to add to the label of the axis.
  """
  set_scale = getattr(axis, f'set_{along}scale')
  set_scale('symlog', linthresh=least, linscale=0.5)
  axis.autoscale(axis=along)  # again, because the scale has changed
  end = getattr(axis, f'get_{along}lim')()[1]
  span = axis.axvspan if along == 'x' else axis.axhspan
  span(-least, least, color='0.93', lw=0, zorder=0)
  # A small margin, because a curve on the frame is invisible.
  getattr(axis, f'set_{along}lim')(-least / 3, end)
  # Fixed ticks, because the default ticks overlap on the linear part.
  powers = np.arange(np.ceil(np.log10(least)), np.log10(max(end, least)) + 1e-9)
  decades = 10.0 ** powers[:: len(powers) // 6 + 1]
  getattr(axis, f'set_{along}ticks')([0, *decades])
  getattr(axis, f'{along}axis').set_minor_locator(NullLocator())
  return f'linear below {least:.2g}'


def split_at_zero(x: Any, *others: Any) -> list[np.ndarray]:
  """Return the arrays with a gap between x = 0 and x > 0.

  The scale of a `zero_and_log` axis changes in the gap, so that a straight line
  there would show values that were not measured.

  Example:
    >>> split_at_zero([0, 1, 2], [5, 6, 7])[1].tolist()
    [5.0, nan, 6.0, 7.0]
  """
  x = np.asarray(x, float)
  at = np.flatnonzero((x[:-1] == 0) & (x[1:] > 0)) + 1
  return [
    np.insert(np.asarray(values, float), at, np.nan) for values in (x, *others)
  ]


def legend_below(
  figure: Figure | SubFigure,
  entries: Mapping[str, Any] | None = None,
  *,
  title: str | None = None,
) -> Legend:
  """Put one legend under all panels, in as many columns as fit.

  The figure grows if the legend needs more than one line.

  Args:
    figure: figure or part of a figure.
    entries: label -> artist; None for each label in any panel.
    title: title of the legend; None for none.

  Raises:
    ValueError: if the part does not belong to a figure.
  """
  if entries is None:
    found = [a.get_legend_handles_labels() for a in figure.axes]
    entries = {
      label: handle
      for handles, labels in found
      for handle, label in zip(handles, labels, strict=True)
    }
  whole = figure.get_figure(root=True)
  if whole is None:
    raise ValueError('the part does not belong to a figure')
  renderer = FigureCanvasAgg(whole).get_renderer()
  width = figure.bbox.width
  letters = int(width / whole.dpi * 13)
  labels = [textwrap.fill(label, letters) for label in entries]
  for columns in range(len(labels), 0, -1):
    made = figure.legend(
      list(entries.values()),
      labels,
      loc='outside lower center',
      ncols=columns,
      title=title,
    )
    extent = made.get_window_extent(renderer)
    if extent.width < 0.98 * width or columns == 1:
      break
    made.remove()
  more = extent.height / whole.dpi - _LEGEND_ROOM
  if more > 0:
    whole.set_figheight(whole.get_figheight() + more)
  return made


def error_percent(fractions: Sequence[Any] | np.ndarray) -> np.ndarray:
  """Return the error in % from accuracies in [0, 1].

  Example:
    >>> error_percent([1.0, 0.975]).round(6).tolist()
    [0.0, 2.5]
  """
  return 100 * (1 - np.asarray(fractions, float))

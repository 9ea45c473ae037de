"""The small figure of an algorithm: who sends to whom, and a training loss.

Both panels are drawn from what the algorithm says of itself: the ledger's
entries of a few steps, and the record of a run.
"""

from collections.abc import Sequence
import io
import math
import pathlib
import re
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
import numpy as np

from experiments.running.records import writing
from experiments.tools import docs_costs, drawing
from experiments.tools.styles import HUES
import prsgd_jax as pr

# The colors of Okabe and Ito, for all kinds of color vision. Shapes differ
# too: bars join all replicas or a group, slanted lines two neighbors.
COLORS = {
  'all': HUES['blue'],
  'group': HUES['orange'],
  'neighbors': HUES['green'],
}
REFERENCE = '#AAAAAA'
# Text as text, and the same file for the same input.
SMALL: dict[Any, Any] = {
  'svg.hashsalt': 'prsgd_jax',
  'svg.fonttype': 'none',
  'font.sans-serif': ['DejaVu Sans'],
  'path.simplify': False,
}
Line = tuple[tuple[float, float], tuple[float, float]]
# Inches; text of 9 points is 10 pixels where the figure is 400 wide.
SIZE = (5.2, 2.3)
# Between the dots of two steps, where a message begins and ends.
SENT, RECEIVED = 0.22, 0.78
# Losses below are not told apart, because float32 rounds them.
LEAST_LOSS = 1e-6
# Letters of a legend that is as wide as its panel.
LONGEST_NAME = 20


class Curve(NamedTuple):
  """The training loss of a run.

  Attributes:
    label: in the legend.
    steps: [points].
    losses: [points].
  """

  label: str
  steps: Sequence[float]
  losses: Sequence[float]


def draw(
  path: pathlib.Path,
  costs: Sequence[pr.base.Work | pr.base.Traffic],
  num_replicas: int,
  curves: Sequence[Curve],
) -> None:
  """Draw the two panels side by side to a file.

  Args:
    path: of the SVG file.
    costs: the ledger's entries of an algorithm, over the steps to show.
    num_replicas: N.
    curves: the algorithm, and what to compare it with.
  """
  with drawing.look(), matplotlib.rc_context(SMALL):
    figure = Figure(figsize=SIZE)
    figure.subplots_adjust(
      left=0.075, right=0.985, bottom=0.2, top=0.965, wspace=0.46
    )
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_messages(left, costs, num_replicas)
    _draw_losses(right, curves)
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
  writing.write_text(path, _shorten(file.getvalue()))


def _shorten(text: str) -> str:
  """Return an SVG that looks the same, with less in it."""
  # A tenth of a point is enough, and the same on every machine.
  text = re.sub(r'(\d+\.\d)\d+(?=[^<>]*>)', r'\1', text)
  text = re.sub(r' transform="rotate\(-0 [^"]*"', '', text)
  return re.sub(r'\s*\n\s*', '\n', text)


def _draw_messages(
  axis: Axes, costs: Sequence[pr.base.Work | pr.base.Traffic], num_replicas: int
) -> None:
  """Dots where replicas take gradients, lines where they communicate."""
  active = [cost.active for cost in costs if isinstance(cost, pr.base.Work)]
  num_steps = len(active[0])
  lines: dict[tuple[str, bool], list[Line]] = {}
  for cost in costs:
    if isinstance(cost, pr.base.Traffic) and cost.bytes_sent:
      key = (docs_costs.kind(cost), is_late(cost))
      lines.setdefault(key, []).extend(lines_of(cost, num_replicas))
  for (found, late), drawn in lines.items():
    _draw_lines(axis, drawn, found, late)
  works = np.any(active, axis=0)
  _draw_dots(axis, np.ones_like(works), 'black', 3.2)
  _draw_dots(axis, ~works, 'white', 2.0)
  axis.set_xlim(0.3, num_steps + 1)
  axis.set_ylim(num_replicas - 0.5, -0.5)
  axis.set_xticks(range(2, num_steps + 1, 2))
  axis.set_yticks(range(num_replicas))
  axis.set_xlabel('step')
  axis.set_ylabel('replica')
  axis.grid(visible=False)


def _draw_dots(axis: Axes, mask: np.ndarray, color: str, width: float) -> None:
  """Draw round ends of lines without a length, smaller files than markers."""
  steps, replicas = np.nonzero(mask)
  x, y = (np.repeat(v, 3).astype(float) for v in (steps + 1, replicas))
  x[2::3] = np.nan
  axis.plot(x, y, color=color, lw=width, solid_capstyle='round', zorder=3)


def is_late(sent: pr.base.Traffic) -> bool:
  """Return whether nobody waits for a message, so that it may come late."""
  return isinstance(sent.waits, int) and sent.waits == 1


def lines_of(sent: pr.base.Traffic, num_replicas: int) -> list[Line]:
  """Return ((x, x), (y, y)) of the lines of all rounds of a stage.

  A bar is beside a step, across the replicas that average. A line to a neighbor
  runs from the sender's row to the receiver's. Random neighbors are
  one draw. Data-dependent rounds have no lines.

  Args:
    sent: of the ledger.
    num_replicas: N.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> lines_of(pr.mixing.traffic(pr.mixing.mean(), 4.0, 8, np.arange(1)), 8)
    [((1.5, 1.5), (-0.2, 7.2))]
  """
  generator = np.random.default_rng(0)
  found: list[Line] = []
  fires = () if sent.fires is None else np.flatnonzero(sent.fires).tolist()
  for turn, step in enumerate(fires):
    if docs_costs.kind(sent) == 'neighbors':
      x = (step + 1 + SENT, step + 1 + RECEIVED)
      links = _links(sent, turn, num_replicas, generator)
      found += [(x, (j, i)) for i, j in links]
      continue
    grouped = docs_costs.kind(sent) == 'group' and not is_late(sent)
    size = int(sent.waits) if grouped else num_replicas  # type: ignore[arg-type]
    for first in range(0, num_replicas, size):
      found.append(
        ((step + 1.5, step + 1.5), (first - 0.2, first + size - 0.8))
      )
  return found


def _draw_lines(
  axis: Axes, lines: Sequence[Line], found: str, late: bool
) -> None:
  """Draw the lines of one kind as one path, which keeps the file small."""
  x = [v for along, _ in lines for v in (*along, np.nan)]
  y = [v for _, across in lines for v in (*across, np.nan)]
  width = 0.7 if found == 'neighbors' else 2
  dashes: Any = (0, (2, 1)) if late else '-'
  axis.plot(
    x, y, lw=width, ls=dashes, color=COLORS[found], solid_capstyle='butt'
  )


def _links(
  sent: pr.base.Traffic,
  turn: int,
  num_replicas: int,
  generator: np.random.Generator,
) -> list[tuple[int, int]]:
  """(receiver, sender) of the messages of a round."""
  if isinstance(sent.waits, int):
    # Nobody waits, so that the ledger keeps no links: those of one more draw.
    sent = pr.mixing.traffic(
      pr.graphs.random_matching(), 4.0, num_replicas, np.arange(1)
    )
  senders = sent.waits(turn, generator)  # type: ignore[operator]
  if isinstance(senders, tuple):
    origin, begins = senders
    counts = np.diff(np.append(begins, len(origin)))
    receivers = np.repeat(np.arange(num_replicas), counts)
    pairs = zip(receivers, origin, strict=True)
  else:
    receivers = np.broadcast_to(np.arange(num_replicas), senders.shape)
    pairs = zip(receivers.ravel(), senders.ravel(), strict=True)
  return sorted({(int(i), int(j)) for i, j in pairs if i != j})


def wrapped(name: str) -> str:
  """Return a name that fits into the legend, on two lines if it is long.

  Example:
    >>> wrapped('natural_gradient_averaging')
    'natural_gradient_\\naveraging'
  """
  if len(name) <= LONGEST_NAME:
    return name
  first, _, last = name.rpartition('_')
  return f'{first}_\n{last}'


def _draw_losses(axis: Axes, curves: Sequence[Curve]) -> None:
  # The reference is wide, so that it shows where a curve covers it.
  looks: Sequence[dict[str, Any]] = (
    {'color': HUES['blue'], 'lw': 1.3},
    {'color': REFERENCE, 'lw': 3},
  )
  for (label, steps, losses), look in reversed([*zip(curves, looks)]):
    shown = np.maximum(losses, LEAST_LOSS)
    axis.plot(steps, shown, label=wrapped(label), **look)
  axis.set_yscale('log')
  axis.yaxis.set_major_locator(LogLocator(numticks=9))
  axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:g}'))
  axis.minorticks_off()
  low = max(LEAST_LOSS, min(min(losses) for _, _, losses in curves))
  # Above the first loss is room for the legend.
  axis.set_ylim(min(0.01, 10 ** math.floor(math.log10(low))), 10)
  axis.set_xticks((0, 200, 400, 600))
  axis.set_xlabel('step')
  axis.set_ylabel('training loss')
  handles, labels = axis.get_legend_handles_labels()
  axis.legend(
    handles[::-1], labels[::-1], loc='upper right', handlelength=1.2,
    borderpad=0.3, labelspacing=0.2, frameon=True,
  )  # fmt: skip

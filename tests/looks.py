"""Faults in the looks of a figure, found in its artists."""

import itertools
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
import numpy as np

from experiments.tools import drawing

# Pixels by which boxes may touch, because they are larger than their letters.
SLACK = 2


def faults(figure):
  """A line for each fault of a figure.

  Looked for are small text, text outside of the canvas or over other text,
  lines of a panel that look alike, and legends over points of their panel.
  """
  with drawing.look():
    texts, renderer = _drawn_texts(figure)
  return [
    *_small(texts),
    *_outside(figure, texts, renderer),
    *_overlapping(texts, renderer),
    *_alike(figure),
    *_covered(figure, renderer),
  ]


def _drawn_texts(figure):
  """The texts that get onto the canvas, which not all of a figure's do."""
  drawn = {}
  draw = Text.draw

  def recorded(text, renderer, *args, **kwargs):
    if text.get_visible() and text.get_text().strip():
      drawn[id(text)] = text
    return draw(text, renderer, *args, **kwargs)

  canvas = FigureCanvasAgg(figure)
  with mock.patch.object(Text, 'draw', recorded):
    canvas.draw()
  return list(drawn.values()), canvas.get_renderer()


def _small(texts):
  return [
    f'{text.get_text()!r} has {text.get_fontsize():g} points'
    for text in texts
    if text.get_fontsize() < drawing.LEAST_TEXT
  ]


def _outside(figure, texts, renderer):
  width, height = figure.bbox.width, figure.bbox.height
  boxes = [(text, text.get_window_extent(renderer)) for text in texts]
  return [
    f'{text.get_text()!r} is cut by the edge'
    for text, box in boxes
    if min(box.x0, box.y0, width - box.x1, height - box.y1) < -1
  ]


def _overlapping(texts, renderer):
  boxes = [text.get_window_extent(renderer) for text in texts]
  return [
    f'{one.get_text()!r} is over {other.get_text()!r}'
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes), 2)
    if min(a.x1, b.x1) - max(a.x0, b.x0) > SLACK
    and min(a.y1, b.y1) - max(a.y0, b.y0) > SLACK
  ]


def style(line):
  """Color, marker with its filling, and dash of a line."""
  hollow = line.get_markerfacecolor() == 'none' or line.get_fillstyle() == (
    'none'
  )
  return (
    line.get_color(), line.get_marker(), hollow, line.get_linestyle(),
    line.get_linewidth(),
  )  # fmt: skip


def named_lines(axis):
  """Label -> line, error bars included."""
  found = {line.get_label(): line for line in axis.lines}
  bars = [c for c in axis.containers if hasattr(c, 'has_yerr')]
  found |= {c.get_label(): c.lines[0] for c in bars if c.lines[0] is not None}
  return {k: line for k, line in found.items() if k[0] != '_'}


def _alike(figure):
  return [
    f'{one!r} looks like {other!r}'
    for axis in figure.axes
    for (one, a), (other, b) in itertools.combinations(
      named_lines(axis).items(), 2
    )
    if style(a) == style(b)
  ]


def _covered(figure, renderer):
  found = []
  for axis in figure.axes:
    if axis.get_legend() is None:
      continue
    box = axis.get_legend().get_window_extent(renderer)
    for line in axis.lines:
      points = _along(line)
      inside = ((points > (box.x0, box.y0)) & (points < (box.x1, box.y1))).all(
        axis=-1
      )
      if inside.any():
        found.append(f'the legend of {axis.get_ylabel()!r} is over points')
        break
  return found


def _along(line):
  """Points of the canvas along a line, or its markers."""
  points = line.get_transform().transform(line.get_xydata())
  if line.get_linestyle() == 'None' or len(points) < 2:
    return points
  place = np.linspace(0, len(points) - 1, 20 * len(points))
  at = np.arange(len(points))
  return np.stack([np.interp(place, at, side) for side in points.T], axis=-1)

"""T15: D-SGD as average-direction SAM, sharpness and test error by topology."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers import images
from experiments.papers.t15_average_direction_sam import (
  direction,
  minima,
  training,
)
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing


def _measure(setting: Setting) -> Outcome:
  """Train by every method, batch and rate; look at ends and at the ring."""
  num_images = training.NUM_TRAIN + training.NUM_CHOOSING
  train, test = images.load(setting, 'mnist', num_images)
  choosing = images.Examples(*(x[training.NUM_TRAIN :] for x in train))
  train = images.Examples(*(x[: training.NUM_TRAIN] for x in train))
  network = images.Network(training.HIDDEN)
  ends: list[dict[str, Any]] = []
  turns: list[dict[str, Any]] = []
  for batch in training.RATES:
    for method in training.METHODS:
      points = training.train(network, train, method, batch)
      splits = (train, choosing, test)
      ends += minima.measure(network, splits, points, method, batch)
      if method == 'ring':
        turns += direction.measure(network, train, points, batch)
  claims = [*direction.claims(turns), *minima.claims(ends)]
  return Outcome(claims, {'ends': ends, 'turns': turns}, training.SEEDS)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw cosines along the run, and sharpness and test error by rate."""
  figure.set_size_inches(drawing.WIDTH, 4.2)
  left, middle, right = figure.subplots(1, 3)
  direction.draw(data['turns'], left)
  minima.draw(data['ends'], middle, right)
  drawing.legend_below(figure)


TARGET = Target(
  name='t15_average_direction_sam',
  title='D-SGD as average-direction SAM: direction, sharpness, test error',
  paper='Zhu, He, Chen, Song, Tao 2023 (arXiv 2306.02913)',
  measure=_measure,
  draw=_draw,
)

"""T4: DPSGD against SSGD at large batch and learning rate, Zhang et al. 2021.

The CPU scale trains an MLP on raw pixels of MNIST at a total batch of 2000. The
full scale is the only row of the table of Zhu et al. 2023 that needs no
pretrained weights.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers.t04_dpsgd_large_rate import full, trace, window
from experiments.papers.t04_dpsgd_large_rate.mnist import (
  NUM_STEPS,
  SEEDS,
  Pixels,
)
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing


def _measure(setting: Setting) -> Outcome:
  if setting.scale != 'cpu':
    return full.measure(setting)
  pixels = Pixels(setting.data_dir)
  ends, path = window.measure(pixels), trace.measure(pixels)
  data = {
    'steps': list(range(window.EVERY, NUM_STEPS + 1, window.EVERY)),
    'window': ends,
    'trace': path,
  }
  return Outcome([*window.claims(ends), *trace.claims(path)], data, SEEDS)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  if 'full' in data:
    full.draw(data['full'], figure)
    return
  figure.set_size_inches(drawing.WIDTH, 8)
  parts: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
  above, below = parts
  window.draw(data['window'], data['steps'], above)
  trace.draw(data['trace'], below)


TARGET = Target(
  name='t04_dpsgd_large_rate',
  title='DPSGD against SSGD at large batch and learning rate',
  paper=(
    'Zhang et al. 2021 (arXiv 2112.01433); at full scale Zhu et al. 2023 '
    '(arXiv 2306.02913)'
  ),
  measure=_measure,
  draw=_draw,
  scales=('cpu', 'full'),
)

"""T12: the guarantees of compressors, and their savings in training."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers.t12_compression import codes, resnet, training
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing


def _measure(setting: Setting) -> Outcome:
  if setting.scale != 'cpu':
    return resnet.measure(setting)
  drawn, kept = codes.measure()
  trained, claims = training.measure(setting)
  data = {'drawn': drawn, 'kept': kept, **trained}
  return Outcome([*codes.claims(drawn, kept), *claims], data, training.SEEDS)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  if 'resnet' in data:
    resnet.draw(data['resnet'], figure)
    return
  figure.set_size_inches(drawing.WIDTH, 4)
  parts: Any = figure.subfigures(1, 2, width_ratios=(1, 2))
  left, right = parts
  codes.draw(data['drawn'], left.subplots())
  training.draw(data, right.subplots(1, 2))
  drawing.legend_below(left)
  drawing.legend_below(right)


TARGET = Target(
  name='t12_compression',
  title='Compressors: bias, variance, and training at equal bytes',
  paper='Alistarh et al. 2017 (arXiv 1610.02132), Wen et al. 2017 (arXiv '
  '1705.07878), Stich, Cordonnier, Jaggi 2018 (arXiv 1809.07599), Bernstein et '
  'al. 2019 (arXiv 1810.05291)',
  measure=_measure,
  draw=_draw,
  scales=('cpu', 'full'),
)

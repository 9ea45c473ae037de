"""T11: the rounds FedAvg needs, by the work of a client in each round."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers.t11_fedavg import cnn, softmax
from experiments.papers.target import Outcome, Setting, Target


def _measure(setting: Setting) -> Outcome:
  scale = softmax if setting.scale == 'cpu' else cnn
  return scale.measure(setting)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  if 'cnn' in data:
    cnn.draw(data['cnn'], figure)
  else:
    softmax.draw(data, figure)


TARGET = Target(
  name='t11_fedavg',
  title='FedAvg: rounds against the work of a client, like and unlike data',
  paper='McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017 (arXiv '
  '1602.05629); on the CPU softmax regression on 4000 images of MNIST at 14 x '
  '14 pixels',
  measure=_measure,
  draw=_draw,
  scales=('cpu', 'full'),
)

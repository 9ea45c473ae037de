"""T5: Hier-AVG, the size of its groups and the period of their averages."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers import images
from experiments.papers.t05_hier_avg import full, k_avg, orders, training
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing


def _measure(setting: Setting) -> Outcome:
  """Train with every K1 and S, and with K-AVG."""
  if setting.scale != 'cpu':
    return full.measure(setting)
  data = images.load(setting, 'mnist')
  trained = {
    name: training.train(make, *data)
    for name, make in training.methods().items()
  }
  noise = [orders.drift_of_noise(*pair) for pair in training.PAIRS]
  shown = {'rates': training.ORDER_RATES, 'trained': trained, 'noise': noise}
  claims = [*orders.claims(trained, noise), *k_avg.claims(trained)]
  return Outcome(claims, shown, training.SEEDS)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw losses, drift and its law; at full scale, error against cost."""
  if 'curves' in data:
    full.draw(data['curves'], figure)
    return
  figure.set_size_inches(drawing.WIDTH, 6.5)
  axes = figure.subplot_mosaic(
    [['loss K1', 'loss S', 'law'], ['drift K1', 'drift S', 'law']]
  )
  orders.draw(data, axes)
  drawing.legend_below(figure)


TARGET = Target(
  name='t05_hier_avg',
  title='Hier-AVG: period and size of the groups',
  paper='Zhou, Cong 2019 (arXiv 1903.05133); Zhou, Cong 2018 (arXiv '
  '1708.01012); on the CPU an MLP of 32 on MNIST at 14 x 14 pixels, batches '
  'of 4',
  measure=_measure,
  draw=_draw,
  scales=('cpu', 'full'),
)

"""T3: when averaging helps, after Zhang, De Sa, Mitliagkas, Re 2016.

Replicas draw from one pool. They are averaged with probability zeta at each
step, and once more at the end. On convex problems frequent averages pay where
the variance of the gradient grows with the distance from the optimum. On other
problems they pay where several optima exist.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.papers.t03_when_averaging_helps import (
  least_squares,
  starts,
  two_optima,
  variance_law,
)
from experiments.papers.t03_when_averaging_helps.chance import SEEDS
from experiments.papers.target import Outcome, Setting, Target
from prsgd_jax.science import laws


def _measure(setting: Setting) -> Outcome:
  law = variance_law.measure()
  optima = two_optima.measure()
  regression = least_squares.measure()
  lenet = starts.measure(setting)
  claims = [
    *variance_law.claims(law),
    *two_optima.claims(optima),
    least_squares.claim(regression),
    starts.claim(lenet),
  ]
  data = {
    'law': law,
    'two_optima': optima,
    'one_shot': laws.one_shot_quartic(two_optima.NUM_REPLICAS),
    'regression': regression,
    'lenet': lenet,
  }
  return Outcome(claims, data, SEEDS)


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  figure.set_size_inches(10, 7.5)
  axes = figure.subplots(2, 2)
  variance_law.draw(data['law'], axes[0, 0])
  two_optima.draw(data['two_optima'], data['one_shot'], axes[0, 1])
  least_squares.draw(data['regression'], axes[1, 0])
  starts.draw(data['lenet'], axes[1, 1])


TARGET = Target(
  name='t03_when_averaging_helps',
  title='When averaging helps: variance, several optima, starts',
  paper='Zhang, De Sa, Mitliagkas, Re 2016 (arXiv 1606.07365)',
  measure=_measure,
  draw=_draw,
)

"""Problems with two optima, on which one average at the end fails."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import (
  All,
  Either,
  Ref,
  at_most,
  every,
  within,
)
from experiments.papers.quantities import Measurement, by_case, number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t03_when_averaging_helps.chance import (
  SEEDS,
  averaging,
  probability_axis,
  signs,
  standard_error,
)
from experiments.tools import styles
from prsgd_jax.science import laws

NUM_REPLICAS = 24
PROBABILITIES = {'quartic': (0.0, 0.001, 0.01), 'pca': (0.0, 0.005, 0.05)}
COPIES = {'quartic': 100, 'pca': 25}
QUARTIC_STEPS, PCA_STEPS = 4000, 1500
SPECTRUM = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1)
ONE_SHOT_TOLERANCE, SOLVED = 0.03, 0.05


def measure() -> dict[str, list[dict[str, float]]]:
  """Measure the loss of the mean that is left, by problem and zeta."""
  problems = {'quartic': _quartic, 'pca': _pca}
  found: dict[str, list[dict[str, float]]] = {}
  for name, problem in problems.items():
    found[name] = []
    for zeta in PROBABILITIES[name]:
      by_seed = problem(zeta).mean(axis=1, dtype=np.float64)
      found[name].append(
        {
          'probability': zeta,
          'measured': float(by_seed.mean()),
          'error': standard_error(by_seed),
        }
      )
  return found


def _quartic(probability: float) -> np.ndarray:
  """Return f(wbar) at the end, [seeds, copies]; f(w) = (w^2 - 1)^2, from 0."""

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    (noise,) = signs(key, w.shape, 1)
    return ((w**2 - 1) ** 2 - noise * w).sum()

  last = simulate(
    lambda rate: averaging(rate, probability, QUARTIC_STEPS),
    (0.02,),
    SEEDS,
    loss_fn=loss,
    start=jnp.zeros(COPIES['quartic']),
    num_replicas=NUM_REPLICAS,
    num_steps=QUARTIC_STEPS,
    observe=lambda w: w.mean(axis=0),
    every=QUARTIC_STEPS,
  )[0, :, 0]
  return (last**2 - 1) ** 2


def _pca(probability: float) -> np.ndarray:
  """Return (f(wbar) - f*) / (f(0) - f*), [seeds, copies].

  f(w) = |A - w w'|^2 / 4, where A is the covariance of the examples. Both +v
  and -v are optimal; v is the first eigenvector times the root of its
  eigenvalue. Every replica starts from its own small random point.
  """
  scale = jnp.sqrt(jnp.asarray(SPECTRUM))
  shape = (COPIES['pca'], len(SPECTRUM))

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    x = scale * jax.random.normal(key, shape)
    return ((w**2).sum(-1) ** 2 / 4 - (x * w).sum(-1) ** 2 / 2).sum()

  last = simulate(
    lambda rate: averaging(rate, probability, PCA_STEPS),
    (0.01,),
    SEEDS,
    loss_fn=loss,
    start=lambda key: 0.1 * jax.random.normal(key, (NUM_REPLICAS, *shape)),
    num_replicas=NUM_REPLICAS,
    num_steps=PCA_STEPS,
    observe=lambda w: w.mean(axis=0),
    every=PCA_STEPS,
    per_replica=True,
  )[0, :, 0]
  spectrum = np.array(SPECTRUM)
  value = (last**2).sum(-1) ** 2 / 4 - (spectrum * last**2).sum(-1) / 2
  return 1 + 4 * value / spectrum.max() ** 2


def claims(found: Mapping[str, Any]) -> list[Claim]:
  """Judge one average at the end, and rare averages."""
  return [
    _claim(
      found['quartic'],
      'f(w) = (w^2 - 1)^2 from 0: one average at the end leaves the derived '
      f'loss for {NUM_REPLICAS} replicas; averages with a probability >= 0.001 '
      'leave about 0.',
      DERIVED,
    ),
    _claim(
      found['pca'],
      'PCA, where +v and -v are optimal: one average at the end fails, and '
      'rare averages are enough.',
      f'{STATED}; {DERIVED}: the remaining loss is the loss of the quartic',
    ),
  ]


def _claim(
  points: Sequence[Mapping[str, float]], text: str, source: str
) -> Claim:
  once, *often = (f'zeta = {p["probability"]:g}' for p in points)
  left, derived = 'fraction of the loss at 0', 'derived fraction'
  fails = within(Ref(left, once), Ref(derived, ''), absolute=ONE_SHOT_TOLERANCE)
  solved = every(at_most(left, SOLVED), often)
  return Claim(
    text=text,
    source=source,
    measured={
      derived: number(laws.one_shot_quartic(NUM_REPLICAS)),
      left: by_case(
        {
          f'zeta = {p["probability"]:g}': Measurement(
            p['measured'], error=p['error']
          )
          for p in points
        }
      ),
    },
    rule=Rule(All((fails, solved)), Either((fails, solved))),
    setting='With zeta = 0, the only average is at the end; ± is the standard '
    'error over the seeds.',
  )


def draw(found: Mapping[str, Any], one_shot: float, ax: Axes) -> None:
  """Draw the loss of the mean against zeta, as points because they are few."""
  names = {'quartic': '$(w^2 - 1)^2$', 'pca': 'PCA'}
  looks = styles.categories(list(names))
  for (name, label), size in zip(names.items(), (8, 4), strict=True):
    points = found[name]
    ax.errorbar(
      [p['probability'] for p in points],
      [p['measured'] for p in points],
      [p['error'] for p in points],
      fmt=looks[name].marker,
      color=looks[name].color,
      ms=size,
      label=label,
    )
  ax.axhline(one_shot, color='k', ls=':', lw=1, label='derived, one average')
  probability_axis(ax, 1e-3)
  ax.set(
    ylabel='loss of the mean / loss at 0',
    title='Two optima',
    ylim=(-0.05, 1.05),
  )
  ax.legend(loc='center right')

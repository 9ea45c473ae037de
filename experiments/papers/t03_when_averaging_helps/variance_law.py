"""The limit of the variance on a quadratic with noisy curvature."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import All, Ref, at_most, every, within
from experiments.papers.quantities import (
  Measurement,
  Quantity,
  by_case,
  number,
)
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

# The law's constants, and the tolerance.
LAW: dict[str, Any] = {
  'num_replicas': 8,
  'learning_rate': 0.1,
  'curvature': 1.0,
  'sigma_squared': 1.0,
}
# At most 6, because w has no fourth moment from 7 on where averages are rare:
# ((1 - alpha c + alpha beta)^4 + (1 - alpha c - alpha beta)^4) / 2 reaches 1.
# Means of w^2 then converge too slowly to be compared with the law.
PROBABILITIES = {
  6.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  3.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  0.0: (0.0, 1.0),
}
STEPS, BURN_IN, COPIES = 16000, 500, 250
TOLERANCE, ERRORS = 0.03, 3


def measure() -> list[dict[str, Any]]:
  """Measure and derive lim E[wbar^2] for every beta^2 and zeta."""
  return [
    _point(beta_squared, zeta)
    for beta_squared, probabilities in PROBABILITIES.items()
    for zeta in probabilities
  ]


def _point(beta_squared: float, zeta: float) -> dict[str, Any]:
  beta, sigma = beta_squared**0.5, LAW['sigma_squared'] ** 0.5

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    b, h = signs(key, w.shape, 2)
    return ((LAW['curvature'] - beta * b) * w**2 / 2 - sigma * h * w).sum()

  squares = simulate(
    lambda rate: averaging(rate, zeta, STEPS),
    (LAW['learning_rate'],),
    SEEDS,
    loss_fn=loss,
    start=jnp.zeros(COPIES),
    num_replicas=int(LAW['num_replicas']),
    num_steps=STEPS,
    observe=lambda w: (w.mean(axis=0) ** 2).mean(),
    every=10,
  )[0]
  by_seed = squares[:, BURN_IN // 10 :].mean(axis=1, dtype=np.float64)
  derived = laws.averaged_quadratic_variance(
    probability=zeta, beta_squared=beta_squared, **LAW
  )
  return {
    'beta_squared': beta_squared,
    'probability': zeta,
    'measured': float(by_seed.mean()),
    'error': standard_error(by_seed),
    'derived': derived,
  }


def claims(points: Sequence[Mapping[str, Any]]) -> list[Claim]:
  """Judge the law where the noise of the gradient grows, and where not."""
  noisy = {
    f'beta^2 = {p["beta_squared"]:g}, zeta = {p["probability"]:g}': p
    for p in points
    if p['beta_squared'] > 0
  }
  flat = {
    f'zeta = {p["probability"]:g}': p for p in points if p['beta_squared'] == 0
  }
  ends = [p['measured'] for p in flat.values()]
  square, law, apart = 'E wbar^2', 'the law', 'difference between the cases'
  return [
    Claim(
      text='Averaging more often lowers the variance where the variance of the '
      'gradient grows with the distance: lim E wbar^2 = (alpha sigma^2 / M) / '
      '(2 c - alpha c^2 - alpha beta^2 theta).',
      source=f'{STATED}; the formula is {DERIVED}',
      measured={square: _measured(noisy), law: _derived(noisy)},
      rule=Rule(
        every(within(square, Ref(law), relative=TOLERANCE)),
        every(within(square, Ref(law), relative=TOLERANCE, errors=ERRORS)),
      ),
      setting=f'c = 1, alpha = {LAW["learning_rate"]}, sigma^2 = 1, M = '
      f'{LAW["num_replicas"]}, noise of random signs; ± is the standard error '
      'over the seeds.',
      note='An earlier run had beta^2 = 10, where w has no fourth moment if '
      'averages are rare. Its means of w^2 had not converged.',
    ),
    Claim(
      text='With beta = 0, the number of averages does not matter.',
      source=DERIVED,
      measured={
        apart: number(100 * abs(ends[0] / ends[-1] - 1), '%'),
        square: _measured(flat),
        law: _derived(flat),
      },
      rule=Rule(
        All(
          (
            at_most(apart, 0.1),
            every(within(square, Ref(law), relative=TOLERANCE)),
          )
        )
      ),
      setting='The noise is the same in both cases.',
    ),
  ]


def _measured(points: Mapping[str, Mapping[str, Any]]) -> Quantity:
  return by_case(
    {k: Measurement(p['measured'], error=p['error']) for k, p in points.items()}
  )


def _derived(points: Mapping[str, Mapping[str, Any]]) -> Quantity:
  return by_case({k: p['derived'] for k, p in points.items()})


def draw(points: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  """Draw the variance of the mean against zeta, measured and by the law."""
  # Dense on the linear part of the axis too because the law bends there.
  zeta = np.concatenate([np.linspace(0, 1e-2, 30), np.geomspace(1e-2, 1, 100)])
  for beta_squared, color in styles.ordinal(PROBABILITIES).items():
    law = [
      laws.averaged_quadratic_variance(
        probability=z, beta_squared=beta_squared, **LAW
      )
      for z in zeta
    ]
    own = [p for p in points if p['beta_squared'] == beta_squared]
    ax.plot(zeta, law, color=color)
    ax.errorbar(
      [p['probability'] for p in own],
      [p['measured'] for p in own],
      [p['error'] for p in own],
      fmt='o',
      color=color,
      label=rf'$\beta^2$ = {beta_squared:g}',
    )
  ax.plot([], [], color='black', label='law')
  probability_axis(ax, 1e-2)
  ax.set(
    ylabel=r'$\lim\ E[\bar w^2]$',
    title='Quadratic, noisy curvature',
    ylim=(0, 0.012),
  )
  ax.legend(loc='upper right', ncols=2)

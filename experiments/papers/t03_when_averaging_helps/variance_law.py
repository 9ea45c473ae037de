"""The limit of the variance on a quadratic with noisy curvature."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from experiments.papers.simulation import simulate
from experiments.papers.t03_when_averaging_helps.chance import (
  SEEDS,
  averaging,
  probability_axis,
  signs,
  standard_error,
)
from experiments.papers.target import Claim, verdict
from experiments.tools import styles
from prsgd_jax.science import laws

# The law's constants, and how closely it is to be met.
LAW: dict[str, Any] = {
  'num_replicas': 8,
  'learning_rate': 0.1,
  'curvature': 1.0,
  'sigma_squared': 1.0,
}
PROBABILITIES = {
  10.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  5.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  0.0: (0.0, 1.0),
}
STEPS, BURN_IN, COPIES = 16000, 500, 250
TOLERANCE, ERRORS = 0.03, 3


def measure() -> list[dict[str, Any]]:
  """lim E[wbar^2] for every beta^2 and zeta, measured and derived."""
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
  """The law where the gradient's noise grows, and where it does not."""
  noisy = [p for p in points if p['beta_squared'] > 0]
  close = [_deviation(p) <= TOLERANCE for p in noisy]
  likely = [
    abs(p['measured'] - p['derived']) <= ERRORS * p['error'] for p in noisy
  ]
  shown = [
    f'beta^2 = {p["beta_squared"]:g}, zeta = {p["probability"]:g}: '
    f'{p["measured"]:.5f} ± {p["error"]:.5f} for {p["derived"]:.5f}'
    for p in noisy
  ]
  flat = [p for p in points if p['beta_squared'] == 0]
  apart = abs(flat[0]['measured'] / flat[-1]['measured'] - 1)
  return [
    Claim(
      "averaging more often lowers the variance where the gradient's grows "
      'with the distance [S]; lim E wbar^2 = (alpha sigma^2 / M) / (2 c - '
      'alpha c^2 - alpha beta^2 theta) [derived]',
      '; '.join(shown) + ' (± standard error over seeds)',
      verdict(
        all(close),
        partly=all(a or b for a, b in zip(close, likely, strict=True)),
      ),
      f'rule: all within {TOLERANCE:.0%}; partly if those that are not are '
      f'within {ERRORS} standard errors (with beta^2 = 10 and few averages '
      'w has no fourth moment, so that means of w^2 converge slowly). c = 1, '
      f'alpha = {LAW["learning_rate"]}, sigma^2 = 1, M = '
      f'{LAW["num_replicas"]}, noise of random signs',
    ),
    Claim(
      'with beta = 0 it does not matter how often one averages [derived]',
      f'{flat[0]["measured"]:.6f} at zeta = {flat[0]["probability"]:g}, '
      f'{flat[-1]["measured"]:.6f} at zeta = {flat[-1]["probability"]:g}, for '
      f'{flat[0]["derived"]:.6f}',
      verdict(apart <= 1e-3 and max(map(_deviation, flat)) <= TOLERANCE),
      'rule: 0.1 % apart at most (the noise is the same), and within '
      f'{TOLERANCE:.0%} of the law',
    ),
  ]


def _deviation(point: Mapping[str, Any]) -> float:
  return abs(point['measured'] / point['derived'] - 1)


def draw(points: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  """The variance of the mean against zeta, measured and by the law."""
  # Dense on the linear part of the axis too, because the law bends there.
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
    ylim=(0, 0.02),
  )
  ax.legend(loc='upper right', ncols=2)

"""Which convex problems gain by frequent averages: many least squares."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
from scipy import stats

from experiments.papers.simulation import simulate
from experiments.papers.t03_when_averaging_helps.chance import (
  SEEDS,
  averaging,
)
from experiments.papers.target import Claim, verdict
from experiments.tools import styles

# What the ratio is made of, and the learning rates tried.
KURTOSES = (1.0, 4.0)
DISTANCES = (1.0, 10.0)
LABEL_NOISES = (0.1, 1.0, 10.0, 100.0)
DIMENSION, COPIES = 10, 20
STEPS, REPLICAS = 300, 8
RATES = tuple(np.geomspace(3e-4, 0.2, 14).tolist())


def measure() -> list[dict[str, Any]]:
  """Least squares: averages at each step against one, for many problems.

  y = x'w* + noise, x = u z with z standard normal and u^2 of mean 1 and second
  moment k: the gradient x x'(w - w*) - x noise at one example has beta^2 =
  (d + 2) k - 1 and sigma^2 = d Var(noise) exactly.
  """
  problems = np.array(
    list(itertools.product(KURTOSES, DISTANCES, LABEL_NOISES))
  )
  kurtosis, distance, noise = problems.T
  d = DIMENSION
  shape = (len(problems), COPIES, d)
  wide, label_noise = (jnp.asarray(v)[:, None] for v in (kurtosis, noise))
  direction = np.full(d, d**-0.5)
  # Of w - w*, whose optimum is 0.
  start = jnp.asarray(distance[:, None, None] * direction) * jnp.ones(shape)

  def loss(e: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    z_key, u_key, y_key = jax.random.split(key, 3)
    # u^2 is k with probability 1 / k, otherwise 0.
    present = jax.random.uniform(u_key, shape[:2]) * wide < 1
    u = jnp.sqrt(wide) * present
    x = u[..., None] * jax.random.normal(z_key, shape)
    miss = (x * e).sum(-1) - label_noise * jax.random.normal(y_key, shape[:2])
    return (miss**2).sum() / 2

  def final(probability: float) -> np.ndarray:
    errors = simulate(
      lambda rate: averaging(rate, probability, STEPS),
      RATES,
      SEEDS[:1],
      loss_fn=loss,
      start=start,
      num_replicas=REPLICAS,
      num_steps=STEPS,
      observe=lambda e: (e.mean(axis=0) ** 2).sum(-1),
      every=STEPS,
    )[:, 0, 0]
    return np.where(np.isfinite(errors), errors, np.inf)  # [K, P, copies]

  once, always = final(0.0), final(1.0)
  found = []
  for p, (k, start_distance, s) in enumerate(problems.tolist()):
    best = [int(e[:, p].mean(axis=1).argmin()) for e in (once, always)]
    pair = [e[b, p] for e, b in zip((once, always), best, strict=True)]
    beta_squared, sigma_squared = (d + 2) * k - 1, d * s**2
    found.append(
      {
        'beta_squared': beta_squared,
        'sigma_squared': sigma_squared,
        'distance': start_distance,
        'ratio': beta_squared * start_distance**2 / sigma_squared,
        'rates': [RATES[b] for b in best],
        'once': float(pair[0].mean()),
        'always': float(pair[1].mean()),
        'gain': float(pair[0].mean() / pair[1].mean()),
      }
    )
  return sorted(found, key=lambda row: row['ratio'])


def claim(found: Sequence[Mapping[str, Any]]) -> Claim:
  """The gain follows beta^2 |w0 - w*|^2 / sigma^2."""
  ratios, gains = (np.array([r[n] for r in found]) for n in ('ratio', 'gain'))
  ranked = float(stats.spearmanr(ratios, gains).statistic)
  small = gains[ratios <= 0.01]
  large = gains[ratios >= 100]
  separate = small.max() < 1.25 and large.min() > 2
  return Claim(
    'for convex f frequent averages pay where beta^2 |w0 - w*|^2 / sigma^2 is '
    'large, and not where it is small [S]',
    f'rank correlation of that ratio with the gain (error with one average / '
    f'with one at each step) {ranked:.2f} over {len(found)} problems; gain '
    f'{small.min():.2f} to {small.max():.2f} where it is <= 0.01, '
    f'{large.min():.1f} to {large.max():.3g} where it is >= 100',
    verdict(ranked >= 0.9 and bool(separate), partly=ranked >= 0.7),
    'rule: rank correlation >= 0.9, gain < 1.25 for ratios <= 0.01 and > 2 for '
    'ratios >= 100; partly if the correlation is >= 0.7. Least squares, '
    f'E|wbar - w*|^2 after {STEPS} steps of '
    f'{REPLICAS} replicas; learning rate of each method and problem '
    f'the best of {len(RATES)} from {RATES[0]:g} to {RATES[-1]:g}',
  )


def draw(found: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  """The gain against the ratio, for every problem."""
  colors = styles.ordinal(r['beta_squared'] for r in found)
  kinds = sorted({(r['beta_squared'], r['distance']) for r in found})
  nearest = min(distance for _, distance in kinds)
  for kind in kinds:
    own = [r for r in found if (r['beta_squared'], r['distance']) == kind]
    near = kind[1] == nearest
    ax.plot(
      [r['ratio'] for r in own],
      [r['gain'] for r in own],
      'o' if near else 's',
      color=colors[kind[0]],
      ms=4 if near else 8,
      mfc=colors[kind[0]] if near else 'none',
      label=rf'$\beta^2$ = {kind[0]:g}, $|w_0 - w^*|$ = {kind[1]:g}',
    )
  ax.axhline(1, color='k', lw=0.5)
  ax.set(
    xlabel=r'$\beta^2\, |w_0 - w^*|^2 / \sigma^2$',
    ylabel='error, one average / every step',
    title='Least squares, tuned learning rates',
    xscale='log',
    yscale='log',
  )
  ax.legend()

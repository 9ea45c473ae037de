"""Least-squares problems that gain from frequent averages."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
from scipy import stats

from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import All, above, at_least, below
from experiments.papers.quantities import number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t03_when_averaging_helps.chance import (
  SEEDS,
  averaging,
)
from experiments.tools import styles

# The factors of the ratio, and the learning rates tried.
KURTOSES = (1.0, 4.0)
DISTANCES = (1.0, 10.0)
LABEL_NOISES = (0.1, 1.0, 10.0, 100.0)
DIMENSION, COPIES = 10, 20
STEPS, REPLICAS = 300, 8
RATES = tuple(np.geomspace(3e-4, 0.2, 14).tolist())


def measure() -> list[dict[str, Any]]:
  """Compare averages at each step with one average, for many problems.

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
        'at_edge': any(b in (0, len(RATES) - 1) for b in best),
        'once': float(pair[0].mean()),
        'always': float(pair[1].mean()),
        'gain': float(pair[0].mean() / pair[1].mean()),
      }
    )
  return sorted(found, key=lambda row: row['ratio'])


def claim(found: Sequence[Mapping[str, Any]]) -> Claim:
  """Judge whether the gain follows beta^2 |w0 - w*|^2 / sigma^2."""
  ratios, gains = (np.array([r[n] for r in found]) for n in ('ratio', 'gain'))
  ranked = float(stats.spearmanr(ratios, gains).statistic)
  small, large = gains[ratios <= 0.01], gains[ratios >= 100]
  most = 'largest gain at ratios up to 0.01'
  least = 'smallest gain at ratios from 100'
  correlation = 'rank correlation of ratio and gain'
  at_edge = [row['ratio'] for row in found if row['at_edge']]
  return Claim(
    text='For convex f, frequent averages pay where the ratio beta^2 '
    '|w0 - w*|^2 / sigma^2 is large, and not where it is small.',
    source=STATED,
    measured={
      correlation: number(ranked),
      'smallest gain at ratios up to 0.01': number(small.min()),
      most: number(small.max()),
      least: number(large.min()),
      'largest gain at ratios from 100': number(large.max()),
      'problems': number(len(found)),
      'of them with a best rate at the edge': number(len(at_edge)),
    },
    rule=Rule(
      All((at_least(correlation, 0.9), below(most, 1.25), above(least, 2))),
      at_least(correlation, 0.7),
    ),
    setting='The gain is E |wbar - w*|^2 with one average over that with an '
    f'average at each step, after {STEPS} steps of {REPLICAS} replicas on '
    f'least squares; means over {COPIES} independent copies. Each method and '
    f'problem has the best of {len(RATES)} learning rates from {RATES[0]:g} to '
    f'{RATES[-1]:g}.',
    note=_told(at_edge),
  )


def _told(at_edge: Sequence[float]) -> str:
  """Return what a best rate at the edge does to the rule."""
  if not at_edge:
    return ''
  ratios = ', '.join(f'{ratio:.2g}' for ratio in at_edge)
  return (
    f'The best rate is at the edge of the grid for the ratios {ratios}. Where '
    'it is the lowest one, the noise is so large that steps only add to the '
    'error: both methods then hardly move, and a gain near 1 says little.'
  )


def draw(found: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  """Draw the gain against the ratio for every problem."""
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
    ylabel='error with one average / at every step',
    title='Least squares, tuned learning rates',
    xscale='log',
    yscale='log',
  )
  ax.legend()

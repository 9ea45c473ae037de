"""The effective learning rate, the noises and the sharpness along two runs."""

from collections.abc import Mapping
from typing import Any

import jax
from matplotlib.figure import SubFigure
import numpy as np

from experiments.papers.t04_dpsgd_large_rate.mnist import (
  LOOKS,
  NUM_STEPS,
  RING,
  TASK,
  TOTAL_BATCH,
  Pixels,
  loss,
  train,
)
from experiments.papers.target import Claim, verdict
from experiments.tools import drawing, styles
from prsgd_jax.science import landscape

RATE, REPLICAS, EVERY = 1.25, 16, 15
FULL_BATCHES, SHARPNESS_EXAMPLES = 10, 500
ROUGH, CALM = 1.0, 0.5
GRAD = jax.grad(loss)
EFFECTIVE = r'$\alpha_e / \alpha$'


def measure(pixels: Pixels) -> dict[str, Any]:
  """alpha_e, the noises and the largest eigenvalue along two runs."""
  found = {}
  for method in ('SSGD', RING):
    points = train(pixels, method, REPLICAS, (RATE,), lambda p: p, EVERY)
    points = jax.tree.map(lambda x: x[0, 0], points)
    found[method] = [
      _point(pixels, jax.tree.map(lambda x, k=k: x[k], points), k)
      for k in range(NUM_STEPS // EVERY)
    ]
  return found


def _point(pixels: Pixels, points: Any, index: int) -> dict[str, float]:
  key = jax.random.fold_in(jax.random.key(1, impl='threefry2x32'), index)
  own_key, full_key, sharp_key = jax.random.split(key, 3)

  def batches(key: jax.Array, count: int, size: int) -> Any:
    keys = jax.random.split(key, count)
    return jax.vmap(lambda k: pixels.draw(k, size))(keys)

  own_size = TOTAL_BATCH // REPLICAS
  step = landscape.effective_step(
    GRAD,
    points,
    batches(own_key, REPLICAS, own_size),
    batches(full_key, FULL_BATCHES, 1000),
    key,
    learning_rate=RATE,
  )
  mean = jax.tree.map(lambda x: x.mean(axis=0), points)
  curvature = landscape.curvature(
    GRAD,
    mean,
    pixels.draw(sharp_key, SHARPNESS_EXAMPLES),
    key,
    tolerance=0.05,
    max_iterations=12,
  )
  values = TASK.eval_fn(mean, {}, pixels.held_out)
  return {
    'step': (index + 1) * EVERY,
    'loss': float(values['loss'].mean()),
    'alpha_e': step.learning_rate / RATE,
    'ssgd_noise': step.ssgd_noise,
    'landscape_noise': step.landscape_noise,
    'sharpness': curvature.sharpness,
    'residual': curvature.residual,
  }


def claims(found: Mapping[str, Any]) -> list[Claim]:
  """What DPSGD does to its own steps in the rough part of the landscape."""
  points = found[RING]
  alpha = np.array([p['alpha_e'] for p in points])
  loss = np.array([p['loss'] for p in points])
  sharpness = np.array([p['sharpness'] for p in points])
  ratio = np.array([p['landscape_noise'] / p['ssgd_noise'] for p in points])
  rough, calm = loss > ROUGH, loss < CALM
  where = (
    f'DPSGD, ring, n = {REPLICAS}, alpha = {RATE:g}, every '
    f'{EVERY} steps; grad L from {FULL_BATCHES * 1000} examples'
  )
  phases = (
    f'{rough.sum()} points with a loss > {ROUGH:g}, {calm.sum()} < {CALM:g}'
  )
  quarter = len(alpha) // 4
  lowest, late = float(alpha.min()), float(np.median(alpha[-quarter:]))
  dips = lowest < 0.7 and int(alpha.argmin()) < len(alpha) - quarter
  rough_ratio, calm_ratio = _median(ratio, rough), _median(ratio, calm)
  sharp_rough, sharp_calm = _median(sharpness, rough), _median(sharpness, calm)
  above = RATE * sharp_rough > 2
  return [
    Claim(
      'the effective learning rate alpha_e falls in rough parts of the '
      'landscape and recovers [S]',
      f'alpha_e / alpha: lowest {lowest:.2f} at step '
      f'{points[int(alpha.argmin())]["step"]}, median of the last quarter '
      f'{late:.2f}',
      verdict(dips and late > 0.9, partly=dips and late > lowest + 0.2),
      'rule: below 0.7 before the last quarter, whose median is above 0.9; '
      f'partly if that is 0.2 above the lowest. {where}',
    ),
    Claim(
      'the noise that depends on the landscape, Delta_2, is much larger than '
      'that of SSGD, Delta_S, in the rough phase alone [S]',
      f'median Delta_2 / Delta_S {rough_ratio:.2f} in the rough phase, '
      f'{calm_ratio:.2f} in the calm one ({phases})',
      verdict(
        rough_ratio > 5 and calm_ratio < 1,
        partly=rough_ratio > 2 * calm_ratio,
      ),
      'rule: above 5 where rough, below 1 where calm; partly if twice as large '
      f'where rough. {where}',
    ),
    Claim(
      'the largest eigenvalue of the Hessian is above 2 / alpha, where '
      'gradient descent is unstable, in the rough phase alone [derived]',
      f'median {sharp_rough:.2f} in the rough phase, {sharp_calm:.2f} in the '
      f'calm one, 2 / alpha = {2 / RATE:g}; along the run of SSGD '
      f'{np.median([p["sharpness"] for p in found["SSGD"]]):.2f}',
      verdict(above and RATE * sharp_calm < 2, partly=sharp_rough > sharp_calm),
      'rule: medians on either side; partly if larger where rough. '
      f'{SHARPNESS_EXAMPLES} examples, power iterations to a residual of at '
      f'most {max(p["residual"] for p in points):.2f}. {where}',
    ),
  ]


def _median(values: np.ndarray, where: np.ndarray) -> float:
  return float(np.median(values[where])) if where.any() else float('nan')


def draw(found: Mapping[str, Any], figure: SubFigure) -> None:
  """alpha_e and the sharpness of both runs; the noises of the ring."""
  left, middle, right = figure.subplots(1, 3)
  steps = [p['step'] for p in found[RING]]
  for method in ('SSGD', RING):
    for axis, key in ((left, 'alpha_e'), (middle, 'sharpness')):
      values = [p[key] for p in found[method]]
      drawing.curve(axis, steps, values, LOOKS[method], label=method)
  left.set_ylabel(EFFECTIVE)
  middle.axhline(2 / RATE, color='k', lw=1, ls=':', label=r'$2 / \alpha$')
  middle.set_ylabel('largest eigenvalue')
  drawing.log(middle, 'y')
  for axis in (left, middle):
    axis.set_title(f'learning rate {RATE:g}, n = {REPLICAS}')
  names = {
    'ssgd_noise': r'$\Delta_S$',
    'landscape_noise': r'$\Delta_2$',
    'loss': 'loss, nats',
  }
  for key, style in styles.categories(list(names)).items():
    values = [p[key] for p in found[RING]]
    drawing.curve(right, steps, values, style, label=names[key])
  right.set(ylabel='noise, or loss', title='DPSGD, ring', yscale='log')
  for axis in (left, middle, right):
    axis.set_xlabel('steps')
  drawing.legend_below(figure)

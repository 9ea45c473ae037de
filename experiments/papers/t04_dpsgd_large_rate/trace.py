"""The effective learning rate, the noises and the sharpness along two runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.figure import SubFigure
import numpy as np

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import All, Ref, above, below
from experiments.papers.quantities import number
from experiments.papers.rules import Rule
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
from experiments.tools import drawing, styles
from prsgd_jax.science import landscape

RATE, REPLICAS, EVERY = 1.25, 16, 15
FULL_BATCHES, SHARPNESS_EXAMPLES = 10, 500
ROUGH, CALM = 1.0, 0.5
GRAD = jax.grad(loss)
EFFECTIVE = r'$\alpha_e / \alpha$'


def measure(pixels: Pixels) -> dict[str, Any]:
  """Measure alpha_e, the noises and the largest eigenvalue along two runs."""
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
  """Judge the steps of DPSGD in the rough part of the landscape."""
  points = found[RING]
  loss = np.array([p['loss'] for p in points])
  rough, calm = loss > ROUGH, loss < CALM
  where = (
    f'DPSGD on the ring, n = {REPLICAS}, alpha = {RATE:g}, every {EVERY} '
    f'steps; grad L from {FULL_BATCHES * 1000} examples.'
  )
  phases = (
    f'Medians over {rough.sum()} points with a loss > {ROUGH:g} (rough) and '
    f'{calm.sum()} points with a loss < {CALM:g} (calm). {where}'
  )
  return [
    _step_claim(points, where),
    _noise_claim(points, rough, calm, phases),
    _sharpness_claim(found, rough, calm, phases),
  ]


def _step_claim(points: Sequence[Mapping[str, float]], where: str) -> Claim:
  alpha = np.array([p['alpha_e'] for p in points])
  quarter = len(alpha) // 4
  lowest, late = float(alpha.min()), float(np.median(alpha[-quarter:]))
  step = points[int(alpha.argmin())]['step']
  last = points[len(alpha) - quarter]['step']
  least, end = 'lowest alpha_e / alpha', 'median of the last quarter'
  at, rise = 'step of the lowest', 'median minus lowest'
  dips = (below(least, 0.7), below(at, Ref('first step of the last quarter')))
  return Claim(
    text='The effective learning rate alpha_e falls in rough parts of the '
    'landscape and recovers.',
    source=STATED,
    measured={
      least: number(lowest),
      at: number(step),
      'first step of the last quarter': number(last),
      end: number(late),
      rise: number(late - lowest),
    },
    rule=Rule(All((*dips, above(end, 0.9))), All((*dips, above(rise, 0.2)))),
    setting=where,
  )


def _noise_claim(
  points: Sequence[Mapping[str, float]],
  rough: np.ndarray,
  calm: np.ndarray,
  phases: str,
) -> Claim:
  ratio = np.array([p['landscape_noise'] / p['ssgd_noise'] for p in points])
  first, second = 'rough Delta_2 / Delta_S', 'calm Delta_2 / Delta_S'
  return Claim(
    text='The landscape-dependent noise Delta_2 is much larger than the noise '
    'of SSGD, Delta_S, in the rough phase only.',
    source=STATED,
    measured={
      first: number(_median(ratio, rough)),
      second: number(_median(ratio, calm)),
    },
    rule=Rule(
      All((above(first, 5), below(second, 1))),
      above(first, Ref(second, times=2)),
    ),
    setting=phases,
  )


def _sharpness_claim(
  found: Mapping[str, Any], rough: np.ndarray, calm: np.ndarray, phases: str
) -> Claim:
  points = found[RING]
  sharpness = np.array([p['sharpness'] for p in points])
  residual = max(p['residual'] for p in points)
  first, second = 'rough eigenvalue', 'calm eigenvalue'
  limit = '2 / alpha'
  return Claim(
    text='The largest eigenvalue of the Hessian is above 2 / alpha, where '
    'gradient descent is unstable, in the rough phase only.',
    source=DERIVED,
    measured={
      first: number(_median(sharpness, rough)),
      second: number(_median(sharpness, calm)),
      limit: number(2 / RATE),
      'eigenvalue along the run of SSGD': number(
        np.median([p['sharpness'] for p in found['SSGD']])
      ),
    },
    rule=Rule(
      All((above(first, Ref(limit)), below(second, Ref(limit)))),
      above(first, Ref(second)),
    ),
    setting=f'Lanczos iterations on {SHARPNESS_EXAMPLES} examples to a '
    f'residual of at most {residual:.2f}. {phases}',
  )


def _median(values: np.ndarray, where: np.ndarray) -> float:
  return float(np.median(values[where])) if where.any() else float('nan')


def draw(found: Mapping[str, Any], figure: SubFigure) -> None:
  """Draw alpha_e and the sharpness of both runs, and the noises of the ring."""
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
  right.set(ylabel='noise or loss', title='DPSGD, ring', yscale='log')
  for axis in (left, middle, right):
    axis.set_xlabel('steps')
  drawing.legend_below(figure)

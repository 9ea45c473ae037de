"""Learning rates that train, of DPSGD, SSGD and methods between them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
import numpy as np

from experiments.papers import resampling
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Either,
  Ref,
  above,
  at_least,
  at_most,
  every,
  some,
)
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.t04_dpsgd_large_rate.mnist import (
  CONTROLS,
  LOOKS,
  METHODS,
  NUM_STEPS,
  PAIRS,
  RING,
  SEEDS,
  TASK,
  TOTAL_BATCH,
  WARMUP,
  Pixels,
  train,
)
from experiments.tools import drawing

EVERY = 5
REPLICAS, RATES = 16, (1.25, 1.5)
# Limits of the final loss, which is 2.3 by chance.
FAILED, TRAINED = 2.0, 1.0
# Seeds that a method must train to be called reliable, and to be called failed.
MOST, FEW = 0.75 * len(SEEDS), 0.25 * len(SEEDS)
COUNT = f'seeds that trained, of {len(SEEDS)}'


def measure(pixels: Pixels) -> dict[str, Any]:
  """Train; return the loss of the mean model by method, rate and seed."""

  def observe(params: Any) -> jax.Array:
    mean = jax.tree.map(lambda x: x.mean(axis=0), params)
    return TASK.eval_fn(mean, {}, pixels.held_out)['loss'].mean()

  found: dict[str, Any] = {}
  for method in METHODS:
    # One replica with the total batch is SSGD, and faster.
    n = 1 if method.startswith('SSGD') else REPLICAS
    losses = train(pixels, method, n, RATES, observe, EVERY)
    found[method] = [[_finite(curve) for curve in own] for own in losses]
  return found


def _finite(curve: np.ndarray) -> list[float | None]:
  return [float(v) if np.isfinite(v) else None for v in curve]


def _final(curve: Sequence[float | None]) -> float:
  """Return the mean over the last tenth; infinity if the run diverged."""
  last = curve[-len(curve) // 10 :]
  return float(np.mean([np.inf if v is None else v for v in last]))


def claims(found: Mapping[str, Any]) -> list[Claim]:
  """Judge DPSGD where SSGD fails, and the controls."""
  ends = _ends(found)
  return [_window_claim(ends), _controls_claim(ends)]


def _ends(found: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  """Return the final losses by case and method, one for each seed."""
  return {
    _case(rate): {
      method: np.array([_final(curve) for curve in curves[i]])
      for method, curves in found.items()
    }
    for i, rate in enumerate(RATES)
  }


def _case(rate: float) -> str:
  return f'rate {rate:g}'


def trained(losses: np.ndarray) -> np.ndarray:
  """Return 1 for each seed whose final loss shows training, else 0.

  Multiplied by the number of seeds, so that the mean is the count.
  """
  return (losses < TRAINED) * 1.0 * len(losses)


def _window_claim(ends: Mapping[str, Mapping[str, np.ndarray]]) -> Claim:
  methods = ('SSGD', RING, PAIRS)
  counts = {
    f'{method}: {COUNT}': by_case(
      {case: trained(own[method]) for case, own in ends.items()}
    )
    for method in methods
  }
  losses = {
    f'loss of {method}': by_case(
      {case: own[method] for case, own in ends.items()}, 'nats'
    )
    for method in methods
  }
  ssgd, *ours = counts
  order = {
    f'pairs of seeds in which {method} is lower than SSGD': by_case(
      {
        case: resampling.in_order(own[method], own['SSGD'])
        for case, own in ends.items()
      }
    )
    for method in methods[1:]
  }
  trains = [
    some(All((at_least(name, MOST), at_most(ssgd, FEW)))) for name in ours
  ]
  more = [some(above(name, Ref(ssgd))) for name in ours]
  return Claim(
    text='At large batch and learning rate, DPSGD often converges where SSGD '
    'diverges.',
    source=STATED,
    measured={**counts, **losses, **order},
    rule=Rule(Either(tuple(trains)), Either(tuple(more))),
    setting=f'MLP 784-50-50-10, n = {REPLICAS}, total batch '
    f'{TOTAL_BATCH}, {NUM_STEPS} steps. The final loss is the mean over the '
    'last tenth of the steps on 1000 test images. A seed trained if it is '
    f'below {TRAINED:g} nat; by chance the loss is 2.3.',
  )


def _controls_claim(ends: Mapping[str, Mapping[str, np.ndarray]]) -> Claim:
  names = ('SSGD', RING, PAIRS, *CONTROLS)
  counts = {
    f'{COUNT}, at rate {rate:g}': by_case(
      {name: trained(ends[_case(rate)][name]) for name in names}
    )
    for rate in RATES
  }
  losses = {
    f'final loss at rate {rate:g}': by_case(
      {name: ends[_case(rate)][name] for name in names}, 'nats'
    )
    for rate in RATES
  }
  low, high = counts
  dense = 'W = J, order A', 'PR-SGD, I = 4'
  return Claim(
    text='A sparse graph is not needed: full averages of parameters whose '
    'gradients are not averaged (W = J in order A, PR-SGD) train where SSGD '
    'does not.',
    source=f'{OURS}: controls',
    measured={**counts, **losses},
    rule=Rule(
      All(tuple(every(at_least(count, MOST), dense) for count in (low, high))),
      Either(
        tuple(
          some(
            All((at_least(count, MOST), above(count, Ref(count, 'SSGD')))),
            dense,
          )
          for count in (low, high)
        )
      ),
    ),
    setting=f'n = {REPLICAS}. W = J in order A averages the parameters of '
    'all replicas in each step. The warm-up of SSGD is linear over '
    f'{WARMUP} steps.',
    note='An earlier run had one seed and the verdict yes at rate 1.5.',
  )


def draw(
  found: Mapping[str, Any], steps: Sequence[int], figure: SubFigure
) -> None:
  """Draw the seeds that trained, and the loss along the runs."""
  left, right = figure.subplots(1, 2)
  _draw_counts(_ends(found), left)
  _draw_curves(found, steps, right)
  drawing.legend_below(figure)


def _draw_counts(
  ends: Mapping[str, Mapping[str, np.ndarray]], ax: Axes
) -> None:
  """Draw the number of seeds that trained, a group of points for each case."""
  methods = list(METHODS)
  for k, method in enumerate(methods):
    own = [
      (i + (k - len(methods) / 2) / (1.5 * len(methods)), losses[method])
      for i, losses in enumerate(ends.values())
    ]
    ax.plot(
      [x for x, _ in own],
      [trained(losses).mean() for _, losses in own],
      **LOOKS[method]._replace(linestyle='none')._asdict(),
      label=method,
    )
  ax.set_xticks(range(len(ends)), list(ends))
  ax.set(
    ylabel=COUNT,
    ylim=(-0.5, len(SEEDS) + 0.5),
    title=f'{NUM_STEPS} steps, n = {REPLICAS}, total batch {TOTAL_BATCH}',
  )


def _draw_curves(
  methods: Mapping[str, Any], steps: Sequence[int], ax: Axes
) -> None:
  """Draw the median over the seeds, because the seeds train or do not."""
  for method, curves in methods.items():
    values = np.nan_to_num(np.array(curves[-1], float), nan=np.inf)
    drawing.curve(ax, steps, np.median(values, axis=0), LOOKS[method])
  drawing.log(ax, 'y')
  ax.set(
    xlabel='steps',
    ylabel='test loss of the mean, nats\n(median of the seeds)',
    title=f'learning rate {RATES[-1]:g}, n = {REPLICAS}',
  )

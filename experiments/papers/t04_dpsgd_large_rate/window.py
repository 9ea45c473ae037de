"""Learning rates that train, of DPSGD, SSGD and methods between them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
import numpy as np

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import (
  All,
  Either,
  Ref,
  above,
  below,
  every,
  some,
)
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.t04_dpsgd_large_rate.mnist import (
  CONTROLS,
  LOOKS,
  METHODS,
  NUM_STEPS,
  RING,
  TASK,
  TOTAL_BATCH,
  WEIGHT_NOISE,
  Pixels,
  train,
)
from experiments.tools import drawing

EVERY = 5
RATES = (0.2, 1.0, 1.25, 1.5)
# Two rates are enough for the controls: all train at 1, SSGD does not at 1.5.
CONTROL_RATES = (1.0, 1.5)
# No pairs with five replicas, because one of them would be left over.
COMPARED = {16: tuple(METHODS), 5: ('SSGD', RING)}
# Limits of the final loss, which is 2.3 by chance.
FAILED, TRAINED = 2.0, 1.0


def measure(pixels: Pixels) -> dict[str, dict[str, Any]]:
  """Train; return the loss of the mean model by replicas, method and rate."""

  def observe(params: Any) -> jax.Array:
    mean = jax.tree.map(lambda x: x.mean(axis=0), params)
    return TASK.eval_fn(mean, {}, pixels.held_out)['loss'].mean()

  found: dict[str, dict[str, Any]] = {}
  for n, methods in COMPARED.items():
    found[str(n)] = {}
    for method in methods:
      rates = CONTROL_RATES if method in CONTROLS else RATES
      losses = train(pixels, method, n, rates, observe, EVERY)[:, 0]
      curves = [_finite(curve) for curve in losses]
      found[str(n)][method] = {'rates': list(rates), 'curves': curves}
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
  losses = {
    f'loss of {method}': by_case(own, 'nats') for method, own in ends.items()
  }
  return [_window_claim(losses), _controls_claim(losses)]


def _ends(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """Return the final losses, by method and by case."""
  ends: dict[str, dict[str, float]] = {method: {} for method in METHODS}
  for n, methods in found.items():
    for method, run in methods.items():
      for rate, curve in zip(run['rates'], run['curves'], strict=True):
        ends[method][_case(n, rate)] = _final(curve)
  return ends


def _case(n: Any, rate: float) -> str:
  return f'n = {n}, rate {rate:g}'


def _window_claim(losses: Mapping[str, Quantity]) -> Claim:
  ssgd = 'loss of SSGD'
  ours = [name for name in losses if name.startswith('loss of DPSGD')]
  large = [_case(n, rate) for n in COMPARED for rate in RATES if rate >= 1]
  return Claim(
    text='At large batch and learning rate, DPSGD often converges where SSGD '
    'diverges.',
    source=STATED,
    measured={ssgd: losses[ssgd], **{name: losses[name] for name in ours}},
    rule=Rule(
      Either(
        tuple(
          some(All((above(ssgd, FAILED), below(name, TRAINED))))
          for name in ours
        )
      ),
      Either(
        tuple(
          some(
            below(name, Ref(ssgd, times=0.8)),
            [case for case in large if case in losses[name].cases],
          )
          for name in ours
        )
      ),
    ),
    setting=f'MLP 784-50-50-10, total batch {TOTAL_BATCH}, {NUM_STEPS} steps; '
    'mean over the last tenth of the steps on 1000 test images; one seed.',
  )


def _controls_claim(losses: Mapping[str, Quantity]) -> Claim:
  cases = {rate: _case(16, rate) for rate in CONTROL_RATES}
  names = {rate: f'final loss at rate {rate:g}' for rate in CONTROL_RATES}
  loss, averaged = names[CONTROL_RATES[-1]], CONTROLS[:3]
  return Claim(
    text='Controls: what matters is that the gradients are not averaged; a '
    'sparse graph is not needed.',
    source=f'{DERIVED}, from a trial',
    measured={
      names[rate]: by_case(
        {m: losses[f'loss of {m}'].cases[case] for m in (*CONTROLS, 'SSGD')},
        'nats',
      )
      for rate, case in cases.items()
    },
    rule=Rule(
      every(below(loss, TRAINED), averaged),
      some(below(loss, TRAINED), averaged),
    ),
    setting='n = 16. W = J in order A averages the parameters of all '
    'replicas. The noisy SSGD adds noise with a standard deviation of '
    f'{WEIGHT_NOISE} to every weight; it was not tuned.',
    note='One start is weak evidence at this rate. In a run of 300 steps from '
    'another start, PR-SGD and the random pairs stayed at 2.30 and the other '
    'methods trained. That run was compiled with YNNPACK, whose sums may be '
    'wrong.',
  )


def draw(
  found: Mapping[str, Any], steps: Sequence[int], figure: SubFigure
) -> None:
  """Draw the final loss against the rate, and the loss along the runs."""
  left, right = figure.subplots(1, 2)
  _draw_ends(found, steps[-1], left)
  _draw_curves(found['16'], steps, right)
  drawing.legend_below(figure)


def _draw_ends(found: Mapping[str, Any], num_steps: int, ax: Axes) -> None:
  for n, methods in found.items():
    for method, run in methods.items():
      # No line for a control, because its two rates are too far apart.
      few, most = method in CONTROLS, n == '16'
      dash = 'none' if few else '-' if most else '--'
      ends = [_final(curve) for curve in run['curves']]
      ax.plot(
        run['rates'],
        ends,
        **LOOKS[method]._replace(linestyle=dash)._asdict(),
        fillstyle='full' if most else 'none',
        label=method if most else f'{method}, n = {n}',
      )
  drawing.log(ax, 'y')
  ax.set(
    xlabel='learning rate',
    ylabel='test loss at the end, nats',
    title=f'{num_steps} steps, total batch {TOTAL_BATCH}, n = 16 or 5',
  )


def _draw_curves(
  methods: Mapping[str, Any], steps: Sequence[int], ax: Axes
) -> None:
  for method, run in methods.items():
    values = [np.nan if v is None else v for v in run['curves'][-1]]
    drawing.curve(ax, steps, values, LOOKS[method])
  drawing.log(ax, 'y')
  ax.set(
    xlabel='steps',
    ylabel='test loss of the mean, nats',
    title=f'learning rate {run["rates"][-1]:g}, n = 16',
  )

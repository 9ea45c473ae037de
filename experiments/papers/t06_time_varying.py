"""T6: PR-SGD's Algorithm 2, whose epochs grow while its steps shrink."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import sigmoid
from experiments.papers.simulation import simulate
from experiments.papers.target import (
  Claim,
  Outcome,
  Setting,
  Target,
  verdict,
)
from experiments.tools import drawing, styles
import prsgd_jax as pr

SEEDS = (0, 1, 2, 3, 4)
REPLICAS = (1, 4)
# Where the sums over the run are read; the last is the length of the run.
LENGTHS = tuple(int(t) for t in np.round(np.geomspace(1e4, 1e6, 9), -2))
EVERY = 10
SLOPE, ROUNDS = -0.5, 0.75
SLOPE_TOLERANCE, ROUNDS_TOLERANCE, RATIO_TOLERANCE = 0.1, 0.05, 0.15


def measure(setting: Setting) -> Outcome:
  """One run of each N: the choices of Algorithm 2 do not depend on T."""
  del setting
  problem = sigmoid.make_problem()
  rows = [_run(problem, n) for n in REPLICAS]
  claims = [*_slope_claims(rows), _rounds_claim(rows), _ratio_claim(rows)]
  return Outcome(claims, {'lengths': LENGTHS, 'rows': rows}, SEEDS)


def slope(lengths: Sequence[int], values: np.ndarray) -> np.ndarray:
  """Of log values over log lengths: least squares, values [..., P]."""
  x = np.log(lengths) - np.log(lengths).mean()
  return np.log(values) @ x / (x @ x)


def epochs_of(num_replicas: int, num_steps: int) -> int:
  """The least S whose epochs last for so many steps or more."""
  # Epochs are no shorter than one step, and no longer than those of N = 1.
  most = pr.schedules.theory_schedule(num_replicas, num_steps).epoch_lengths
  return int(np.searchsorted(np.cumsum(most), num_steps)) + 1


def _run(problem: sigmoid.Problem, n: int) -> dict[str, Any]:
  """Errors and rounds until each of the lengths.

  gamma^s is in units of 1 / L: that of a loss f / L, whose L is 1.
  """
  num_steps = LENGTHS[-1]
  theory = pr.schedules.theory_schedule(n, epochs_of(n, num_steps))
  gamma = theory.learning_rate(np.arange(num_steps))
  # The same numbers from a table: no search for the epoch in every step.
  table = jnp.asarray(gamma / problem.smoothness, jnp.float32)
  algorithm = pr.pr_sgd_time_varying(
    optax.sgd(lambda step: table[step]), epoch_lengths=theory.epoch_lengths
  )
  start = -problem.minimizer
  centers = simulate(
    lambda setting: algorithm,
    (0.0,),
    SEEDS,
    loss_fn=sigmoid.sampled_loss(problem),
    start=jnp.asarray(start, jnp.float32),
    num_replicas=n,
    num_steps=num_steps,
    observe=lambda x: x.mean(axis=0),
    every=EVERY,
  )[0]
  # The error before each of the steps 0, EVERY, 2 EVERY, ...
  begins = np.broadcast_to(start, (len(SEEDS), 1, len(start)))
  points = np.concatenate([begins, centers[:, :-1]], axis=1)
  errors = np.square(sigmoid.gradient(problem, points)).sum(axis=-1)
  rounds = _rounds(algorithm, n, num_steps)
  weights = gamma[::EVERY]
  return {
    'n': n,
    'weighted': [
      (errors[:, :k] @ weights[:k] / weights[:k].sum()).tolist()
      for k in (t // EVERY for t in LENGTHS)
    ],
    'last_half': [
      errors[:, k // 2 : k].mean(axis=1).tolist()
      for k in (t // EVERY for t in LENGTHS)
    ],
    'rounds': [int(rounds[t - 1]) for t in LENGTHS],
    'longest_epoch': int(max(theory.epoch_lengths)),
  }


def _rounds(
  algorithm: pr.base.ReplicaTransformation, n: int, num_steps: int
) -> np.ndarray:
  """int[T], averages done after each step, as the ledger has them."""
  shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
  costs = algorithm.cost(shapes, n, np.arange(num_steps))
  sent = (c.fires for c in costs if isinstance(c, pr.base.Traffic))
  (fires,) = (f for f in sent if f is not None)
  return np.cumsum(fires)


def _slope_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
  last, last_off = _slopes(rows, 'last_half')
  weighted, weighted_off = _slopes(rows, 'weighted')
  lengths = np.array(LENGTHS, float)
  with_log = float(slope(LENGTHS, np.log(lengths) / np.sqrt(lengths)))
  rule = f'within {SLOPE_TOLERANCE} of -1/2, fitted over T = 1e4 to 1e6'
  return [
    Claim(
      says='Algorithm 2 with K^s = floor(s^(1/3) / N), gamma^s = N / s^(2/3): '
      'E abs(grad f(xbar))^2 falls as T^(-1/2) (choices as such, slope '
      'derived; at least 1 local step and gamma^s <= 1 / L are ours)',
      measured=f'slopes of the mean over the last half of T steps: {last}',
      reproduced=verdict(
        last_off < SLOPE_TOLERANCE, last_off < 2 * SLOPE_TOLERANCE
      ),
      tried=f'{rule}; gamma^s in units of 1 / L',
    ),
    Claim(
      says='and so does its mean over the whole run, weighted by gamma '
      '(derived, but for a factor log T that the sum of gamma^2 has)',
      measured=f'slopes: {weighted}',
      reproduced=verdict(
        weighted_off < SLOPE_TOLERANCE, weighted_off < 2 * SLOPE_TOLERANCE
      ),
      tried=f'{rule}. The early, long steps weigh most here: log T / sqrt(T) '
      f'has a slope of {with_log:.3f} over the same T',
    ),
  ]


def _slopes(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[str, float]:
  """The slopes of an error, in words, and how far the worst is off."""
  found = [slope(LENGTHS, np.array(row[key]).T) for row in rows]
  shown = '; '.join(
    f'N = {row["n"]}: {_spread(s)}' for row, s in zip(rows, found, strict=True)
  )
  return shown, max(abs(s.mean() - SLOPE) for s in found)


def _rounds_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  slopes = {
    r['n']: float(slope(LENGTHS, np.array(r['rounds'], float))) for r in rows
  }
  off = max(abs(s - ROUNDS) for s in slopes.values())
  shown = '; '.join(
    f'N = {r["n"]}: T^{slopes[r["n"]]:.3f}, {r["rounds"][-1]} averages in '
    f'{LENGTHS[-1]} steps, of (4NT/3)^(3/4) '
    f'{r["rounds"][-1] / (4 * r["n"] * LENGTHS[-1] / 3) ** 0.75:.2f} times'
    for r in rows
  )
  return Claim(
    says='with N^(3/4) T^(3/4) averages, up to a constant (derived)',
    measured=shown,
    reproduced=verdict(off < ROUNDS_TOLERANCE, off < 2 * ROUNDS_TOLERANCE),
    tried=f'exponent within {ROUNDS_TOLERANCE} of 3/4, fitted over T = 1e4 to '
    '1e6; what the floor takes from K^s counts for less as it grows, and '
    'later for a larger N',
  )


def _ratio_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  one, four = (np.array(r['last_half'][-1]) for r in rows)
  ratio = one.mean() / four.mean()
  expected = np.sqrt(rows[1]['n'] / rows[0]['n'])
  spread = np.ptp(one / four) / 2
  return Claim(
    says='and as N^(-1/2): a linear speed-up (derived)',
    measured=f'error of N = 1 over that of N = 4 at T = {LENGTHS[-1]}, last '
    f'half: {ratio:.2f} (± {spread:.2f} over seeds); expected {expected:g}',
    reproduced=verdict(abs(ratio / expected - 1) < RATIO_TOLERANCE, ratio > 1),
    tried=f'within {RATIO_TOLERANCE:.0%} of it',
  )


def _spread(values: np.ndarray) -> str:
  return f'{values.mean():.3f} (± {np.ptp(values) / 2:.3f})'


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Errors and averages against T, with the slopes of the theory."""
  left, right = figure.subplots(1, 2)
  lengths = np.array(data['lengths'], float)
  looks = styles.variants(
    'pr_sgd_time_varying', [row['n'] for row in data['rows']]
  )
  theory = {'color': 'black', 'lw': 1, 'zorder': 1}
  for row in data['rows']:
    name = f'N = {row["n"]}'
    style = looks[row['n']]._replace(linestyle='none')
    for key, what in (
      ('weighted', 'weighted by $\\gamma$'),
      ('last_half', 'last half'),
    ):
      hollow = key == 'last_half'
      label = f'{name}, {what}'
      drawing.spread(left, lengths, row[key], style, label=label, hollow=hollow)
    last = np.mean(row['last_half'][-1])
    left.plot(lengths, last * (lengths / lengths[-1]) ** SLOPE, **theory)
    right.plot(lengths, row['rounds'], **style._asdict(), label=name)
    rounds = row['rounds'][-1] * (lengths / lengths[-1]) ** ROUNDS
    right.plot(lengths, rounds, **theory)
  left.plot([], [], **theory, label='∝ $T^{-1/2}$, through the last point')
  right.plot([], [], **theory, label='∝ $T^{3/4}$, through the last point')
  right.plot(lengths, lengths, 'k:', lw=1, label='every step')
  for axes, what in ((left, 'mean of |∇f(x̄)|²'), (right, 'averages')):
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('T, steps')
    axes.set_ylabel(what)
    axes.legend()
  # Room for the legend.
  left.set_ylim(top=2 * left.get_ylim()[1])


TARGET = Target(
  name='t06_time_varying',
  title='Algorithm 2 of PR-SGD: growing epochs, shrinking steps',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), Algorithm 2 and its theorem; '
  'sigmoid loss, 128 examples in 5 dimensions',
  measure=measure,
  draw=draw,
)

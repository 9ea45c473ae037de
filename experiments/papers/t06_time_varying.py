"""T6: PR-SGD's Algorithm 2, with growing epochs and shrinking steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import sigmoid
from experiments.papers.claims import DERIVED, OURS, STATED, Claim
from experiments.papers.conditions import All, Ref, above, every, within
from experiments.papers.quantities import (
  Quantity,
  by_case,
  number,
  of_seeds,
)
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr

SEEDS = (0, 1, 2, 3, 4)
REPLICAS = (1, 4)
# Steps at which the sums over the run are read; the last is its length.
LENGTHS = tuple(int(t) for t in np.round(np.geomspace(1e4, 1e6, 9), -2))
EVERY = 10
SLOPE, ROUNDS = -0.5, 0.75
SLOPE_TOLERANCE, ROUNDS_TOLERANCE, RATIO_TOLERANCE = 0.1, 0.05, 0.15
# The error of replicas that are never averaged, relative to Algorithm 2, from
# which the epochs matter. Otherwise any number of averages would pass.
MATTERS = 2.0


def measure(setting: Setting) -> Outcome:
  """Run once for each N; the choices of Algorithm 2 do not depend on T."""
  del setting
  problem = sigmoid.make_problem()
  rows = [_run(problem, n) for n in REPLICAS]
  never = _run(problem, max(REPLICAS), averaged=False)
  claims = [
    *_slope_claims(rows, never),
    _rounds_claim(rows),
    _ratio_claim(rows),
  ]
  data = {'lengths': LENGTHS, 'rows': rows, 'never': never}
  return Outcome(claims, data, SEEDS)


def slope(lengths: Sequence[int], values: np.ndarray) -> np.ndarray:
  """Fit log values [..., P] over log lengths by least squares."""
  x = np.log(lengths) - np.log(lengths).mean()
  return np.log(values) @ x / (x @ x)


def epochs_of(num_replicas: int, num_steps: int) -> int:
  """Return the smallest number of epochs with at least `num_steps` steps."""
  # Epochs are no shorter than one step, and no longer than those of N = 1.
  most = pr.schedules.theory_schedule(num_replicas, num_steps).epoch_lengths
  return int(np.searchsorted(np.cumsum(most), num_steps)) + 1


def _run(
  problem: sigmoid.Problem, n: int, *, averaged: bool = True
) -> dict[str, Any]:
  """Measure errors and rounds until each of the lengths.

  Every replica has examples of its own. If `averaged` is False, the whole run
  is one epoch. gamma^s is in units of 1 / L, because the loss f / L has a
  smoothness of 1.
  """
  num_steps = LENGTHS[-1]
  theory = pr.schedules.theory_schedule(n, epochs_of(n, num_steps))
  gamma = theory.learning_rate(np.arange(num_steps))
  # A table, because a search for the epoch in every step would be slow.
  table = jnp.asarray(gamma / problem.smoothness, jnp.float32)
  algorithm = pr.pr_sgd_time_varying(
    optax.sgd(lambda step: table[step]),
    epoch_lengths=theory.epoch_lengths if averaged else [num_steps],
  )
  start = -problem.minimizer
  centers = simulate(
    lambda setting: algorithm,
    (0.0,),
    SEEDS,
    loss_fn=sigmoid.own_sampled_loss(problem, n),
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
  """Return the averages done after each step by the ledger, int[T]."""
  shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
  costs = algorithm.cost(shapes, n, np.arange(num_steps))
  sent = (c.fires for c in costs if isinstance(c, pr.base.Traffic))
  (fires,) = (f for f in sent if f is not None)
  return np.cumsum(fires)


def _slope_claims(
  rows: Sequence[Mapping[str, Any]], never: Mapping[str, Any]
) -> list[Claim]:
  lengths = np.array(LENGTHS, float)
  with_log = float(slope(LENGTHS, np.log(lengths) / np.sqrt(lengths)))
  fitted = f'Fitted over T = {LENGTHS[0]:.0e} to {LENGTHS[-1]:.0e}'
  near = within('slope', SLOPE, absolute=SLOPE_TOLERANCE)
  far = within('slope', SLOPE, absolute=2 * SLOPE_TOLERANCE)
  rule = Rule(every(near), every(far))
  averaged = next(row for row in rows if row['n'] == never['n'])
  excess = 'error without averages over that of Algorithm 2'
  without = np.divide(never['last_half'][-1], averaged['last_half'][-1])
  fails = above(excess, MATTERS, seeds='each')
  return [
    Claim(
      text='Algorithm 2 with K^s = floor(s^(1/3) / N) and gamma^s = N / '
      's^(2/3): E |grad f(xbar)|^2 falls as T^(-1/2).',
      source=f'{DERIVED}: the slope; the choices are {STATED}; at least 1 '
      'local step and gamma^s <= 1 / L are ours',
      measured={'slope': _slopes(rows, 'last_half'), excess: number(without)},
      rule=Rule(All((every(near), fails)), All((every(far), fails))),
      setting=f'{fitted} to the mean over the last half of T steps; gamma^s in '
      'units of 1 / L. Every replica has examples of its own, because '
      'otherwise the noise of the mean passes without any average. The same '
      f'gamma^s without averages has N = {never["n"]}.',
    ),
    Claim(
      text='The mean over the whole run, weighted by gamma, falls as T^(-1/2).',
      source=f'{DERIVED}, except for a factor log T from the sum of gamma^2',
      measured={
        'slope': _slopes(rows, 'weighted'),
        'slope of log T / sqrt(T)': number(with_log),
      },
      rule=rule,
      setting=f'{fitted}.',
      note='The early, long steps have the largest weights here.',
    ),
  ]


def _slopes(rows: Sequence[Mapping[str, Any]], key: str) -> Quantity:
  """Return the slopes of an error by N and seed."""
  return by_case(
    {f'N = {row["n"]}': slope(LENGTHS, np.array(row[key]).T) for row in rows}
  )


def _rounds_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  names = {f'N = {row["n"]}': row for row in rows}
  exponents = {
    name: slope(LENGTHS, np.array(row['rounds'], float))
    for name, row in names.items()
  }
  averages = {name: row['rounds'][-1] for name, row in names.items()}
  relative = {
    name: row['rounds'][-1] / (4 * row['n'] * LENGTHS[-1] / 3) ** 0.75
    for name, row in names.items()
  }
  return Claim(
    text='The number of averages is N^(3/4) T^(3/4), up to a constant.',
    source=f'{OURS}: arithmetic of the epochs, which no run can change',
    measured={
      'exponent of T': by_case(exponents),
      f'averages in {LENGTHS[-1]} steps': by_case(averages),
      'relative to (4NT/3)^(3/4)': by_case(relative),
    },
    rule=Rule(
      every(within('exponent of T', ROUNDS, absolute=ROUNDS_TOLERANCE)),
      every(within('exponent of T', ROUNDS, absolute=2 * ROUNDS_TOLERANCE)),
    ),
    setting=f'Fitted over T = {LENGTHS[0]:.0e} to {LENGTHS[-1]:.0e}.',
    note='K^s is rounded down. The effect shrinks as K^s grows, and lasts '
    'longer for a larger N.',
  )


def _ratio_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  one, four = (np.array(r['last_half'][-1]) for r in rows)
  ratio, expected = 'error of N = 1 over that of N = 4', 'expected ratio'
  return Claim(
    text='The error falls as N^(-1/2): a linear speedup.',
    source=DERIVED,
    measured={
      ratio: number(of_seeds(one / four, one.mean() / four.mean())),
      expected: number(np.sqrt(rows[1]['n'] / rows[0]['n'])),
    },
    rule=Rule(
      within(ratio, Ref(expected), relative=RATIO_TOLERANCE), above(ratio, 1)
    ),
    setting=f'Mean over the last half of T = {LENGTHS[-1]} steps.',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw errors and averages against T, with the slopes of the theory."""
  figure.set_size_inches(9, 5)
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
  never = data['never']
  drawing.spread(
    left,
    lengths,
    never['last_half'],
    styles.method('one_shot_averaging')._replace(linestyle='none'),
    label=f'N = {never["n"]} without averages, last half',
    hollow=True,
  )
  left.plot([], [], **theory, label='∝ $T^{-1/2}$, through the last point')
  right.plot([], [], **theory, label='∝ $T^{3/4}$, through the last point')
  right.plot(lengths, lengths, 'k:', lw=1, label='every step')
  for axes, what in ((left, 'mean of |∇f(x̄)|²'), (right, 'averages')):
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('T, steps')
    axes.set_ylabel(what)
  drawing.legend_below(figure)


TARGET = Target(
  name='t06_time_varying',
  title='Algorithm 2 of PR-SGD: growing epochs, shrinking steps',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), Algorithm 2 and its theorem; '
  'sigmoid loss, 128 examples in 5 dimensions',
  measure=measure,
  draw=draw,
)

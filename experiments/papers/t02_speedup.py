"""T2: PR-SGD's linear speedup, and Theorem 1 with each of its terms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import sigmoid
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  above,
  at_most,
  below,
  every,
  some,
)
from experiments.papers.quantities import by_case, number, of_seeds
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import theory

SEEDS = (0, 1, 2, 3, 4)
REPLICAS = (1, 4, 16)
LENGTHS = (16384, 65536)
# Deviation from 1 / sqrt(NT) that is allowed, and the one that never averaging
# must exceed, because otherwise the test could not fail.
TOLERANCE, FAILS = 0.1, 1.0
# Intervals that the corollary does not allow at N = 16; the last is no average.
CONTROLS: tuple[int, ...] = (32, 128, LENGTHS[0])
# Points of a run at which the moments of the gradient are taken.
NUM_POINTS = 512


class Run(NamedTuple):
  """Measurements of one setting of PR-SGD for the theory, over all seeds.

  Attributes:
    left: (1/T) sum_t |grad f(xbar^{t-1})|^2, float[S].
    drift: max over t of the mean over seeds and replicas of |xbar - x_i|^2.
    bound: the terms of Theorem 1.
    drift_bound: 4 gamma^2 I^2 G^2.
    variance: sigma^2, the largest along the runs.
    second_moment: G^2, the largest along the runs.
  """

  left: np.ndarray
  drift: float
  bound: theory.GradientBound
  drift_bound: float
  variance: float
  second_moment: float


def measure(setting: Setting) -> Outcome:
  """Run PR-SGD as in its corollary, with longer intervals, and the terms."""
  del setting
  problem = sigmoid.make_problem()
  rows = []
  for n in REPLICAS:
    for num_steps in LENGTHS:
      choice = _choice(problem, n, num_steps)
      rows.append(_row(problem, n, num_steps, int(choice.period)))
  most = max(REPLICAS)
  controls = [_row(problem, most, LENGTHS[0], period) for period in CONTROLS]
  checks = _counter_checks(problem)
  data = {
    'rows': rows,
    'controls': controls,
    'checks': checks,
    'smoothness': problem.smoothness,
    'gap': _gap(problem, _start(problem)),
    'curvature_at_start': _lowest_curvature(problem, _start(problem)),
  }
  claims = [
    _speedup_claim(rows, controls),
    _bound_claim([*rows, *controls], checks),
    _drift_claim([*rows, *controls], checks),
    _counter_claim(checks),
  ]
  return Outcome(claims, data, SEEDS)


def _choice(
  problem: sigmoid.Problem, n: int, num_steps: int
) -> theory.Corollary:
  """Return the learning rate of the corollary, and its longest interval."""
  return theory.pr_sgd_corollary(
    num_replicas=n, num_steps=num_steps, smoothness=problem.smoothness
  )


def _start(problem: sigmoid.Problem) -> np.ndarray:
  """Return a poor start: across the origin, where f is not convex."""
  return -problem.minimizer


def _gap(problem: sigmoid.Problem, x: np.ndarray) -> float:
  return float(sigmoid.loss(problem, x)) - problem.minimum


def _lowest_curvature(problem: sigmoid.Problem, x: np.ndarray) -> float:
  """Return the smallest eigenvalue of the Hessian, by central differences."""
  shifts = 1e-5 * np.eye(len(x))
  ahead, behind = x + shifts, x - shifts
  hessian = sigmoid.gradient(problem, ahead) - sigmoid.gradient(problem, behind)
  return float(np.linalg.eigvalsh((hessian + hessian.T) / 4e-5)[0])


def _shared(
  problem: sigmoid.Problem,
  n: int,
  num_steps: int,
  period: int,
  learning_rate: float,
  start: np.ndarray | None = None,
) -> Run:
  """Run replicas that all draw from the same examples, one a step."""
  start = _start(problem) if start is None else start

  def observe(x: jax.Array) -> Any:
    center = x.mean(axis=0)
    return center, jnp.square(x - center).sum(axis=-1).mean(), x[0]

  centers, drifts, first = _simulate(
    sigmoid.sampled_loss(problem),
    (n, num_steps, period, learning_rate, start),
    observe,
    SEEDS,
  )
  # One replica is enough, because all have the same distribution.
  points = first[:, :: max(1, num_steps // NUM_POINTS)]
  points = np.concatenate([points.reshape(-1, points.shape[-1]), start[None]])
  return _run(
    problem,
    (n, num_steps, period, learning_rate, start),
    centers,
    drift=float(drifts.mean(axis=0).max()),
    variance=float(sigmoid.variance(problem, points).max()),
    second_moment=float(sigmoid.second_moment(problem, points).max()),
  )


def _own(
  problem: sigmoid.Problem,
  n: int,
  num_steps: int,
  period: int,
  learning_rate: float,
) -> Run:
  """Run replicas that draw from their own examples, one a step."""
  start = _start(problem)
  moments = sigmoid.own_moments(problem, n)

  def observe(x: jax.Array) -> Any:
    center = x.mean(axis=0)
    # The largest only, because each step is observed.
    apart = jnp.square(x - center).sum(axis=-1).max()
    return center, apart, *(m.max() for m in moments(x))

  centers, drifts, variances, seconds = _simulate(
    sigmoid.own_sampled_loss(problem, n),
    (n, num_steps, period, learning_rate, start),
    observe,
    SEEDS,
  )
  first = [m.max() for m in moments(jnp.tile(jnp.asarray(start), (n, 1)))]
  return _run(
    problem,
    (n, num_steps, period, learning_rate, start),
    centers,
    drift=float(drifts.mean(axis=0).max()),
    variance=float(max(variances.max(), first[0])),
    second_moment=float(max(seconds.max(), first[1])),
  )


def _unlike(
  problem: sigmoid.Problem,
  n: int,
  num_steps: int,
  period: int,
  learning_rate: float,
) -> Run:
  """Run replicas with their own examples and exact gradients."""
  start = _start(problem)
  points = _simulate(
    sigmoid.own_loss(problem, n),
    (n, num_steps, period, learning_rate, start),
    lambda x: x,
    SEEDS[:1],
  )[0]
  center = points.mean(axis=1)
  apart = np.square(points - center[:, None]).sum(axis=-1)
  moments = [
    np.square(sigmoid.gradient(own, np.vstack([start, points[:, i]]))).sum(-1)
    for i, own in enumerate(sigmoid.shard(problem, i, n) for i in range(n))
  ]
  return _run(
    problem,
    (n, num_steps, period, learning_rate, start),
    center[None],
    drift=float(apart.max()),
    variance=0.0,
    second_moment=float(np.max(moments)),
  )


def _simulate(
  loss_fn: Any,
  choices: tuple[int, int, int, float, np.ndarray],
  observe: Callable[[jax.Array], Any],
  seeds: Sequence[int],
) -> Any:
  """Return what is observed of PR-SGD, leaves [S, T, ...]."""
  n, num_steps, period, learning_rate, start = choices
  seen = simulate(
    lambda rate: pr.pr_sgd(optax.sgd(rate), period=period),
    (learning_rate,),
    seeds,
    loss_fn=loss_fn,
    start=jnp.asarray(start, jnp.float32),
    num_replicas=n,
    num_steps=num_steps,
    observe=observe,
  )
  return jax.tree.map(lambda leaf: leaf[0], seen)


def _run(
  problem: sigmoid.Problem,
  choices: tuple[int, int, int, float, np.ndarray],
  centers: np.ndarray,
  *,
  drift: float,
  variance: float,
  second_moment: float,
) -> Run:
  """Return both sides of theorem and lemma, from the means [S, T, d]."""
  n, num_steps, period, learning_rate, start = choices
  # xbar^0 .. xbar^{T-1}: the last is not among them.
  slopes = np.square(sigmoid.gradient(problem, centers[:, :-1])).sum(axis=-1)
  first = np.square(sigmoid.gradient(problem, start)).sum()
  bound = theory.pr_sgd_bound(
    num_replicas=n,
    num_steps=num_steps,
    period=period,
    learning_rate=learning_rate,
    smoothness=problem.smoothness,
    initial_gap=max(_gap(problem, start), 0.0),
    variance=variance,
    second_moment=second_moment,
  )
  lemma = theory.drift_bound(
    learning_rate=learning_rate, period=period, second_moment=second_moment
  )
  left = (slopes.sum(axis=1) + first) / num_steps
  return Run(left, drift, bound, lemma, variance, second_moment)


def _counter_checks(problem: sigmoid.Problem) -> list[dict[str, Any]]:
  """Run settings in which one term of Theorem 1 dominates."""
  slow = 1 / (256 * problem.smoothness)
  fast = 1 / (16 * problem.smoothness)
  runs = {
    'start': _shared(problem, 16, 256, 1, slow),
    'noise': _shared(problem, 1, 16384, 1, slow, problem.minimizer),
    'drift': _unlike(problem, 16, 16384, 64, fast),
  }
  what = {
    'start': 'N = 16, I = 1, T = 256 from the poor start, gamma L = 1/256',
    'noise': 'N = 1, I = 1, T = 16384 from the minimum, gamma L = 1/256',
    'drift': 'N = 16, I = 64, T = 16384, replicas with examples of their own '
    'and exact gradients, gamma L = 1/16',
  }
  return [_check(name, what[name], run) for name, run in runs.items()]


def _check(term: str, what: str, run: Run) -> dict[str, Any]:
  left = float(np.mean(run.left))
  full = sum(run.bound)
  return {
    'term': term,
    'what': what,
    'left': left,
    'bound': full,
    'without': full - getattr(run.bound, term),
    'drift': run.drift,
    'drift_bound': run.drift_bound,
  }


def _row(
  problem: sigmoid.Problem, n: int, num_steps: int, period: int
) -> dict[str, Any]:
  learning_rate = _choice(problem, n, num_steps).learning_rate
  run = _own(problem, n, num_steps, period, learning_rate)
  return {
    'n': n,
    'num_steps': num_steps,
    'period': period,
    'learning_rate': learning_rate,
    'left': run.left.tolist(),
    'bound': run.bound._asdict(),
    'drift': run.drift,
    'drift_bound': run.drift_bound,
    'variance': run.variance,
    'second_moment': run.second_moment,
  }


def _speedup_claim(
  rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]
) -> Claim:
  scaled = {_name(r): _scaled(r) for r in rows}
  middle = np.exp(np.mean([np.log(own.mean()) for own in scaled.values()]))
  never = controls[-1]
  deviation, without = 'deviation from 1 / sqrt(NT)', 'without averages'
  off = {
    name: 100 * np.abs(own.mean() / middle - 1) for name, own in scaled.items()
  }
  far = {_name(r): 100 * (_scaled(r) / middle - 1) for r in controls}
  beyond, last = 'deviation with longer intervals', _name(never)
  fails = above(Ref(beyond, last), 100 * FAILS, seeds='each')
  return Claim(
    text='With gamma = sqrt(N) / (L sqrt(T)) and I <= T^(1/4) / N^(3/4), the '
    'error (1/T) sum_t E |grad f(xbar^(t-1))|^2 falls as 1 / sqrt(NT).',
    source=f'{STATED}: the corollary of Theorem 1; its constants are derived',
    measured={
      'error': by_case({_name(r): r['left'] for r in rows}),
      'error times sqrt(NT)': by_case(scaled),
      deviation: by_case(off, '%'),
      f'error {without}': by_case({last: never['left']}),
      beyond: by_case(far, '%'),
    },
    rule=Rule(
      All((every(below(deviation, 100 * TOLERANCE)), fails)),
      All((every(below(deviation, 200 * TOLERANCE)), fails)),
    ),
    setting='Every replica has its own examples, so the f_i differ. The '
    'deviation is measured from the geometric mean of the error times '
    'sqrt(NT). Longer intervals have N = 16, its learning rate, and T = '
    f'{LENGTHS[0]}. Without averages, the error of the mean of the replicas '
    'counts.',
    note='With replicas that draw from one pool, never averaging passes this '
    'test, because the noise of the mean does not depend on averages.',
  )


def _scaled(row: Mapping[str, Any]) -> np.ndarray:
  """Return the error times sqrt(NT) by seed."""
  return np.array(row['left']) * np.sqrt(row['n'] * row['num_steps'])


def _name(row: Mapping[str, Any]) -> str:
  return f'N = {row["n"]}, T = {row["num_steps"]}, {_interval(row)}'


def _interval(row: Mapping[str, Any]) -> str:
  never = row['period'] >= row['num_steps']
  return 'never averaged' if never else f'I = {row["period"]}'


def _bound_claim(
  rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]
) -> Claim:
  ratios = {
    _name(r): of_seeds(np.array(r['left']) / sum(r['bound'].values()))
    for r in rows
  }
  checked = {c['what']: c['left'] / c['bound'] for c in checks}
  ratio = 'left side over right side'
  return Claim(
    text='Theorem 1: the left side is at most 2 (f(xbar^0) - f*) / (gamma T) '
    '+ 4 gamma^2 I^2 G^2 L^2 + L gamma sigma^2 / N.',
    source=f'{STATED}; with L^2 where the slides print L',
    measured={ratio: by_case({**ratios, **checked})},
    rule=Rule(every(at_most(ratio, 1, seeds='each'))),
    setting='L is bounded from above. f* is the minimum from many starts. G '
    'and sigma are the largest along the runs, over all examples.',
  )


def _drift_claim(
  rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]
) -> Claim:
  # Only N > 1, because one replica has no drift.
  ratios = {_name(r): r['drift'] / r['drift_bound'] for r in rows if r['n'] > 1}
  unlike = next(c for c in checks if c['term'] == 'drift')
  ratios[unlike['what']] = unlike['drift'] / unlike['drift_bound']
  ratio = 'largest drift over its bound'
  without = 'drift of unlike replicas over 4 gamma^2 G^2'
  return Claim(
    text='The lemma: E |xbar^t - x_i^t|^2 <= 4 gamma^2 I^2 G^2 at every t.',
    source=STATED,
    measured={
      ratio: by_case(ratios),
      without: number(unlike['drift'] / (unlike['drift_bound'] / 64**2)),
    },
    rule=Rule(
      All((every(at_most(ratio, 1)), above(without, 1))),
      every(at_most(ratio, 1)),
    ),
    setting='The largest over all steps of the replica that is farthest from '
    'the mean; a mean over the seeds. The bound without I^2 '
    'must fail, because otherwise the check would be too weak to notice it.',
  )


def _counter_claim(checks: Sequence[Mapping[str, Any]]) -> Claim:
  ratio = 'left side over the rest of the right side'
  return Claim(
    text='No term of Theorem 1 can be left out.',
    source=OURS,
    measured={
      ratio: by_case(
        {
          f'without {c["term"]}: {c["what"]}': c['left'] / c['without']
          for c in checks
        }
      )
    },
    rule=Rule(every(above(ratio, 1)), some(above(ratio, 1))),
    setting='Each term is left out in the setting in which it dominates.',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw both sides against N T, and the bound without each term."""
  left, right = figure.subplots(1, 2)
  rows = sorted(data['rows'], key=lambda r: r['n'] * r['num_steps'])
  products = np.array([r['n'] * r['num_steps'] for r in rows], float)
  means = np.array([np.mean(r['left']) for r in rows])
  # Larger rings around smaller ones because points of two N coincide.
  for (n, style), size in zip(
    styles.variants('pr_sgd', (1, 4, 16)).items(), (4, 8, 12), strict=True
  ):
    own = [r for r in rows if r['n'] == n]
    at = [n * r['num_steps'] for r in own]
    left.errorbar(
      at,
      [np.mean(r['left']) for r in own],
      [np.ptp(r['left']) / 2 for r in own],
      fmt=style.marker,
      color=style.color,
      ms=size,
      mfc=style.color if n == 1 else 'none',
      mew=1.5,
      label=f'PR-SGD, N = {n}',
    )
  constant = np.exp(np.log(means * np.sqrt(products)).mean())
  left.plot(products, constant / np.sqrt(products), 'k--', label='∝ 1/√(NT)')
  bounds = [sum(r['bound'].values()) for r in rows]
  left.plot(products, bounds, 'k^', label='Theorem 1')
  for row in data['controls']:
    n = row['n']
    left.plot(
      n * row['num_steps'], np.mean(row['left']), 'x', color='gray', ms=6
    )
    left.annotate(
      _interval(row),
      (n * row['num_steps'], np.mean(row['left'])),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
    )
  left.plot([], [], 'x', color='gray', label='longer intervals, N = 16')
  left.set_xlabel('N T, gradients')
  checks = data['checks']
  places = np.arange(len(checks))
  measured = styles.method('pr_sgd')
  for key, fmt, color, label in (
    ('left', measured.marker, measured.color, 'measured'),
    ('without', 'v', 'gray', 'Theorem 1 without the term'),
    ('bound', '^', 'black', 'Theorem 1'),
  ):
    values = [c[key] for c in checks]
    right.plot(places, values, fmt, color=color, ms=8, label=label)
  right.set_xticks(places, [c['term'] for c in checks])
  right.set_xlim(-0.5, len(checks) - 0.5)
  right.set_xlabel('dominant term of the bound')
  left.set_xscale('log')
  for axis in (left, right):
    axis.set_yscale('log')
    axis.set_ylabel('mean over t of |∇f(x̄)|²')
  drawing.legend_below(figure)


TARGET = Target(
  name='t02_speedup',
  title='Linear speedup of PR-SGD, and Theorem 1 term by term',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), Theorem 1 and its corollary; '
  'sigmoid loss, 128 examples in 5 dimensions',
  measure=measure,
  draw=draw,
)

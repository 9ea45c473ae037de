"""T10: how far gossip leaves replicas, and how soon some graphs are exact."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax

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
from prsgd_jax.science import laws

N = 16
SEEDS = (0, 1, 2, 3, 4)
DIMENSION = 64
NUM_STEPS, BURN_IN = 1500, 300
TOLERANCE = 0.03
# The orders of mixing and stepping, with the algorithms that have them.
ORDERS: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'A': pr.d_psgd,
  'C': pr.diffusion,
}
GRAPHS: dict[str, Callable[[], pr.mixing.Mixing]] = {
  'ring': pr.graphs.ring,
  'random matching': pr.graphs.random_matching,
  'full': pr.mixing.mean,
  'random neighbor': pr.graphs.random_neighbor,
  'exponential': pr.graphs.exponential,
  'one-peer exponential': pr.graphs.one_peer_exponential,
}
CHECKED = ('ring', 'random matching', 'full')
SIZES = (2, 4, 8, 16, 64, 3, 6, 24)
# Of the squared distance, relative to that at the start: rounding in float64.
EXACT = 1e-24


def measure(setting: Setting) -> Outcome:
  """Runs gossip on noise alone, and from apart without any."""
  del setting
  with jax.enable_x64(True):
    variances = {
      name: {order: _variance(name, order) for order in ORDERS}
      for name in GRAPHS
    }
    decays = {name: _decay(make(), N, 12) for name, make in GRAPHS.items()}
    exact = [_exactness(n) for n in SIZES]
  data = {'variances': variances, 'decays': decays, 'exact': exact}
  claims = [
    *(_variance_claim(variances, order) for order in ORDERS),
    *_exact_claims(exact),
  ]
  return Outcome(claims, data, SEEDS)


def eigenvalue_variance(matrices: np.ndarray, order: str) -> float:
  """(1/n) sum_{i >= 2} 1 / (1 - lambda_i^2); lambda_i^2 / ... in order C.

  Args:
    matrices: the doubly stochastic W, float[K, n, n], equally likely; the
      eigenvalues are those of E[W'W].
    order: 'A' or 'C'.
  """
  second = (matrices.swapaxes(-1, -2) @ matrices).mean(axis=0)
  squares = np.linalg.eigvalsh(second)[:-1]
  numerators = np.ones_like(squares) if order == 'A' else squares
  return float((numerators / (1 - squares)).sum() / len(second))


def _variance(name: str, order: str) -> dict[str, Any]:
  """The stationary consensus variance: measured by seed, and in theory."""
  mixing = GRAPHS[name]()
  distances = simulate(
    lambda rate: ORDERS[order](optax.sgd(rate), mixing=mixing),
    (1.0,),
    SEEDS,
    loss_fn=_noise,
    start=jnp.zeros(DIMENSION),
    num_replicas=N,
    num_steps=NUM_STEPS,
    observe=_distance,
  )[0]
  by_seed = distances[:, BURN_IN:].mean(axis=1) / DIMENSION
  law = laws.consensus_variance(mixing, N)
  matrices = mixing.matrices(N)
  alike = mixing.random or len(matrices) == 1
  return {
    'measured': by_seed.tolist(),
    'law': law.mix_then_step if order == 'A' else law.step_then_mix,
    # Of matrices that take turns it says nothing.
    'eigenvalues': eigenvalue_variance(matrices, order) if alike else None,
  }


def _noise(x: jax.Array, step: Any, replica: Any, key: jax.Array) -> jax.Array:
  """Its gradient is noise of unit variance, wherever x is."""
  del step, replica
  return jax.random.normal(key, x.shape) @ x


def _noise_at_first(
  x: jax.Array, step: jax.Array, replica: Any, key: jax.Array
) -> jax.Array:
  """Sets the replicas apart in the first step, and no more."""
  return jnp.where(step == 0, _noise(x, step, replica, key), 0.0)


def _distance(x: jax.Array) -> jax.Array:
  return jnp.square(x - x.mean(axis=0)).sum() / x.shape[0]


def _decay(mixing: pr.mixing.Mixing, n: int, rounds: int) -> list[float]:
  """(1/n) sum |x_i - xbar|^2 over what is expected before the first round.

  That is after 0 .. rounds of mixing; replicas are set apart once, at random.
  """
  distances = simulate(
    lambda rate: pr.diffusion(optax.sgd(rate), mixing=mixing),
    (1.0,),
    SEEDS,
    loss_fn=_noise_at_first,
    start=jnp.zeros(DIMENSION),
    num_replicas=n,
    num_steps=rounds,
    observe=_distance,
  )[0]
  before = DIMENSION * (1 - 1 / n)
  return [1.0, *(distances / before).mean(axis=0).tolist()]


def _exactness(n: int) -> dict[str, Any]:
  """What one-peer exponential leaves after log2 n rounds, rounded up."""
  rounds = math.ceil(math.log2(n))
  left = _decay(pr.graphs.one_peer_exponential(), n, rounds)
  return {'n': n, 'rounds': rounds, 'left': left[-1], 'before': left[-2]}


def _variance_claim(variances: Mapping[str, Any], order: str) -> Claim:
  shown, errors = [], []
  for name in CHECKED:
    seen = variances[name][order]
    mean, spread = np.mean(seen['measured']), np.ptp(seen['measured'])
    shown.append(
      f'{name} {mean:.3f} (± {spread / 2:.3f}; formula '
      f'{seen["eigenvalues"]:.3f})'
    )
    errors.append(abs(mean - seen['eigenvalues']) / max(seen['eigenvalues'], 1))
  numerator = '1' if order == 'A' else 'lambda_i^2'
  return Claim(
    says=f'order {order}, n = {N}, unit noise and no gradient: stationary '
    f'(1/n) sum_i E abs(x_i - xbar)^2 = (1/n) sum_(i>=2) {numerator} / '
    '(1 - lambda_i^2), eigenvalues of E[W^T W] where W is random (derived)',
    measured='; '.join(shown),
    reproduced=verdict(max(errors) < TOLERANCE),
    tried=f'all within {TOLERANCE:.0%} of the formula (of 1 where that is '
    f'less); the worst is {max(errors):.2%} off; random matching is every '
    'pair equally likely, both take the mean of the pair',
  )


def _exact_claims(exact: Sequence[Mapping[str, Any]]) -> list[Claim]:
  powers = [e for e in exact if e['n'] == 2 ** e['rounds']]
  others = [e for e in exact if e['n'] != 2 ** e['rounds']]
  done = all(e['left'] < EXACT for e in powers)
  # One round before, nothing is exact, or the check would see nothing.
  not_sooner = all(e['before'] > 1e-6 for e in powers)
  worst = max(e['left'] for e in powers)
  soonest = min(e['before'] for e in powers)
  sizes = ', '.join(str(e['n']) for e in powers)
  left = ', '.join(f'n = {e["n"]}: {e["left"]:.1e}' for e in others)
  return [
    Claim(
      says='one-peer exponential averages exactly in log2 n rounds for n = 2^k '
      '(as such; Assran et al. 2019, Ying et al. 2021)',
      measured=f'n = {sizes}: at most {worst:.1e} of the squared distance is '
      f'left after log2 n rounds, at least {soonest:.1e} one round before',
      reproduced=verdict(done and not_sooner, done),
      tried=f'less than {EXACT:.0e} is left, and more than 1e-6 one round '
      'before',
    ),
    Claim(
      says='for other n it does not (ours; Base-(k+1) graphs do for any n (as '
      'such), and are not built here)',
      measured=f'left after ceil(log2 n) rounds: {left}',
      reproduced=verdict(all(e['left'] > 1e-6 for e in others)),
      tried='more than 1e-6 is left for each of them',
    ),
  ]


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Variances against their formula, and distances over the rounds."""
  figure.set_size_inches(drawing.WIDTH, 4.5)
  left, right = figure.subplots(1, 2)
  _draw_variances(data['variances'], left)
  lowest = min(v for d in data['decays'].values() for v in d if v > EXACT)
  looks = styles.categories(list(data['decays']))
  for name, decay in data['decays'].items():
    # What is exact is below the frame, not at the rounding of float64.
    shown = np.where(np.array(decay) > EXACT, decay, EXACT)
    drawing.curve(right, range(len(decay)), shown, looks[name], label=name)
  right.set_yscale('log')
  right.set_ylim(lowest / 10, 3)
  right.set_xlabel('rounds of mixing')
  right.set_ylabel('squared distance / at the start')
  right.set_title(f'no noise, n = {N}; exact where a line leaves the frame')
  right.legend()


def _draw_variances(
  variances: Mapping[str, Mapping[str, Mapping[str, Any]]], axis: Axes
) -> None:
  names = list(variances)
  places = np.arange(len(names))
  for (order, make), shift in zip(ORDERS.items(), (-0.2, 0.2), strict=True):
    rows = [variances[name][order] for name in names]
    seen = np.array([row['measured'] for row in rows])
    axis.bar(
      places + shift,
      seen.mean(axis=1),
      0.36,
      yerr=np.ptp(seen, axis=1) / 2,
      color=styles.method(make.__name__).color,
      label=f'order {order}, simulated',
    )
    axis.plot(places + shift, [row['law'] for row in rows], 'k_', ms=16)
  axis.plot([], [], 'k_', ms=16, label='exact')
  axis.set_xticks(places, [name.replace(' ', '\n') for name in names])
  axis.tick_params(axis='x', labelsize=drawing.LEAST_TEXT)
  axis.set_ylabel('stationary E|xᵢ - x̄|² / noise variance')
  axis.set_title(f'noise, no gradient, n = {N}')
  axis.legend()


TARGET = Target(
  name='t10_topologies',
  title='Consensus variance of gossip, and graphs that are exact in time',
  paper='Lian et al. 2017 (arXiv 1705.09056), Zhang et al. 2021 (arXiv '
  '2112.01433), Ying et al. 2021 (arXiv 2110.13363)',
  measure=measure,
  draw=draw,
)

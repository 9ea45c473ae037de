"""T10: the distance gossip leaves, and graphs that average exactly."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers.claims import DERIVED, OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  above,
  below,
  every,
  within,
)
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
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
ONE_PEER = 'one-peer exponential'
GRAPHS: dict[str, Callable[[], pr.mixing.Mixing]] = {
  'ring': pr.graphs.ring,
  'random matching': pr.graphs.random_matching,
  'full': pr.mixing.mean,
  'random neighbor': pr.graphs.random_neighbor,
  'exponential': pr.graphs.exponential,
  ONE_PEER: pr.graphs.one_peer_exponential,
}
CHECKED = ('ring', 'random matching', 'full')
DECAY_ROUNDS = 12
# Besides N, which is one of the decays.
POWERS, OTHERS = (8, 64), (3, 6, 24)
# Squared distance relative to the start that counts as rounding in float64.
EXACT = 1e-24
LEFT, BEFORE = 'squared distance left', 'left one round before'
IS_EXACT = Rule(
  every(All((below(LEFT, EXACT), above(BEFORE, 1e-6)))),
  every(below(LEFT, EXACT)),
)
_RELATIVE = 'Distances are relative to the squared distance at the start.'
_EXACT_SETTING = (
  f'{_RELATIVE} One round before, the average must not be exact, because '
  'otherwise the check would be too weak.'
)


def measure(setting: Setting) -> Outcome:
  """Run gossip on pure noise, and from distant starts without noise."""
  del setting
  with jax.enable_x64(True):
    variances = {
      name: {order: _variance(name, order) for order in ORDERS}
      for name in GRAPHS
    }
    decays = {
      name: _decay(make(), N, DECAY_ROUNDS) for name, make in GRAPHS.items()
    }
    exact = [_after(N, math.ceil(math.log2(N)), decays[ONE_PEER])]
    exact += [_one_peer(n) for n in (*POWERS, *OTHERS)]
    base = [_base(n) for n in OTHERS]
  data = {
    'variances': variances, 'decays': decays, 'exact': exact, 'base': base,
  }  # fmt: skip
  claims = [
    *(_variance_claim(variances, order) for order in ORDERS),
    *_exact_claims(exact),
    _base_claim(base),
  ]
  return Outcome(claims, data, SEEDS)


def eigenvalue_variance(matrices: np.ndarray, order: str) -> float:
  """Return (1/n) sum_{i >= 2} 1 / (1 - lambda_i^2), or lambda_i^2 / ... in C.

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
  """Return the stationary consensus variance by seed, and in theory."""
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
    # None for matrices that take turns, because the formula is not for them.
    'eigenvalues': eigenvalue_variance(matrices, order) if alike else None,
  }


def _noise(x: jax.Array, step: Any, replica: Any, key: jax.Array) -> jax.Array:
  """Return a loss whose gradient is noise of unit variance everywhere."""
  del step, replica
  return jax.random.normal(key, x.shape) @ x


def _noise_at_first(
  x: jax.Array, step: jax.Array, replica: Any, key: jax.Array
) -> jax.Array:
  """Return a loss that moves the replicas apart in the first step only."""
  return jnp.where(step == 0, _noise(x, step, replica, key), 0.0)


def _distance(x: jax.Array) -> jax.Array:
  return jnp.square(x - x.mean(axis=0)).sum() / x.shape[0]


def _decay(mixing: pr.mixing.Mixing, n: int, rounds: int) -> list[float]:
  """Return (1/n) sum |x_i - xbar|^2 after 0 .. rounds of mixing.

  It is relative to its expectation before the first round. The replicas are
  moved apart once, at random.
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


def _one_peer(n: int) -> dict[str, Any]:
  """Measure what one-peer exponential leaves after ceil(log2 n) rounds."""
  rounds = math.ceil(math.log2(n))
  decay = _decay(pr.graphs.one_peer_exponential(), n, rounds)
  return _after(n, rounds, decay)


def _base(n: int) -> dict[str, Any]:
  """Measure what the Base-2 graph leaves after all of its rounds."""
  mixing = pr.graphs.base_graph(1)
  rounds = len(mixing.matrices(n))
  return _after(n, rounds, _decay(mixing, n, rounds))


def _after(n: int, rounds: int, decay: Sequence[float]) -> dict[str, Any]:
  """Return what is left after some rounds, and one round before."""
  return {
    'n': n, 'rounds': rounds, 'left': decay[rounds], 'before': decay[rounds - 1]
  }  # fmt: skip


def _variance_claim(variances: Mapping[str, Any], order: str) -> Claim:
  seen = {name: variances[name][order] for name in CHECKED}
  numerator = '1' if order == 'A' else 'lambda_i^2'
  return Claim(
    text=f'Order {order}: with unit noise and no gradient, the stationary '
    f'(1/n) sum_i E |x_i - xbar|^2 is (1/n) sum_(i>=2) {numerator} / '
    '(1 - lambda_i^2).',
    source=DERIVED,
    measured={
      'variance': by_case({k: v['measured'] for k, v in seen.items()}),
      'formula': by_case({k: v['eigenvalues'] for k, v in seen.items()}),
    },
    rule=Rule(
      every(
        within(
          'variance', Ref('formula'), absolute=TOLERANCE, relative=TOLERANCE
        )
      )
    ),
    setting=f'n = {N}. The lambda_i are the eigenvalues of E[W^T W] where W is '
    'random. A random matching has every pair with the same probability; both '
    'take the mean of the pair.',
  )


def _exact_claims(exact: Sequence[Mapping[str, Any]]) -> list[Claim]:
  powers = [e for e in exact if e['n'] == 2 ** e['rounds']]
  others = [e for e in exact if e['n'] != 2 ** e['rounds']]
  return [
    Claim(
      text='One-peer exponential averages exactly in log2 n rounds for '
      'n = 2^k.',
      source=f'{STATED}: Assran et al. 2019 (arXiv 1811.10792), Ying et al. '
      '2021 (arXiv 2110.13363)',
      measured=_left_by_size(powers),
      rule=IS_EXACT,
      setting=_EXACT_SETTING,
    ),
    Claim(
      text='For other n it does not average exactly.',
      source=OURS,
      measured=_left_by_size(others),
      rule=Rule(every(above(LEFT, 1e-6))),
      setting=f'After ceil(log2 n) rounds. {_RELATIVE}',
    ),
  ]


def _left_by_size(found: Sequence[Mapping[str, Any]]) -> dict[str, Quantity]:
  """Return the distances and the rounds by the number of replicas."""
  names = {LEFT: 'left', BEFORE: 'before', 'rounds': 'rounds'}
  return {
    title: by_case({f'n = {e["n"]}': e[name] for e in found})
    for title, name in names.items()
  }


def _base_claim(base: Sequence[Mapping[str, Any]]) -> Claim:
  return Claim(
    text='Base-(k+1) graphs average exactly for any n.',
    source=f'{STATED}: Takezawa et al. 2023 (arXiv 2305.11420)',
    measured=_left_by_size(base),
    rule=IS_EXACT,
    setting=f'k = 1, so that a replica has one neighbor in a round; after all '
    f'rounds of the graph. {_EXACT_SETTING}',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw variances with their formula, and distances over the rounds."""
  figure.set_size_inches(drawing.WIDTH, 4.5)
  left, right = figure.subplots(1, 2)
  _draw_variances(data['variances'], left)
  lowest = min(v for d in data['decays'].values() for v in d if v > EXACT)
  looks = styles.categories(list(data['decays']))
  for name, decay in data['decays'].items():
    # Below the frame where exact, because rounding of float64 is no result.
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
  title='Consensus variance of gossip, and graphs that average exactly',
  paper='Lian et al. 2017 (arXiv 1705.09056), Zhang et al. 2021 (arXiv '
  '2112.01433), Ying et al. 2021 (arXiv 2110.13363), Takezawa et al. 2023 '
  '(arXiv 2305.11420)',
  measure=measure,
  draw=draw,
)

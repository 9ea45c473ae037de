"""What is known exactly of averaged SGD on simple problems.

Fixed points, drifts and stationary variances in closed form, or by linear
algebra without a random number: what a simulation must come out at. Bounds are
in `theory`.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from prsgd_jax.checks import (
  check_not_negative,
  check_number,
  check_positive,
  check_positive_int,
  check_probability,
)
from prsgd_jax.mixing.matrices import sums_to_one
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.science.theory import check_hierarchy

# How much of noise is left, relative to all there was, when it counts as gone;
# and how much of it must go meanwhile, or it never will.
GONE = 1e-14
STUCK = 1e-12


class ConsensusVariance(NamedTuple):
  """Stationary (1/N) E sum_i |x_i - xbar|^2 at the end of a step.

  Attributes:
    mix_then_step: of order A or B, as `d_psgd`: x <- W x + noise.
    step_then_mix: of order C, as `diffusion`: x <- W (x + noise).
  """

  mix_then_step: float
  step_then_mix: float


def hier_avg_drift(
  steps: Sequence[int] | np.ndarray,
  *,
  num_replicas: int,
  local_period: int,
  global_period: int,
  group_size: int,
) -> np.ndarray:
  """Hier-AVG's drift without gradients, before the averaging that is due.

  D(t) = ((t - 1) mod K1 + 1) (1 - 1/P) + floor((t - 1) / K1) K1 (1/S - 1/P)

  at step t = 1 .. K2 of a round, for noise of unit variance in every step: the
  mean of (1/P) E sum_i |x_i - xbar|^2, to be multiplied by gamma^2 E|noise|^2.
  With K1 = K2 or S = 1 it is K-AVG's, t (1 - 1/P).

  Args:
    steps: int[...], 0-based: t - 1 from the begin of the run.
    num_replicas: P.
    local_period, global_period: K1 and K2.
    group_size: S.

  Returns:
    float64[...], rising with K1 and falling with S.

  Raises:
    ValueError: if an argument is out of its range, K1 does not divide K2 or S
      does not divide P.

  Example:
    >>> hier_avg_drift(
    ...   range(4), num_replicas=4, local_period=2, global_period=4,
    ...   group_size=2).tolist()
    [0.75, 1.5, 1.25, 2.0]

  Reference:
    Derived; the algorithm is that of Zhou, Cong 2019 (arXiv 1903.05133). Noise
    that a group has averaged counts 1/S - 1/P, and 1 - 1/P before.
  """
  p, k1, k2, size = check_hierarchy(
    num_replicas, local_period, global_period, group_size
  )
  since_global = np.asarray(steps) % k2
  since_local = since_global % k1
  averaged = since_global - since_local
  return (since_local + 1) * (1 - 1 / p) + averaged * (1 / size - 1 / p)


def mean_drift(period: int, num_replicas: int) -> ConsensusVariance:
  """The mean over an interval of the drift of PR-SGD and K-AVG, no gradients.

  (1 - 1/N) (I + 1) / 2 at the end of PR-SGD's steps, or just before K-AVG's
  averages are due, and (1 - 1/N) (I - 1) / 2 at the end of K-AVG's steps; for
  noise of unit variance, to be multiplied by gamma^2 E|noise|^2. PR-SGD's first
  interval, from equal replicas, has one noise less.

  Raises:
    ValueError: if an argument is not an integer >= 1.

  Reference:
    Derived; Yu, Yang, Zhu 2019 (arXiv 1807.06629), Algorithm 1 (order A), and
    Zhou, Cong 2018 (arXiv 1708.01012), Algorithm 1 (order C).
  """
  period = check_positive_int('period', period)
  apart = 1 - 1 / check_positive_int('num_replicas', num_replicas)
  return ConsensusVariance(apart * (period + 1) / 2, apart * (period - 1) / 2)


def consensus_variance(mixing: Mixing, num_replicas: int) -> ConsensusVariance:
  """How far gossip leaves replicas that get noise and no gradient.

  sum_{s >= 0} E|Pi W_s ... W_1|^2 / N with Pi = I - 11'/N and the Frobenius
  norm, and the same from s = 1 in order C; for noise of unit variance in every
  replica and step, to be multiplied by gamma^2 E|noise|^2.

  For one symmetric W that is (1/N) sum_{i >= 2} 1 / (1 - lambda_i^2), and with
  lambda_i^2 above in order C. Where all replicas are alike to random matrices,
  as to `random_matching`, the eigenvalues of E[W'W] take the place of lambda^2;
  elsewhere those do not suffice, and here the covariance is followed. For
  matrices that take turns, one at every step, it is the mean over their cycle.

  Raises:
    ValueError: if the mixing is not doubly stochastic, does not fit the number
      of replicas, or never brings them together.

  Example:
    >>> import prsgd_jax as pr
    >>> variance = consensus_variance(pr.graphs.ring(), 16)
    >>> [round(v, 3) for v in variance]
    [2.41, 1.472]

  Reference:
    Derived. Orders: Lian et al. 2017 (arXiv 1705.09056), Algorithm 1, is A;
    the setting of Zhang et al. 2021 (arXiv 2112.01433).
  """
  matrices = mixing.matrices(num_replicas)
  if not (sums_to_one(matrices, -1) and sums_to_one(matrices, -2)):
    raise ValueError(
      'consensus_variance expects a doubly stochastic mixing, got one whose '
      'rows or columns do not sum to 1'
    )
  if mixing.random:
    cycle = [matrices]
  else:
    cycle = [weights[None] for weights in matrices]
  starts = range(len(cycle))
  step_then_mix = np.mean(
    [_noise_left(cycle[i:] + cycle[:i], num_replicas) for i in starts]
  )
  own = 1 - 1 / num_replicas
  return ConsensusVariance(own + float(step_then_mix), float(step_then_mix))


def _noise_left(cycle: Sequence[np.ndarray], n: int) -> float:
  """What is left of the noise of one step, summed over all rounds after it.

  Args:
    cycle: the rounds that take turns, each [K, N, N] equally likely matrices.
    n: N.
  """
  apart = np.eye(n) - 1 / n
  covariance, total = apart, 0.0
  left = float(np.trace(apart))
  while left > GONE * (total + n):
    before = left
    for choices in cycle:
      projected = apart @ choices
      moved = projected @ covariance @ projected.swapaxes(-1, -2)
      covariance = moved.mean(axis=0)
      left = float(np.trace(covariance))
      total += left
    # W lengthens nothing. Where a whole cycle takes nothing off either, what is
    # left is mapped onto itself, and no later cycle will.
    if left > (1 - STUCK) * before:
      raise ValueError(
        'consensus_variance expects a mixing that brings replicas together, '
        'got one that never does; connect all, each with a weight of its own'
      )
  return total / n


def averaged_quadratic_variance(
  *,
  probability: float,
  num_replicas: int,
  learning_rate: float,
  curvature: float,
  beta_squared: float,
  sigma_squared: float,
) -> float:
  """lim E[wbar^2] on c w^2 / 2, averaging with probability zeta at each step.

  (alpha sigma^2 / M) / (2 c - alpha c^2 - alpha beta^2 theta) with
  theta = [(1 - zeta) (1 - a) + zeta / M] / [(1 - zeta) (1 - a) + zeta] and
  a = (1 - alpha c)^2, for gradients c w - b w - h with Var b = beta^2 and
  Var h = sigma^2, drawn by each replica for itself. With beta = 0 it does not
  depend on zeta.

  It is exact for averages by chance, and not for averages at every K-th step:
  with zeta = 1 / K it is larger than theirs (by 9% in the example with K = 10).
  Use `periodic_quadratic_variance` for those.

  Args:
    probability: zeta, in [0, 1].
    num_replicas: M.
    learning_rate: alpha.
    curvature: c.
    beta_squared, sigma_squared: beta^2 and sigma^2.

  Returns:
    The limit; infinity where the replicas diverge.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> constants = dict(num_replicas=8, learning_rate=0.1, curvature=1,
    ...                  beta_squared=10, sigma_squared=1)
    >>> [round(averaged_quadratic_variance(probability=z, **constants), 5)
    ...  for z in (0, 0.05, 1)]
    [0.01389, 0.01147, 0.00704]

  Reference:
    Derived, for the setting of Zhang, De Sa, Mitliagkas, Re 2016, Parallel SGD:
    when does averaging help? (arXiv 1606.07365).
  """
  zeta = check_probability('probability', probability)
  m = check_positive_int('num_replicas', num_replicas)
  alpha, c, beta2, sigma2 = _quadratic(
    learning_rate, curvature, beta_squared, sigma_squared
  )
  a = (1 - alpha * c) ** 2
  if a >= 1:
    return math.inf
  alone = (1 - zeta) * (1 - a)
  theta = (alone + zeta / m) / (alone + zeta)
  damping = 2 * c - alpha * c**2 - alpha * beta2 * theta
  return alpha * sigma2 / m / damping if damping > 0 else math.inf


class PeriodicVariance(NamedTuple):
  """Stationary E[wbar^2] of averages at every K-th step.

  Attributes:
    at_averages: at the steps that end with an average.
    mean: over all steps.
  """

  at_averages: float
  mean: float


def periodic_quadratic_variance(
  *,
  period: int,
  num_replicas: int,
  learning_rate: float,
  curvature: float,
  beta_squared: float,
  sigma_squared: float,
) -> PeriodicVariance:
  """lim E[wbar^2] on c w^2 / 2, averaging at every K-th step.

  With a = (1 - alpha c)^2, p = a + alpha^2 beta^2, s = alpha^2 sigma^2,
  g_k(x) = 1 + x + ... + x^(k-1) and h(x) = g_1(x) + ... + g_K(x):

    at averages  m = s g_K(p) / [(1 - p) g_K(p) + (M - 1) (1 - a) g_K(a)]
    mean         {m [p g_K(p) + (M - 1) a g_K(a)] + s h(p)} / (K M)

  Derivation: a step of the second moments A = E[w_i^2] and C = E[w_i w_j] of
  independent noise is A <- p A + s, C <- a C, and wbar has (A + (M - 1) C) / M.
  From A = C = m just after an average, that is after k steps
  (p^k m + s g_k(p) + (M - 1) a^k m) / M. It is m again at k = K, which with
  1 - x^K = (1 - x) g_K(x) gives m; its sum over k = 1 .. K gives the mean.

  Args:
    period: K, an integer >= 1.
    num_replicas: M.
    learning_rate: alpha.
    curvature: c.
    beta_squared, sigma_squared: beta^2 and sigma^2, as in
      `averaged_quadratic_variance`.

  Returns:
    The limits; infinity where the replicas diverge.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> constants = dict(num_replicas=8, learning_rate=0.1, curvature=1,
    ...                  beta_squared=10, sigma_squared=1)
    >>> [round(v, 5) for v in periodic_quadratic_variance(
    ...     period=20, **constants)]
    [0.01217, 0.01082]
    >>> round(averaged_quadratic_variance(probability=1 / 20, **constants), 5)
    0.01147

  Reference:
    Derived, for the setting of Zhang, De Sa, Mitliagkas, Re 2016 (arXiv
    1606.07365).
  """
  k = check_positive_int('period', period)
  m = check_positive_int('num_replicas', num_replicas)
  alpha, c, beta2, sigma2 = _quadratic(
    learning_rate, curvature, beta_squared, sigma_squared
  )
  # 1 - a and 1 - p, which would cancel.
  own = alpha * c * (2 - alpha * c)
  noisy = own - alpha**2 * beta2
  (g_p, h_p), (g_a, _) = _power_sums(1 - noisy, k), _power_sums(1 - own, k)
  damping = noisy * g_p + (m - 1) * own * g_a
  if not 0 < damping < math.inf:
    return PeriodicVariance(math.inf, math.inf)
  fresh = alpha**2 * sigma2
  at_averages = fresh * g_p / damping
  kept = (1 - noisy) * g_p + (m - 1) * (1 - own) * g_a
  mean = (at_averages * kept + fresh * h_p) / (k * m)
  return PeriodicVariance(at_averages, mean)


def _power_sums(x: float, k: int) -> tuple[float, float]:
  """(g_k(x), g_1(x) + ... + g_k(x)) with g_k(x) = 1 + x + ... + x^(k-1).

  By squaring the matrix of g <- x g + 1, h <- h + g: without a difference.
  """
  step = np.array([[x, 0.0, 1.0], [x, 1.0, 1.0], [0.0, 0.0, 1.0]])
  with np.errstate(over='ignore', invalid='ignore'):
    g, h, _ = np.linalg.matrix_power(step, k)[:, -1]
  return float(g), float(h)


def _quadratic(
  learning_rate: float,
  curvature: float,
  beta_squared: float,
  sigma_squared: float,
) -> tuple[float, float, float, float]:
  """Returns alpha, c, beta^2 and sigma^2, checked."""
  return (
    check_positive('learning_rate', learning_rate),
    check_positive('curvature', curvature),
    check_not_negative('beta_squared', beta_squared),
    check_not_negative('sigma_squared', sigma_squared),
  )


def one_shot_quartic(num_replicas: int) -> float:
  """E f(wbar) of one average at the end, f(w) = (w^2 - 1)^2 from w = 0.

  1 - 2/M + 3/M^2 - 2/M^3: each of M replicas ends at +1 or -1 by chance, both
  optimal, and their mean is near 0, where f = 1.

  Raises:
    ValueError: if `num_replicas` is not an integer >= 1.

  Reference:
    Derived, for the example of Zhang, De Sa, Mitliagkas, Re 2016 (arXiv
    1606.07365).
  """
  m = check_positive_int('num_replicas', num_replicas)
  return 1 - 2 / m + 3 / m**2 - 2 / m**3


def heterogeneous_fixed_point(
  targets: Sequence[float] | np.ndarray,
  local_steps: Sequence[int],
  *,
  learning_rate: float,
) -> np.ndarray:
  """Where Algorithm 3 of PR-SGD ends on f_i = |x - e_i|^2 / 2, exact gradients.

  sum_i w_i e_i / sum_i w_i with w_i = 1 - (1 - gamma)^{I_i}: the optimum is
  mean_i e_i, and for small gamma the limit is sum_i I_i e_i / sum_i I_i.

  Args:
    targets: e_i, [N, ...].
    local_steps: I_i, [N].
    learning_rate: gamma, in (0, 2), where it converges.

  Returns:
    float64[...].

  Raises:
    ValueError: if an argument is out of its range, or they differ in length.

  Example:
    >>> point = heterogeneous_fixed_point(
    ...     [0, 1, 4], [1, 3, 8], learning_rate=0.2)
    >>> round(float(point), 5)
    2.51075

  Reference:
    Wang, Liu, Liang, Joshi, Poor 2020, Tackling the objective inconsistency
    problem in heterogeneous federated optimization (arXiv 2007.07481), Lemma 1.
  """
  gamma = check_number(
    'learning_rate', learning_rate, lambda x: 0 < x < 2, 'in (0, 2)'
  )
  counts = [check_positive_int('local_steps', k) for k in local_steps]
  points = np.asarray(targets, np.float64)
  if not np.isfinite(points).all():
    raise ValueError(f'targets must be finite, got {targets!r}')
  if not counts or len(points) != len(counts):
    raise ValueError(
      f'local_steps must have one number for each of the {len(points)} '
      f'targets, got {len(counts)}'
    )
  steps = np.array(counts, np.float64)
  # Below 1 by logarithms, because 1 - (1 - gamma)^I cancels for small gamma.
  weights = (
    -np.expm1(steps * np.log1p(-gamma))
    if gamma < 1
    else 1 - (1 - gamma) ** steps
  )
  return np.tensordot(weights, points, 1) / weights.sum()

"""Laws: exact results for averaged SGD on simple problems.

They are fixed points, drifts and stationary variances, in closed form or by
linear algebra without random numbers. Simulations must reproduce them. Bounds
are in `theory`.
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

# The fraction of noise at which the sum ends, and the fraction by which a cycle
# must reduce it, because otherwise it never decays.
GONE = 1e-14
STUCK = 1e-12


class ConsensusVariance(NamedTuple):
  """Stationary (1/N) E sum_i |x_i - xbar|^2 at the end of a step.

  Attributes:
    mix_then_step: order A or B, such as `d_psgd`: x <- W x + noise.
    step_then_mix: order C, such as `diffusion`: x <- W (x + noise).
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
  """Return Hier-AVG's drift without gradients, before the average of a step.

  D(t) = ((t - 1) mod K1 + 1) (1 - 1/P) + floor((t - 1) / K1) K1 (1/S - 1/P)

  It is (1/P) E sum_i |x_i - xbar|^2 at step t = 1 .. K2 of a round, for noise
  of unit variance in every step. Multiply it by gamma^2 E|noise|^2. With K1 =
  K2 or S = 1 it is the drift of K-AVG, t (1 - 1/P).

  Args:
    steps: int[...], 0-based steps of the run, t - 1.
    num_replicas: P, >= 1.
    local_period: K1, a divisor of K2.
    global_period: K2.
    group_size: S, a divisor of P.

  Returns:
    float64[...], increasing in K1 and decreasing in S.

  Raises:
    ValueError: if an argument is out of its range, if K1 does not divide K2, or
      if S does not divide P.

  Example:
    >>> hier_avg_drift(
    ...   range(4), num_replicas=4, local_period=2, global_period=4,
    ...   group_size=2).tolist()
    [0.75, 1.5, 1.25, 2.0]

  Reference:
    Derived, for the algorithm of Zhou, Cong 2019 (arXiv 1903.05133). Noise that
    a group has averaged contributes 1/S - 1/P; other noise 1 - 1/P.
  """
  p, k1, k2, size = check_hierarchy(
    num_replicas, local_period, global_period, group_size
  )
  since_global = np.asarray(steps) % k2
  since_local = since_global % k1
  averaged = since_global - since_local
  return (since_local + 1) * (1 - 1 / p) + averaged * (1 / size - 1 / p)


def mean_drift(period: int, num_replicas: int) -> ConsensusVariance:
  """Return the mean drift of PR-SGD and K-AVG over an interval, no gradients.

  It is (1 - 1/N) (I + 1) / 2 at the end of PR-SGD's steps, or before K-AVG's
  averages, and (1 - 1/N) (I - 1) / 2 at the end of K-AVG's steps, for noise of
  unit variance. Multiply it by gamma^2 E|noise|^2. PR-SGD's first interval,
  from equal replicas, has one noise term less.

  Args:
    period: I, steps between averages, >= 1.
    num_replicas: N, >= 1.

  Raises:
    ValueError: if an argument is not an integer >= 1.

  Example:
    >>> mean_drift(5, num_replicas=4)
    ConsensusVariance(mix_then_step=2.25, step_then_mix=1.5)

  Reference:
    Derived; Yu, Yang, Zhu 2019 (arXiv 1807.06629), Algorithm 1 (order A), and
    Zhou, Cong 2018 (arXiv 1708.01012), Algorithm 1 (order C).
  """
  period = check_positive_int('period', period)
  apart = 1 - 1 / check_positive_int('num_replicas', num_replicas)
  return ConsensusVariance(apart * (period + 1) / 2, apart * (period - 1) / 2)


def consensus_variance(mixing: Mixing, num_replicas: int) -> ConsensusVariance:
  """Return the stationary variance of replicas under gossip and noise only.

  It is sum_{s >= 0} E|Pi W_s ... W_1|^2 / N with Pi = I - 11'/N and the
  Frobenius norm; in order C the sum starts at s = 1. The noise has unit
  variance in every replica and step. Multiply the result by gamma^2 E|noise|^2.

  For one symmetric W it is (1/N) sum_{i >= 2} 1 / (1 - lambda_i^2); order C has
  lambda_i^2 in the numerator. If random matrices are symmetric in the replicas,
  as in `random_matching`, the eigenvalues of E[W'W] replace lambda^2. In
  general they do not suffice, so the covariance is iterated. For alternating
  matrices, one per step, it is the mean over their cycle.

  Args:
    mixing: W, doubly stochastic.
    num_replicas: N, >= 1.

  Raises:
    ValueError: if the mixing is not doubly stochastic, does not fit the number
      of replicas, or never makes them agree.

  Example:
    >>> import prsgd_jax as pr
    >>> variance = consensus_variance(pr.graphs.ring(), 16)
    >>> [round(v, 3) for v in variance]
    [2.41, 1.472]

  Reference:
    Derived, for the setting of Zhang et al. 2021 (arXiv 2112.01433). Lian et
    al. 2017 (arXiv 1705.09056), Algorithm 1, has order A.
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
  """Return the remaining noise of one step, summed over all later rounds.

  Args:
    cycle: the rounds of a cycle, each [K, N, N] equally likely matrices.
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
    # W never increases noise. If a whole cycle does not reduce it, the rest is
    # invariant, and later cycles do not reduce it either.
    if left > (1 - STUCK) * before:
      raise ValueError(
        'consensus_variance expects a mixing that makes replicas agree, got '
        'one that never does; connect all replicas, with weights > 0 on the '
        'diagonal'
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
  """Return lim E[wbar^2] on c w^2 / 2 for averages at random steps.

  It is (alpha sigma^2 / M) / (2 c - alpha c^2 - alpha beta^2 theta) with
  theta = [(1 - zeta) (1 - a) + zeta / M] / [(1 - zeta) (1 - a) + zeta] and
  a = (1 - alpha c)^2. Gradients are c w - b w - h with Var b = beta^2 and
  Var h = sigma^2, independent between replicas. With beta = 0 it does not
  depend on zeta.

  It is exact for averages at random steps, and not for averages at every K-th
  step. With zeta = 1 / K it is larger than the variance of those (by 9% in the
  example with K = 10); use `periodic_quadratic_variance`.

  Args:
    probability: zeta, the probability of an average at a step, in [0, 1].
    num_replicas: M, >= 1.
    learning_rate: alpha, > 0.
    curvature: c, > 0.
    beta_squared: beta^2, >= 0.
    sigma_squared: sigma^2, >= 0.

  Returns:
    The limit; infinity if the replicas diverge.

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
  """Stationary E[wbar^2] for averages at every K-th step.

  Attributes:
    at_averages: the value at steps that end with an average.
    mean: the mean over all steps.
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
  """Return lim E[wbar^2] on c w^2 / 2 for averages at every K-th step.

  With a = (1 - alpha c)^2, p = a + alpha^2 beta^2, s = alpha^2 sigma^2,
  g_k(x) = 1 + x + ... + x^(k-1) and h(x) = g_1(x) + ... + g_K(x):

    at averages  m = s g_K(p) / [(1 - p) g_K(p) + (M - 1) (1 - a) g_K(a)]
    mean         {m [p g_K(p) + (M - 1) a g_K(a)] + s h(p)} / (K M)

  Derivation: with independent noise, a step maps the second moments
  A = E[w_i^2] and C = E[w_i w_j] to A <- p A + s, C <- a C, and
  E[wbar^2] = (A + (M - 1) C) / M. Starting from A = C = m after an average, it
  is (p^k m + s g_k(p) + (M - 1) a^k m) / M after k steps. At k = K it is m
  again, which with 1 - x^K = (1 - x) g_K(x) gives m. The sum over k = 1 .. K
  gives the mean.

  Args:
    period: K, an integer >= 1.
    num_replicas: M, >= 1.
    learning_rate: alpha, > 0.
    curvature: c, > 0.
    beta_squared: beta^2, >= 0; see `averaged_quadratic_variance`.
    sigma_squared: sigma^2, >= 0; see `averaged_quadratic_variance`.

  Returns:
    The limits; infinity if the replicas diverge.

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
  # 1 - a and 1 - p, expanded, because the differences would cancel.
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
  """Return g_k(x) = 1 + x + ... + x^(k-1), and g_1(x) + ... + g_k(x).

  Computed by repeated squaring of the matrix of g <- x g + 1, h <- h + g,
  because it has no differences that cancel.
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
  """Return alpha, c, beta^2 and sigma^2, checked."""
  return (
    check_positive('learning_rate', learning_rate),
    check_positive('curvature', curvature),
    check_not_negative('beta_squared', beta_squared),
    check_not_negative('sigma_squared', sigma_squared),
  )


def one_shot_quartic(num_replicas: int) -> float:
  """Return E f(wbar) of one final average, for f(w) = (w^2 - 1)^2 from w = 0.

  It is 1 - 2/M + 3/M^2 - 2/M^3. Each of M replicas ends at +1 or -1 at random,
  both optimal, and their mean is near 0, where f = 1.

  Args:
    num_replicas: M, >= 1.

  Example:
    >>> one_shot_quartic(1), one_shot_quartic(2)
    (0.0, 0.5)

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
  """Return the fixed point of PR-SGD's Algorithm 3 on f_i = |x - e_i|^2 / 2.

  With exact gradients it is sum_i w_i e_i / sum_i w_i with
  w_i = 1 - (1 - gamma)^{I_i}. The optimum is mean_i e_i. For small gamma the
  fixed point tends to sum_i I_i e_i / sum_i I_i.

  Args:
    targets: e_i, [N, ...].
    local_steps: I_i, [N], integers >= 1.
    learning_rate: gamma, in (0, 2), where the algorithm converges.

  Returns:
    The fixed point, float64[...].

  Raises:
    ValueError: if an argument is out of its range, or if the lengths differ.

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
  # For gamma < 1 use logarithms, because 1 - (1 - gamma)^I cancels if gamma is
  # small.
  weights = (
    -np.expm1(steps * np.log1p(-gamma))
    if gamma < 1
    else 1 - (1 - gamma) ** steps
  )
  return np.tensordot(weights, points, 1) / weights.sum()

"""Theory: the right-hand sides of the papers' theorems.

A bound is a NamedTuple of its terms, whose `sum` is the bound. So a test can
omit a term, and must then fail somewhere. `noise` and `landscape` measure the
constants of a problem. Exact results are in `laws`.
"""

import math
from typing import NamedTuple

from prsgd_jax.checks import (
  check_not_negative,
  check_number,
  check_positive,
  check_positive_int,
)


class GradientBound(NamedTuple):
  """Terms of a bound on a mean of E|grad f|^2; their `sum` is the bound.

  Attributes:
    start: the term of the distance of the first loss from the optimum.
    noise: the term of the variance of the averaged gradient.
    drift: the term of the distance between the replicas.
  """

  start: float
  noise: float
  drift: float


class Corollary(NamedTuple):
  """Parameters for which Theorem 1 of PR-SGD gives O(1 / sqrt(N T)).

  Attributes:
    learning_rate: gamma.
    period: the largest allowed I, not rounded.
    rounds: T / I, the smallest number of averages.
  """

  learning_rate: float
  period: float
  rounds: float


def drift_bound(
  *, learning_rate: float, period: int, second_moment: float
) -> float:
  """Return the bound of PR-SGD's lemma on the drift at every step.

    E|xbar^t - x_i^t|^2 <= 4 gamma^2 I^2 G^2

  Args:
    learning_rate: gamma, > 0.
    period: I, >= 1.
    second_moment: G^2, where E|G_i|^2 <= G^2 (`noise.second_moment_bound`).

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> round(drift_bound(learning_rate=0.1, period=5, second_moment=2), 4)
    2.0

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), the lemma before Theorem 1 (number not
    verified).
  """
  gamma = check_positive('learning_rate', learning_rate)
  period = check_positive_int('period', period)
  second_moment = check_not_negative('second_moment', second_moment)
  return 4 * gamma**2 * period**2 * second_moment


def pr_sgd_bound(
  *,
  num_replicas: int,
  num_steps: int,
  period: int,
  learning_rate: float,
  smoothness: float,
  initial_gap: float,
  variance: float,
  second_moment: float,
) -> GradientBound:
  """Return the bound of PR-SGD's Theorem 1, for 0 < gamma <= 1 / L.

  (1/T) sum_{t=1..T} E|grad f(xbar^{t-1})|^2 <=
    2 (f(xbar^0) - f*) / (gamma T) + L gamma sigma^2 / N + 4 gamma^2 I^2 G^2 L^2

  The authors' slides print L in place of L^2 in the last term, the drift. Their
  corollary, and the units, require L^2.

  Args:
    num_replicas: N, >= 1.
    num_steps: T, >= 1.
    period: I, >= 1.
    learning_rate: gamma, in (0, 1 / L].
    smoothness: L, the Lipschitz constant of grad f_i, > 0.
    initial_gap: f(xbar^0) - f*, >= 0.
    variance: sigma^2, where E|G_i - grad f_i|^2 <= sigma^2.
    second_moment: G^2, where E|G_i|^2 <= G^2.

  Raises:
    ValueError: if an argument is out of its range, such as gamma > 1 / L.

  Example:
    >>> bound = pr_sgd_bound(
    ...     num_replicas=4, num_steps=1000, period=5, learning_rate=0.01,
    ...     smoothness=1, initial_gap=1, variance=1, second_moment=2)
    >>> round(bound.drift, 4), round(sum(bound), 4)
    (0.02, 0.2225)

  Reference:
    Yu, Yang, Zhu 2019 (arXiv 1807.06629), Theorem 1.
  """
  n = check_positive_int('num_replicas', num_replicas)
  num_steps = check_positive_int('num_steps', num_steps)
  smoothness = check_positive('smoothness', smoothness)
  # Allow a millionth more, because 1 / L may have been rounded.
  gamma = check_number(
    'learning_rate',
    learning_rate,
    lambda x: 0 < x * smoothness <= 1 + 1e-6,
    f'in (0, 1 / smoothness] = (0, {1 / smoothness:g}]',
  )
  gap = check_not_negative('initial_gap', initial_gap)
  drift = drift_bound(
    learning_rate=gamma, period=period, second_moment=second_moment
  )
  return GradientBound(
    start=2 * gap / (gamma * num_steps),
    noise=smoothness * gamma * check_not_negative('variance', variance) / n,
    drift=drift * smoothness**2,
  )


def pr_sgd_corollary(
  *, num_replicas: int, num_steps: int, smoothness: float
) -> Corollary:
  """Return the parameters of PR-SGD's corollary.

    gamma = sqrt(N) / (L sqrt(T)),  I <= T^{1/4} / N^{3/4}

  With them, Theorem 1 gives (2 L (f(xbar^0) - f*) + 4 G^2 + sigma^2) /
  sqrt(N T) after N^{3/4} T^{3/4} averages.

  Args:
    num_replicas: N, >= 1.
    num_steps: T, >= N^3.
    smoothness: L, the Lipschitz constant of grad f_i, > 0.

  Raises:
    ValueError: if an argument is out of its range, or if T < N^3, for which not
      even I = 1 is allowed.

  Example:
    >>> found = pr_sgd_corollary(num_replicas=4, num_steps=10**4, smoothness=1)
    >>> round(found.learning_rate, 4), round(found.period, 4)
    (0.02, 3.5355)

  Reference:
    Yu, Yang, Zhu 2019 (arXiv 1807.06629), the corollary of Theorem 1 (number
    not verified).
  """
  n = check_positive_int('num_replicas', num_replicas)
  num_steps = check_positive_int('num_steps', num_steps)
  smoothness = check_positive('smoothness', smoothness)
  if num_steps < n**3:
    raise ValueError(
      f'num_steps must be >= num_replicas^3 = {n**3}, the least for which the '
      f'corollary allows a period of 1, got {num_steps}'
    )
  return Corollary(
    learning_rate=math.sqrt(n / num_steps) / smoothness,
    period=(num_steps / n**3) ** 0.25,
    rounds=(n * num_steps) ** 0.75,
  )


def k_avg_bound(
  *,
  num_replicas: int,
  num_rounds: int,
  period: int,
  learning_rate: float,
  smoothness: float,
  initial_gap: float,
  variance: float,
  batch_size: int = 1,
  delta: float = 0.5,
) -> GradientBound:
  """Return K-AVG's bound on the mean of E|grad F|^2 over R averages.

  2 dF / (R (K - 1 + d) gamma) +
    L K gamma M / (B (K - 1 + d)) * (K / P + L (2 K - 1) (K - 1) gamma / 6)

  It holds for gamma that are small enough: with x = L gamma,

    x^2 (K + 1) (K - 2) / 2 + K x <= 1,  x^2 <= 1 - d

  The bound and its conditions are derived here. The bound has the form of the
  paper's, which was not compared with it.

  Args:
    num_replicas: P, >= 1.
    num_rounds: R, >= 1.
    period: K, >= 1.
    learning_rate: gamma, > 0, which meets the conditions.
    smoothness: L, the Lipschitz constant of grad F, > 0.
    initial_gap: dF = F(w_1) - F*, >= 0.
    variance: M, the variance of the gradient of one example, >= 0.
    batch_size: B, the number of examples in a gradient, >= 1. Default: 1.
    delta: d, in (0, 1). Default: 0.5.

  Raises:
    ValueError: if an argument is out of its range, such as a gamma for which
      the bound does not hold.

  Example:
    >>> bound = k_avg_bound(
    ...     num_replicas=8, num_rounds=100, period=4, learning_rate=0.01,
    ...     smoothness=1, initial_gap=1, variance=1)
    >>> round(sum(bound), 4)
    0.5775

  Reference:
    Zhou, Cong 2018, On the convergence properties of a K-step averaging
    stochastic gradient descent algorithm (arXiv 1708.01012), whose theorem has
    this form.
  """
  p = check_positive_int('num_replicas', num_replicas)
  k = check_positive_int('period', period)
  num_rounds = check_positive_int('num_rounds', num_rounds)
  smoothness = check_positive('smoothness', smoothness)
  delta = _fraction('delta', delta)
  gamma = _small_enough(learning_rate, k, smoothness, delta)
  gap = check_not_negative('initial_gap', initial_gap)
  noise = check_not_negative('variance', variance)
  noise /= check_positive_int('batch_size', batch_size)
  length = k - 1 + delta
  scale = smoothness * k * gamma * noise / length
  return GradientBound(
    start=2 * gap / (num_rounds * length * gamma),
    noise=scale * k / p,
    drift=scale * smoothness * (2 * k - 1) * (k - 1) * gamma / 6,
  )


def hier_avg_bound(
  *,
  num_replicas: int,
  num_rounds: int,
  local_period: int,
  global_period: int,
  group_size: int,
  learning_rate: float,
  smoothness: float,
  initial_gap: float,
  variance: float,
  batch_size: int = 1,
  delta: float = 0.5,
) -> GradientBound:
  """Return Hier-AVG's bound on the mean of E|grad F|^2, R global averages.

  2 dF / (R (K2 - 1 + d) gamma) + L gamma M K2^2 / (P B (K2 - 1 + d)) +
    L^2 gamma^2 M K2 / (12 B (K2 - 1 + d)) *
    [(K2 - K1) (4 K2 + K1 - 3) / S + (K1 - 1) (3 K2 + K1 - 2)]

  It holds under the conditions of `k_avg_bound` with K = K2. The bound and its
  conditions are derived here. The bound has the form of the paper's, which was
  not compared with it. At S = 1 and at K1 = K2 it is the bound of K-AVG. It
  decreases in S and increases in K1.

  Args:
    num_replicas: P, >= 1.
    num_rounds: R, the number of global averages, >= 1.
    local_period: K1, a divisor of K2.
    global_period: K2, >= 1.
    group_size: S, a divisor of P.
    learning_rate: gamma, > 0, which meets the conditions.
    smoothness: L, the Lipschitz constant of grad F, > 0.
    initial_gap: dF = F(w_1) - F*, >= 0.
    variance: M, the variance of the gradient of one example, >= 0.
    batch_size: B, the number of examples in a gradient, >= 1. Default: 1.
    delta: d, in (0, 1). Default: 0.5.

  Raises:
    ValueError: if an argument is out of its range, such as a gamma for which
      the bound does not hold, if K1 does not divide K2, or if S does not divide
      P.

  Example:
    >>> bound = hier_avg_bound(
    ...     num_replicas=8, num_rounds=100, local_period=2, global_period=4,
    ...     group_size=4, learning_rate=0.01, smoothness=1, initial_gap=1,
    ...     variance=1)
    >>> round(sum(bound), 4)
    0.5773

  Reference:
    Zhou, Cong 2019, A distributed hierarchical SGD algorithm with sparse global
    reduction (arXiv 1903.05133), whose theorem has this form.
  """
  p, k1, k2, size = check_hierarchy(
    num_replicas, local_period, global_period, group_size
  )
  num_rounds = check_positive_int('num_rounds', num_rounds)
  smoothness = check_positive('smoothness', smoothness)
  delta = _fraction('delta', delta)
  gamma = _small_enough(learning_rate, k2, smoothness, delta)
  gap = check_not_negative('initial_gap', initial_gap)
  noise = check_not_negative('variance', variance)
  noise /= check_positive_int('batch_size', batch_size)
  length = k2 - 1 + delta
  in_groups = (k2 - k1) * (4 * k2 + k1 - 3) / size
  alone = (k1 - 1) * (3 * k2 + k1 - 2)
  scale = (smoothness * gamma) ** 2 * noise * k2 / (12 * length)
  return GradientBound(
    start=2 * gap / (num_rounds * length * gamma),
    noise=smoothness * gamma * noise * k2**2 / (p * length),
    drift=scale * (in_groups + alone),
  )


def check_hierarchy(
  num_replicas: int, local_period: int, global_period: int, group_size: int
) -> tuple[int, int, int, int]:
  """Return P, K1, K2 and S as integers.

  Raises:
    ValueError: if one of them is not an integer >= 1, if K1 does not divide K2,
      or if S does not divide P.
  """
  p = check_positive_int('num_replicas', num_replicas)
  k1 = check_positive_int('local_period', local_period)
  k2 = check_positive_int('global_period', global_period)
  size = check_positive_int('group_size', group_size)
  if k2 % k1:
    raise ValueError(f'local_period must divide global_period {k2}, got {k1}')
  if p % size:
    raise ValueError(f'group_size must divide the {p} replicas, got {size}')
  return p, k1, k2, size


def _small_enough(
  learning_rate: float, period: int, smoothness: float, delta: float
) -> float:
  """Return gamma if the bounds of K-AVG and Hier-AVG hold for it."""
  # The largest x = L gamma, from x^2 <= 1 - d and a x^2 + K x <= 1.
  most, a = math.sqrt(1 - delta), (period + 1) * (period - 2) / 2
  if period > 1:
    most = min(most, 2 / (period + math.sqrt(period**2 + 4 * a)))
  # Allow a millionth more, because the largest gamma may have been rounded.
  return check_number(
    'learning_rate',
    learning_rate,
    lambda gamma: 0 < gamma * smoothness <= most * (1 + 1e-6),
    f'in (0, {most / smoothness:g}], where the bound holds for a period of '
    f'{period}, smoothness {smoothness:g} and delta {delta:g}',
  )


def _fraction(name: str, value: float) -> float:
  return check_number(name, value, lambda x: 0 < x < 1, 'in (0, 1)')

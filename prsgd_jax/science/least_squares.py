"""Least squares: exact risks of SGD, its tail average, and their bound.

Features x are Gaussian with covariance H, and y = x'w* + noise, independent of
x. Then the second moments of the error e = w - w* follow a linear recursion, so
risks need no random numbers. The excess risk of w is L(w) - L(w*) = e'H e / 2
with L(w) = E(x'w - y)^2 / 2.
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
  check_positive_ints,
  check_step,
)

Numbers = Sequence[float] | np.ndarray


class Risk(NamedTuple):
  """Parts of an expected excess risk; their `sum` is the risk.

  Attributes:
    bias: the risk without label noise, from the distance of the start.
    variance: the risk of a start at the optimum, from label noise.
  """

  bias: float
  variance: float


class Risks(NamedTuple):
  """Expected excess risks of the mean of replicas that trained independently.

  Attributes:
    last: of the mean of the last iterates.
    tail: of the mean of the tail averages.
  """

  last: Risk
  tail: Risk


def excess_risks(
  *,
  eigenvalues: Numbers,
  start: Numbers,
  noise_variance: float,
  learning_rate: float,
  batch_size: int,
  num_replicas: int,
  num_steps: int,
  start_step: int,
) -> Risks:
  """Return the exact risks of SGD and of `tail_averaging` on least squares.

  In the eigenbasis of H, let c_i = E[e_i^2] of a replica and m_i = E[e_i]. With
  batch size b and fresh examples in every step,

    c_i <- (1 - 2 gamma h_i + gamma^2 h_i^2 (1 + 1/b)) c_i
           + gamma^2 h_i / b (sum_j h_j c_j + sigma^2)
    m_i <- (1 - gamma h_i) m_i

  The covariance of two iterates of a replica, k steps apart, is (1 - gamma
  h_i)^k times the second moment of the earlier one. Two replicas are
  independent, so their covariance is the product of their means.

  Args:
    eigenvalues: h_i, the eigenvalues of H, float[d], each > 0.
    start: w_0 - w* in the eigenbasis of H, float[d].
    noise_variance: sigma^2, the variance of the label noise, >= 0.
    learning_rate: gamma, > 0.
    batch_size: b, examples per replica and step, >= 1.
    num_replicas: N, >= 1.
    num_steps: T, >= 1.
    start_step: s, in 0 .. T - 1. The tail is the iterates after more than s
      steps.

  Returns:
    The risks; infinity where they exceed the largest float.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> found = excess_risks(
    ...     eigenvalues=[1.0, 0.5], start=[1.0, 1.0], noise_variance=1.0,
    ...     learning_rate=0.1, batch_size=4, num_replicas=8, num_steps=400,
    ...     start_step=200)
    >>> round(found.last.variance, 6), round(found.tail.variance, 6)
    (0.001262, 0.000149)

  Reference:
    Derived, for the setting of Jain, Kakade, Kidambi, Netrapalli, Sidford 2018,
    Parallelizing stochastic gradient descent for least squares regression:
    mini-batching, averaging, and model misspecification (arXiv 1610.03774).
  """
  h, e = _spectrum(eigenvalues), np.asarray(start, np.float64)
  if e.shape != h.shape or not np.isfinite(e).all():
    raise ValueError(
      f'start must be {len(h)} finite numbers, one for each eigenvalue, got '
      f'{start!r}'
    )
  sigma2 = check_not_negative('noise_variance', noise_variance)
  gamma = check_positive('learning_rate', learning_rate)
  b = check_positive_int('batch_size', batch_size)
  n = check_positive_int('num_replicas', num_replicas)
  steps = check_positive_int('num_steps', num_steps)
  first = _first(start_step, steps)
  # Columns: without label noise, and from the optimum.
  second = np.stack([e**2, np.zeros_like(e)], axis=1)
  noise = np.array([0.0, sigma2])
  kept = 1 - gamma * h
  own = (kept**2 + (gamma * h) ** 2 / b)[:, None]
  spread = gamma**2 / b * h[:, None]
  summed, together = np.zeros_like(second), np.zeros_like(e)
  with np.errstate(over='ignore', invalid='ignore'):
    powers = np.cumsum(kept ** np.arange(1, steps - first)[:, None], axis=0)
    # 1 + 2 sum_{k = 1 .. K} (1 - gamma h)^k, the weight of the moment of an
    # iterate that K iterates follow.
    weights = 1 + 2 * np.concatenate([np.zeros((1, len(h))), powers])
    for t in range(1, steps + 1):
      second = own * second + spread * (h @ second + noise)
      if t > first:
        summed += weights[steps - t][:, None] * second
        together += kept**t * e
    length = steps - first
    return Risks(
      _mixed(h, second, kept**steps * e, n),
      _mixed(h, summed / length**2, together / length, n),
    )


def replica_moments(
  *,
  eigenvalues: Numbers,
  start: Numbers,
  noise_variance: float,
  learning_rate: float,
  batch_size: int,
  local_steps: Sequence[int],
) -> np.ndarray:
  """Return E[e_i' H e_j] / 2 of replicas that took unequal numbers of steps.

  A weighted mean of the replicas has the excess risk w' M w with this matrix M,
  because e is the difference to one optimum and the weights sum to 1.

  Args:
    eigenvalues: h_i, the eigenvalues of H, float[d], each > 0.
    start: w_0 - w* in the eigenbasis of H, float[d], of all replicas.
    noise_variance: sigma^2, the variance of the label noise, >= 0.
    learning_rate: gamma, > 0.
    batch_size: b, examples per replica and step, >= 1.
    local_steps: I_i, integers >= 1, one for each replica.

  Returns:
    M, float64[N, N].

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> moments = replica_moments(
    ...     eigenvalues=[1.0], start=[1.0], noise_variance=0.0,
    ...     learning_rate=0.5, batch_size=1, local_steps=[1, 2])
    >>> moments.tolist()
    [[0.375, 0.0625], [0.0625, 0.28125]]

  Reference:
    Derived, as `excess_risks`.
  """
  h = _spectrum(eigenvalues)
  steps = check_positive_ints('local_steps', local_steps)
  # One replica each, because a replica's risk does not depend on the rest.
  own = [
    excess_risks(
      eigenvalues=eigenvalues,
      start=start,
      noise_variance=noise_variance,
      learning_rate=learning_rate,
      batch_size=batch_size,
      num_replicas=1,
      num_steps=count,
      start_step=0,
    ).last
    for count in steps
  ]
  kept = (1 - learning_rate * h) ** np.array(steps)[:, None] * np.asarray(start)
  moments = (kept * h) @ kept.T / 2
  np.fill_diagonal(moments, [sum(risk) for risk in own])
  return moments


def best_weights(moments: Numbers) -> np.ndarray:
  """Return the weights w of sum 1 with the smallest w' M w.

  They are M^{-1} 1 / (1' M^{-1} 1), and may be negative.

  Args:
    moments: M, float[N, N], positive definite; see `replica_moments`.

  Example:
    >>> best_weights(np.diag([1.0, 3.0])).tolist()
    [0.75, 0.25]
  """
  solved = np.linalg.solve(np.asarray(moments), np.ones(len(moments)))
  return solved / solved.sum()


def _mixed(h: np.ndarray, second: np.ndarray, mean: np.ndarray, n: int) -> Risk:
  """Return the risk of the mean of n independent replicas."""
  common = np.stack([mean**2, np.zeros_like(mean)], axis=1)
  parts = h @ (common + (second - common) / n) / 2
  # A risk beyond the largest float is infinite, and not unknown.
  bias, variance = np.where(np.isfinite(parts), parts, np.inf)
  return Risk(float(bias), float(variance))


def _first(start_step: int, num_steps: int) -> int:
  if check_step('start_step', start_step) >= num_steps:
    raise ValueError(
      f'start_step must be in 0 .. {num_steps - 1}, got {start_step!r}'
    )
  return start_step


def _spectrum(eigenvalues: Numbers) -> np.ndarray:
  h = np.asarray(eigenvalues, np.float64)
  if h.ndim != 1 or not h.size or not (np.isfinite(h) & (h > 0)).all():
    raise ValueError(
      f'eigenvalues must be a list of finite numbers > 0, got {eigenvalues!r}'
    )
  return h


def largest_rate(eigenvalues: Numbers, *, batch_size: int) -> float:
  """Return the paper's limit of the learning rate for a batch size.

    gamma_max = 2 b / (R^2 + (b - 1) |H|),  R^2 = tr H + 2 |H|

  R^2 is the smallest number with E[|x|^2 x x'] <= R^2 H for Gaussian features.
  For well-specified labels the paper's factor rho_m is 1. The limit grows
  linearly while b is well below b_thresh = 1 + R^2 / |H|, and tends to 2 / |H|,
  the limit of gradient descent.

  Args:
    eigenvalues: h_i, the eigenvalues of H, float[d], each > 0.
    batch_size: b, examples per step, >= 1.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> [round(largest_rate([1.0, 1.0], batch_size=b), 3) for b in (1, 2, 100)]
    [0.5, 0.8, 1.942]

  Reference:
    Jain et al. 2018 (arXiv 1610.03774). Recalled; not verified: the equation.
  """
  h, b = _spectrum(eigenvalues), check_positive_int('batch_size', batch_size)
  return float(2 * b / (h.sum() + 2 * h.max() + (b - 1) * h.max()))


def tail_bound(
  *,
  eigenvalues: Numbers,
  start_risk: float,
  noise_variance: float,
  learning_rate: float,
  batch_size: int,
  num_steps: int,
  start_step: int,
) -> Risk:
  """Return the theorem's bound on the excess risk of a tail average, N = 1.

    2 (1 - gamma mu)^s / (gamma mu (T - s))^2 (L(w_0) - L*)
    + 4 sigma^2 d / (2 b (T - s))

  Here mu is the smallest eigenvalue, and sigma^2 d / 2 is tr(H^{-1} Sigma) / 2
  for well-specified labels.

  Args:
    eigenvalues: h_i, the eigenvalues of H, float[d], each > 0.
    start_risk: L(w_0) - L*, >= 0.
    noise_variance: sigma^2, the variance of the label noise, >= 0.
    learning_rate: gamma, in (0, gamma_max / 2]; see `largest_rate`.
    batch_size: b, examples per step, >= 1.
    num_steps: T, >= 1.
    start_step: s, in 0 .. T - 1.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> bound = tail_bound(
    ...     eigenvalues=[1.0, 0.5], start_risk=1.0, noise_variance=1.0,
    ...     learning_rate=0.1, batch_size=4, num_steps=400, start_step=200)
    >>> round(bound.bias, 6), bound.variance
    (1e-06, 0.005)

  Reference:
    Jain et al. 2018 (arXiv 1610.03774), the theorem on tail-averaged mini-batch
    SGD. Recalled; not verified: its number and its constants 2 and 4.
  """
  h = _spectrum(eigenvalues)
  limit = largest_rate(h, batch_size=batch_size) / 2
  gamma = check_number(
    'learning_rate',
    learning_rate,
    lambda g: 0 < g <= limit * (1 + 1e-9),
    f'in (0, {limit:.4g}], half of the largest rate',
  )
  steps = check_positive_int('num_steps', num_steps)
  first = _first(start_step, steps)
  risk = check_not_negative('start_risk', start_risk)
  sigma2 = check_not_negative('noise_variance', noise_variance)
  slow = gamma * float(h.min())
  bias = 2 * math.exp(first * math.log1p(-slow)) / (slow * (steps - first)) ** 2
  return Risk(bias * risk, 2 * sigma2 * len(h) / (batch_size * (steps - first)))

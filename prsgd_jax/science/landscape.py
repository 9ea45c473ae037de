"""Measurements of the loss landscape: curvature and effective steps.

They run on the host and need only the `grad_fn` of the loss; see `noise`.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import numpy as np

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing.payload import wire_dtype
from prsgd_jax.science.noise import GradFn, gradients, length, rows


class Curvature(NamedTuple):
  """Eigenvalues of the Hessian H at one point.

  All are NaN if the iterations did not converge, or if H is not finite.

  Attributes:
    smoothness: the largest |eigenvalue|, the local Lipschitz constant L of the
      gradient.
    sharpness: the largest eigenvalue, with its sign.
    residual: |H v - lambda v| / L of the two eigenpairs, the larger one.
  """

  smoothness: float
  sharpness: float
  residual: float


class EffectiveStep(NamedTuple):
  """A step of the replicas' mean, compared with gradient descent.

  Attributes:
    learning_rate: alpha_e = alpha g_a . g / |g|^2; nan if g = 0.
    noise: Delta = |eta|^2 = alpha^2 |g_a|^2 - alpha_e^2 |g|^2.
    ssgd_noise: Delta_S = alpha^2 |g_S - g|^2.
    landscape_noise: Delta_2 = Delta - Delta_S, of either sign.
    ssgd_learning_rate: alpha_e with g_S in place of g_a.
    ssgd_across: Delta with g_S in place of g_a, which is Delta_S without the
      part along g.
    displacement: alpha^2 |g_a - g_S|^2, the total effect of the spread of the
      replicas.
    square_gradient: |g|^2.
  """

  learning_rate: float
  noise: float
  ssgd_noise: float
  landscape_noise: float
  ssgd_learning_rate: float
  ssgd_across: float
  displacement: float
  square_gradient: float


def curvature(
  grad_fn: GradFn,
  params: ArrayTree,
  batch: Any,
  key: Array,
  *,
  tolerance: float = 1e-3,
  max_iterations: int = 1000,
) -> Curvature:
  """Return the largest eigenvalues of the Hessian, from products H v.

  The implicitly restarted Lanczos method of ARPACK finds the eigenvalue of
  largest size. If it is negative, H + L I has the largest one.

  Args:
    grad_fn: the gradient of the loss, `(params, batch, key) -> gradients`.
    params: the point at which the Hessian is taken.
    batch: the batch of the loss.
    key: the random key of the loss, used in all products.
    tolerance: the residual to reach; the error of an isolated eigenvalue is of
      the order of its square.
    max_iterations: the number of restarts, of about 20 products each.

  Raises:
    ValueError: if `max_iterations` is not an integer >= 1.

  Example:
    >>> found = curvature(
    ...     lambda x, batch, key: batch * x, np.ones(3), np.array([2, 1, -3]),
    ...     jax.random.key(0))
    >>> round(found.smoothness, 2), round(found.sharpness, 2)
    (3.0, 2.0)
  """
  max_iterations = check_positive_int('max_iterations', max_iterations)
  wide = jax.tree.map(lambda x: np.asarray(x, wire_dtype(x)), params)
  # Placed on the device once, because all products use them.
  point, given = jax.device_put((wide, batch))

  def product(v: np.ndarray) -> np.ndarray:
    moved = _hessian_product(grad_fn, point, given, key, v)
    return np.asarray(moved, np.float64)

  size = sum(x.size for x in jax.tree.leaves(wide))
  start = np.random.default_rng(0).normal(size=size)
  moved = product(start)
  if not np.isfinite(moved).all():
    return Curvature(math.nan, math.nan, math.nan)
  if not moved.any():
    return Curvature(0.0, 0.0, 0.0)
  largest, residual = _eigenvalue(product, start, tolerance, max_iterations)
  smoothness, sharpness = abs(largest), largest
  if largest < 0:

    def shifted(v: np.ndarray) -> np.ndarray:
      return product(v) + smoothness * v

    top, rest = _eigenvalue(shifted, start, tolerance, max_iterations)
    sharpness, residual = top - smoothness, max(residual, rest)
  return Curvature(smoothness, sharpness, residual / smoothness)


def effective_step(
  grad_fn: GradFn,
  points: ArrayTree,
  batches: Any,
  full_batches: Any,
  key: Array,
  *,
  learning_rate: float,
) -> EffectiveStep:
  """Return the effective learning rate and noise of DPSGD at the mean.

  alpha g_a = alpha_e g + eta with eta . g = 0, where g = grad L(w_a) at the
  mean w_a = mean_j w_j, and g_a = mean_j grad L^{mu_j}(w_j). On these batches,
  SSGD would take g_S = mean_j grad L^{mu_j}(w_a).

  On quadratics with one Hessian for all batches, g_a - g_S is exactly 0. Then
  `displacement` is 0, alpha_e is that of SSGD, Delta is `ssgd_across`, and
  Delta_2 = -(alpha_e - alpha)^2 |g|^2. This is negative unless the noise of the
  batches has no part along g, because Delta_S includes that part and Delta does
  not. So the landscape adds Delta - `ssgd_across` to the noise.

  Args:
    grad_fn: the gradient of the loss, `(params, batch, key) -> gradients`.
    points: w_j, leaves `[N, ...]`, at which the replicas take gradients.
    batches: mu_j, leaves `[N, ...]`, one batch for each replica.
    full_batches: leaves `[K, ...]`, batches whose mean gradient is grad L: all
      examples, or a large sample, whose noise then enters all results.
    key: the random key of the loss, shared by g_a and g_S.
    learning_rate: alpha.

  Raises:
    ValueError: if the number of batches differs from the number of points.

  Example:
    >>> step = effective_step(  # x^4 / 4 at 0 and 2, against its slope at 1
    ...     lambda x, batch, key: x**3, np.array([[0.], [2.]]), np.zeros(2),
    ...     np.zeros(1), jax.random.key(0), learning_rate=0.1)
    >>> round(step.learning_rate, 3)
    0.4

  Reference:
    Zhang, Liu, Feng, Cui, Kingsbury, Tu 2021, Loss landscape dependent
    self-adjusting learning rates in decentralized stochastic gradient descent
    (arXiv 2112.01433), the section on DPSGD's dynamics (equation
    numbers not verified).
  """
  if length(points) != length(batches):
    raise ValueError(
      f'effective_step expects a batch for each of {length(points)} points, '
      f'got {length(batches)}'
    )
  wide = jax.tree.map(lambda x: np.asarray(x, wire_dtype(x)), points)
  mean = jax.tree.map(
    lambda x: x.mean(axis=0, dtype=np.float64).astype(x.dtype), wide
  )
  own_key, full_key = jax.random.split(key)
  there = itertools.repeat(mean)
  g_a = _mean(gradients(grad_fn, rows(wide), batches, own_key))
  g_s = _mean(gradients(grad_fn, there, batches, own_key))
  g = _mean(gradients(grad_fn, there, full_batches, full_key))
  square = g @ g
  # In units of alpha: the parts along g, and the parts orthogonal to it.
  along_a, along_s = (
    h @ g / square if square else math.nan for h in (g_a, g_s)
  )
  across_a, across_s = g_a - along_a * g, g_s - along_s * g
  scale = learning_rate**2
  noise, ssgd_noise = across_a @ across_a, (g_s - g) @ (g_s - g)
  return EffectiveStep(
    learning_rate=float(learning_rate * along_a),
    noise=float(scale * noise),
    ssgd_noise=float(scale * ssgd_noise),
    landscape_noise=float(scale * (noise - ssgd_noise)),
    ssgd_learning_rate=float(learning_rate * along_s),
    ssgd_across=float(scale * (across_s @ across_s)),
    displacement=float(scale * ((g_a - g_s) @ (g_a - g_s))),
    square_gradient=float(square),
  )


def _eigenvalue(
  multiply: Callable[[np.ndarray], np.ndarray],
  start: np.ndarray,
  tolerance: float,
  max_iterations: int,
) -> tuple[float, float]:
  """Return the eigenvalue of largest size and |A v - lambda v|, or NaN."""
  from scipy.sparse import linalg

  if len(start) == 1:  # because ARPACK requires two dimensions
    return multiply(np.ones(1)).item(), 0.0
  operator = linalg.LinearOperator(
    (len(start), len(start)), multiply, dtype=np.float64
  )
  try:
    (value,), vectors = linalg.eigsh(
      operator, k=1, v0=start, maxiter=max_iterations, tol=tolerance
    )
  except linalg.ArpackNoConvergence:
    return math.nan, math.nan
  v = vectors[:, 0]
  return float(value), float(np.linalg.norm(multiply(v) - value * v))


@functools.partial(jax.jit, static_argnums=0)
def _hessian_product(
  grad_fn: GradFn, params: ArrayTree, batch: Any, key: Array, v: np.ndarray
) -> Array:
  """Return H v, the derivative of the gradient along v."""
  x, unravel = ravel_pytree(params)

  def gradient(x: Array) -> Array:
    return ravel_pytree(grad_fn(unravel(x), batch, key))[0]

  return jax.jvp(gradient, (x,), (v.astype(x.dtype),))[1]


def _mean(drawn: Iterator[np.ndarray]) -> np.ndarray:
  total, count = next(drawn), 1
  for gradient in drawn:
    total, count = total + gradient, count + 1
  return total / count

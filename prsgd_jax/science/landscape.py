"""What is measured of the loss around a run: curvature and effective steps.

On the host, and of the loss by its `grad_fn` alone, as in `noise`.
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

  Attributes:
    smoothness: the largest |eigenvalue|: the gradient's Lipschitz L near there.
    sharpness: the largest eigenvalue, with its sign.
    residual: |H^2 v - L^2 v| / L^2 and |H u - sharpness u| / L of the vectors
      found, the larger of both; above the tolerance where the iterations did
      not suffice.
  """

  smoothness: float
  sharpness: float
  residual: float


class EffectiveStep(NamedTuple):
  """A step of the replicas' mean, against gradient descent from there.

  Attributes:
    learning_rate: alpha_e = alpha g_a . g / |g|^2; nan where g = 0.
    noise: Delta = |eta|^2 = alpha^2 |g_a|^2 - alpha_e^2 |g|^2.
    ssgd_noise: Delta_S = alpha^2 |g_S - g|^2.
    landscape_noise: Delta_2 = Delta - Delta_S, of either sign.
    ssgd_learning_rate: alpha_e with g_S for g_a.
    ssgd_across: Delta with g_S for g_a: Delta_S without what is along g.
    displacement: alpha^2 |g_a - g_S|^2, all that the replicas' spread does.
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
  """The Hessian's largest eigenvalues, by power iterations of products H v.

  First of H^2, which has no opposite eigenvalues to swing between; then, for
  the sign, of H + L I, which has no negative ones.

  Args:
    grad_fn: the gradient, as in `noise`.
    params: the point.
    batch: of the loss whose Hessian it is.
    key: with which it draws, the same in all products.
    tolerance: the residual at which an iteration ends; the error of an
      eigenvalue is of the order of its square where it stands alone.
    max_iterations: at which each of the two ends in any case.

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
  # Placed once for all products.
  point, given = jax.device_put((wide, batch))

  def product(v: np.ndarray) -> np.ndarray:
    moved = _hessian_product(grad_fn, point, given, key, v)
    return np.asarray(moved, np.float64)

  def shifted(v: np.ndarray) -> np.ndarray:
    return product(v) + smoothness * v

  size = sum(x.size for x in jax.tree.leaves(wide))
  random = np.random.default_rng(0).normal(size=size)
  v, square, rest = _power_iteration(
    lambda v: product(product(v)), random, max_iterations, tolerance
  )
  smoothness = math.sqrt(square)
  if smoothness == 0:
    return Curvature(0.0, 0.0, 0.0)
  # Of a negative eigenvalue of that size, `v` would be the least of shifted H.
  start = v if v @ product(v) > 0 else random
  _, top, residual = _power_iteration(
    shifted, start, max_iterations, tolerance, smoothness
  )
  return Curvature(
    smoothness, top - smoothness, max(rest / square, residual / smoothness)
  )


def effective_step(
  grad_fn: GradFn,
  points: ArrayTree,
  batches: Any,
  full_batches: Any,
  key: Array,
  *,
  learning_rate: float,
) -> EffectiveStep:
  """Effective learning rate and noise of DPSGD at the mean of the replicas.

  alpha g_a = alpha_e g + eta with eta . g = 0, for g = grad L(w_a) at the mean
  w_a = mean_j w_j and g_a = mean_j grad L^{mu_j}(w_j); on the same batches SSGD
  would take g_S = mean_j grad L^{mu_j}(w_a).

  What is exactly 0 on quadratics with one Hessian for all batches is g_a - g_S:
  then `displacement` is 0, alpha_e is SSGD's, Delta is `ssgd_across`, and
  Delta_2 = -(alpha_e - alpha)^2 |g|^2, which is below 0 unless the noise of the
  batches has nothing along g: Delta_S counts that part, Delta does not. What
  the landscape adds to the noise is therefore Delta - `ssgd_across`.

  Args:
    grad_fn: the gradient, as in `noise`.
    points: w_j, leaves `[N, ...]`, where the replicas take their gradients.
    batches: mu_j, leaves `[N, ...]`, one for each replica.
    full_batches: leaves `[K, ...]`, the mean of whose gradients is grad L: all
      examples, or a large sample, whose own noise then is in every figure.
    key: of what the gradients draw, g_a and g_S the same.
    learning_rate: alpha.

  Raises:
    ValueError: if there is not one batch for each point.

  Example:
    >>> step = effective_step(  # x^4 / 4 at 0 and 2, against its slope at 1
    ...     lambda x, batch, key: x**3, np.array([[0.], [2.]]), np.zeros(2),
    ...     np.zeros(1), jax.random.key(0), learning_rate=0.1)
    >>> round(step.learning_rate, 3)
    0.4

  Reference:
    Zhang, Liu, Mingo, Zhang, Kailkhura, Cui et al. 2021, Loss landscape
    dependent self-adjusting learning rates in decentralized stochastic gradient
    descent (arXiv 2112.01433), the section on DPSGD's dynamics
    (its equations' numbers were not verified).
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
  # Relative to alpha: the parts along g, and what is across it.
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


def _power_iteration(
  multiply: Callable[[np.ndarray], np.ndarray],
  v: np.ndarray,
  max_iterations: int,
  tolerance: float,
  scale: float | None = None,
) -> tuple[np.ndarray, float, float]:
  """A vector v, v . A v and |A v - (v . A v) v|, of an A >= 0."""
  v = v / np.linalg.norm(v)
  for _ in range(max_iterations):
    moved = multiply(v)
    value = float(v @ moved)
    residual = float(np.linalg.norm(moved - value * v))
    # Also where it is not a number.
    if not residual > tolerance * (value if scale is None else scale):
      break
    v = moved / np.linalg.norm(moved)
  return v, value, residual


@functools.partial(jax.jit, static_argnums=0)
def _hessian_product(
  grad_fn: GradFn, params: ArrayTree, batch: Any, key: Array, v: np.ndarray
) -> Array:
  """H v, as the derivative of the gradient along v."""
  x, unravel = ravel_pytree(params)

  def gradient(x: Array) -> Array:
    return ravel_pytree(grad_fn(unravel(x), batch, key))[0]

  return jax.jvp(gradient, (x,), (v.astype(x.dtype),))[1]


def _mean(drawn: Iterator[np.ndarray]) -> np.ndarray:
  total, count = next(drawn), 1
  for gradient in drawn:
    total, count = total + gradient, count + 1
  return total / count

"""Measurements of stochastic gradients at the points of a run.

They run on the host, with points and batches as arrays. The loss enters only by
one function of one model:

  grad_fn(params, batch, key) -> gradients, like params

Create it once, outside the loop over the run, because each new function object
is compiled again. For the engine's `loss_fn` it is

  jax.grad(lambda p, batch, key: loss_fn(p, model_state, batch, key)[0])

Every gradient is a separate dispatch and is accumulated on the host in float64,
so that few gradients are in memory, and no convolution is in a loop (see
`training`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import numpy as np

from prsgd_jax.base import Array, ArrayTree

GradFn = Callable[[ArrayTree, Any, Array], ArrayTree]


class GradientNoise(NamedTuple):
  """Moments of a stochastic gradient G at one point, E G = grad f.

  Attributes:
    variance: sigma^2 = E|G - grad f|^2.
    second_moment: E|G|^2.
    square_gradient: |grad f|^2, the difference of the two.
    largest: the largest |G|^2 among the batches.
  """

  variance: float
  second_moment: float
  square_gradient: float
  largest: float


class VarianceEnvelope(NamedTuple):
  """Constants of E|G - grad f|^2 = beta^2 |w - w*|^2 + sigma^2."""

  beta_squared: float
  sigma_squared: float


def gradient_noise(
  grad_fn: GradFn,
  params: ArrayTree,
  batches: Any,
  key: Array,
  *,
  exhaustive: bool = False,
) -> GradientNoise:
  """Return the variance and second moment of a stochastic gradient.

  sigma^2 = sum_k |G_k - mean G|^2 / (K - 1), which is unbiased for independent
  draws. If the batches are exhaustive and equally likely, the divisor is K.

  Args:
    grad_fn: the gradient of the loss, `(params, batch, key) -> gradients`.
    params: the point at which gradients are taken.
    batches: leaves `[K, ...]`, K >= 2, one batch for each G_k; `[K, 1, ...]`
      for gradients of single examples.
    key: the random key; G_k uses `fold_in(key, k)`.
    exhaustive: whether these are all possible batches. Default: False.

  Raises:
    ValueError: if K < 2.

  Example:
    >>> found = gradient_noise(
    ...     lambda x, target, key: x - target, np.zeros(3), np.eye(3),
    ...     jax.random.key(0), exhaustive=True)
    >>> round(found.variance, 4), round(found.square_gradient, 4)
    (0.6667, 0.3333)

  Reference:
    The constants of Yu, Yang, Zhu 2019, Parallel restarted SGD with faster
    convergence and less communication (arXiv 1807.06629), Assumption 1.
  """
  size = length(batches)
  if size < 2:
    raise ValueError(
      f'gradient_noise expects batches [K, ...] with K >= 2, got K = {size}'
    )
  drawn = gradients(grad_fn, itertools.repeat(params), batches, key)
  first = next(drawn)
  # Relative to the first gradient, because a small variance would cancel.
  shifted, scatter, squares = np.zeros_like(first), 0.0, [first @ first]
  for gradient in drawn:
    squares.append(gradient @ gradient)
    shifted += gradient - first
    scatter += (gradient - first) @ (gradient - first)
  scatter -= shifted @ shifted / size
  variance = float(scatter) / (size if exhaustive else size - 1)
  second_moment = float(np.mean(squares))
  return GradientNoise(
    variance, second_moment, second_moment - variance, float(max(squares))
  )


def second_moment_bound(
  grad_fn: GradFn, points: ArrayTree, batches: Any, key: Array
) -> float:
  """Return G^2, the maximum over points of E|G|^2, a mean over the batches.

  It bounds a run only at the given points. The `largest` of `gradient_noise`
  bounds |G|^2 of every batch.

  Args:
    grad_fn: the gradient of the loss, `(params, batch, key) -> gradients`.
    points: leaves `[P, ...]`, the points.
    batches: leaves `[K, ...]`, the batches, used at every point.
    key: the random key of the loss.

  Example:
    >>> points, batches = np.array([[0.0], [3.0]]), np.array([[1.0], [-1.0]])
    >>> second_moment_bound(
    ...     lambda x, target, key: x - target, points, batches,
    ...     jax.random.key(0))
    10.0

  Reference:
    Yu, Yang, Zhu 2019 (arXiv 1807.06629), Assumption 1.
  """

  def second_moment(point: ArrayTree) -> float:
    drawn = gradients(grad_fn, itertools.repeat(point), batches, key)
    return float(np.mean([g @ g for g in drawn]))

  return max(map(second_moment, rows(points)))


def variance_envelope(
  square_distances: Sequence[float] | np.ndarray,
  variances: Sequence[float] | np.ndarray,
) -> VarianceEnvelope:
  """Fit beta^2 |w - w*|^2 + sigma^2 to the variances at some points.

  The fit is least squares with beta^2, sigma^2 >= 0. Unlike the paper's bound,
  it is above some points and below others.

  Args:
    square_distances: |w - w*|^2 of every point, float[P].
    variances: the variance of the gradient at every point, float[P].

  Raises:
    ValueError: if fewer than two distances differ, or if the variances are not
      P finite numbers.

  Example:
    >>> fit = variance_envelope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> [round(float(x), 6) for x in fit]
    [2.0, 1.0]

  Reference:
    Zhang, De Sa, Mitliagkas, Re 2016, Parallel SGD: when does averaging help?
    (arXiv 1606.07365), the model of the variance (equation number not
    verified).
  """
  from scipy.optimize import nnls

  distance = np.asarray(square_distances, np.float64)
  variance = np.asarray(variances, np.float64)
  if (
    distance.shape != variance.shape
    or len(np.unique(distance)) < 2
    or not np.isfinite([distance, variance]).all()
  ):
    raise ValueError(
      'variance_envelope expects a finite variance for each of at least two '
      f'different distances, got {square_distances!r} and {variances!r}'
    )
  scale = distance.max()
  design = np.stack([distance / scale, np.ones_like(distance)], axis=1)
  (beta_squared, sigma_squared), _ = nnls(design, variance)
  return VarianceEnvelope(float(beta_squared / scale), float(sigma_squared))


def gradients(
  grad_fn: GradFn, points: Iterable[ArrayTree], batches: Any, key: Array
) -> Iterator[np.ndarray]:
  """Yield the flat gradient, float64[P], at the k-th point and batch."""
  for k, (point, batch) in enumerate(zip(points, rows(batches))):
    yield np.asarray(_gradient(grad_fn, point, batch, key, k), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(
  grad_fn: GradFn, params: ArrayTree, batch: Any, key: Array, k: int
) -> Array:
  gradient = grad_fn(params, batch, jax.random.fold_in(key, k))
  return ravel_pytree(gradient)[0]


def length(tree: ArrayTree) -> int:
  return len(jax.tree.leaves(tree)[0])


def rows(tree: ArrayTree) -> Iterator[ArrayTree]:
  host = jax.tree.map(np.asarray, tree)
  for k in range(length(host)):
    yield jax.tree.map(lambda x, k=k: x[k], host)

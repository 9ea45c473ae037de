"""What is measured of stochastic gradients at the points of a run.

It is measured on the host, with points and batches as arrays, and knows the
loss by one function of one model alone,

  grad_fn(params, batch, key) -> gradients, like params

which is compiled once if it is always the same object: make it outside of the
loop over the run. Of the engine's `loss_fn` it is

  jax.grad(lambda p, batch, key: loss_fn(p, model_state, batch, key)[0])

Every gradient is a dispatch of its own and is added up on the host, in float64:
few are held at a time, and no convolution is in a loop (see `training`).
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
    largest: the largest |G|^2 that was seen.
  """

  variance: float
  second_moment: float
  square_gradient: float
  largest: float


class VarianceEnvelope(NamedTuple):
  """beta^2 and sigma^2 of E|G - grad f|^2 = beta^2 |w - w*|^2 + sigma^2."""

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
  """Variance and second moment of a stochastic gradient at a point.

  sigma^2 = sum_k |G_k - mean G|^2 / (K - 1), without bias for independent
  draws; over K instead where the batches are all there are, equally likely.

  Args:
    grad_fn: the gradient, as above.
    params: the point.
    batches: leaves `[K, ...]`, the k-th of which gives G_k; `[K, 1, ...]` for
      the gradients of single examples.
    key: G_k draws with `fold_in(key, k)`.
    exhaustive: whether the batches are all that may be drawn.

  Raises:
    ValueError: if there is not more than one batch.

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
  # From the first, not from the origin, where a small variance would cancel.
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
  """G^2 = max over the points of E|G|^2, a mean over the batches.

  A bound along a run if the points are those of the run, and for these alone.
  What bounds |G|^2 of every batch is the `largest` of `gradient_noise`.

  Args:
    grad_fn, key: as in `gradient_noise`.
    points: leaves `[P, ...]`.
    batches: leaves `[K, ...]`, all of which every point has.

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
  """Fits beta^2 |w - w*|^2 + sigma^2 to the variances at some points.

  Least squares under beta^2, sigma^2 >= 0: above some of the points and below
  others, where the paper has a bound.

  Args:
    square_distances: |w - w*|^2 of every point, float[P].
    variances: of the gradient there, float[P].

  Raises:
    ValueError: if there are fewer than two different distances, or not a finite
      variance for each.

  Reference:
    Zhang, De Sa, Mitliagkas, Re 2016, Parallel SGD: when does averaging help?
    (arXiv 1606.07365), the model of the variance (its equation's number was not
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
  """The gradient at the k-th point on the k-th batch, flat, float64[P]."""
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

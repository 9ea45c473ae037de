"""A smooth loss that is not convex, with known constants.

f(x) = (1/M) sum_m (s(a_m . x) - y_m)^2 / 2 with the logistic function s and
y_m = 1 with probability s(a_m . w), else 0. A stochastic gradient is the
gradient of one example, so its moments at a point are sums over all M.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

NUM_STARTS = 24


class Problem(NamedTuple):
  """Examples, and the constants of their loss.

  Attributes:
    features: a_m, float64[M, d].
    labels: y_m, float64[M].
    smoothness: L, an upper bound of |Hessian f(x)|.
    minimum: f*, the lowest of the minima found from many starts.
    minimizer: the point of this minimum, float64[d].
  """

  features: np.ndarray
  labels: np.ndarray
  smoothness: float
  minimum: float
  minimizer: np.ndarray


def make_problem(
  num_examples: int = 128, dimension: int = 5, seed: int = 0
) -> Problem:
  """Make a problem with Gaussian features, `num_examples` a power of two."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(num_examples, dimension))
  true = 2 * rng.normal(size=dimension) / np.sqrt(dimension)
  labels = (rng.random(num_examples) < expit(features @ true)) * 1.0
  second = features.T @ features / num_examples
  smoothness = _largest_curvature() * float(np.linalg.eigvalsh(second)[-1])
  problem = Problem(features, labels, smoothness, 0.0, np.zeros(dimension))
  starts = 3 * rng.normal(size=(NUM_STARTS, dimension))
  found = [
    minimize(
      lambda x: float(loss(problem, x)),
      x0,
      jac=lambda x: gradient(problem, x),
      tol=1e-12,
    )
    for x0 in starts
  ]
  best = min(found, key=lambda result: result.fun)
  return problem._replace(minimum=float(best.fun), minimizer=best.x)


def loss(problem: Problem, x: np.ndarray) -> np.ndarray:
  """Return f at points [..., d]."""
  residual = expit(x @ problem.features.T) - problem.labels
  return np.square(residual).mean(axis=-1) / 2


def gradient(problem: Problem, x: np.ndarray) -> np.ndarray:
  """Return grad f at points [..., d], float64[..., d]."""
  slopes = _slopes(problem, x)
  return slopes @ problem.features / len(problem.labels)


def second_moment(problem: Problem, x: np.ndarray) -> np.ndarray:
  """Return E|G|^2 at points [..., d], the mean over all examples."""
  lengths = np.square(problem.features).sum(axis=-1)
  return np.square(_slopes(problem, x)) @ lengths / len(problem.labels)


def variance(problem: Problem, x: np.ndarray) -> np.ndarray:
  """Return E|G - grad f|^2 at points [..., d]."""
  slope = np.square(gradient(problem, x)).sum(axis=-1)
  return second_moment(problem, x) - slope


def shard(problem: Problem, index: int, num_shards: int) -> Problem:
  """Return the examples index, index + num_shards, ...; constants are kept."""
  return problem._replace(
    features=problem.features[index::num_shards],
    labels=problem.labels[index::num_shards],
  )


def sampled_loss(problem: Problem) -> Any:
  """Return a `simulation.LossFn` of one example, drawn from all.

  Raises:
    ValueError: if the number of examples is not a power of two. Only then are
      the lowest bits of a random integer uniform.
  """
  size = len(problem.labels)
  if size & (size - 1):
    raise ValueError(f'num_examples must be a power of two, got {size}')
  features, labels = _as_float32(problem)

  def loss_fn(
    x: jax.Array, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    m = jax.random.bits(key) % size
    residual = jax.nn.sigmoid(features[m] @ x) - labels[m]
    return jnp.square(residual) / 2

  return loss_fn


def own_sampled_loss(problem: Problem, num_replicas: int) -> Any:
  """Return a `simulation.LossFn` of one example, drawn from a replica's shard.

  Raises:
    ValueError: if the number of examples of a shard is not a power of two.
  """
  size = len(problem.labels) // num_replicas
  if size & (size - 1) or size * num_replicas != len(problem.labels):
    raise ValueError(
      f'each replica needs a power of two of examples, got '
      f'{len(problem.labels)} for {num_replicas} replicas'
    )
  features, labels = _as_float32(problem)

  def loss_fn(
    x: jax.Array, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step
    m = jax.random.bits(key) % size * num_replicas + replica
    residual = jax.nn.sigmoid(features[m] @ x) - labels[m]
    return jnp.square(residual) / 2

  return loss_fn


def own_moments(problem: Problem, num_replicas: int) -> Any:
  """Return a function of points [N, d], each with a replica's own shard.

  It returns E|G_i - grad f_i|^2 and E|G_i|^2, float32[N] each.
  """
  features, labels = _as_float32(problem)
  features = features.reshape(-1, num_replicas, features.shape[-1])
  labels = labels.reshape(-1, num_replicas)
  lengths = jnp.square(features).sum(axis=-1)

  def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    s = jax.nn.sigmoid((features * x).sum(axis=-1))
    slopes = (s - labels) * s * (1 - s)
    mean = (slopes[..., None] * features).mean(axis=0)
    second = (jnp.square(slopes) * lengths).mean(axis=0)
    return second - jnp.square(mean).sum(axis=-1), second

  return moments


def own_loss(problem: Problem, num_replicas: int) -> Any:
  """Return a `simulation.LossFn` of one shard per replica, without noise."""
  features, labels = _as_float32(problem)
  features = features.reshape(-1, num_replicas, features.shape[-1])
  labels = labels.reshape(-1, num_replicas)

  def loss_fn(
    x: jax.Array, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, key
    own = lax.dynamic_index_in_dim(features, replica, 1, keepdims=False)
    targets = lax.dynamic_index_in_dim(labels, replica, 1, keepdims=False)
    return jnp.square(jax.nn.sigmoid(own @ x) - targets).mean() / 2

  return loss_fn


def _as_float32(problem: Problem) -> tuple[jax.Array, jax.Array]:
  return (
    jnp.asarray(problem.features, jnp.float32),
    jnp.asarray(problem.labels, jnp.float32),
  )


def _slopes(problem: Problem, x: np.ndarray) -> np.ndarray:
  """Return d/dz (s(z) - y)^2 / 2 at z = a_m . x, [..., M]."""
  s = expit(np.asarray(x, np.float64) @ problem.features.T)
  return (s - problem.labels) * s * (1 - s)


def _largest_curvature() -> float:
  """Return sup_z |d^2/dz^2 (s(z) - y)^2 / 2|, equal for y = 0 and y = 1."""
  s = np.linspace(0, 1, 100_001)
  return float(np.abs(s**2 * (1 - s) * (2 - 3 * s)).max())

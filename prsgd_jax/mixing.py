"""WITH WHOM: mixings of the replicas, x_i <- sum_j W_ij x_j.

A mixing knows three things of itself: how to apply W inside the mapped program,
W as a NumPy matrix, and what one application sends.
"""

from collections.abc import Callable
import functools
import operator
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import Array, ArrayTree, Context, check_positive_int

# What has a dtype: on a device, on the host, or described only.
AnyArray = Array | np.ndarray | jax.ShapeDtypeStruct


class Message(NamedTuple):
  """What one replica sends when a payload is mixed once."""

  bytes_sent: float
  latencies: int
  tier: str


class Mixing(NamedTuple):
  """A linear combination of the replicas.

  Attributes:
    apply: `(tree, context) -> tree` on a block, leaves `[V, ...]` of floats.
    matrix: `(num_replicas, step) -> float64[N, N]`, the W that `apply` uses;
      raises `ValueError` where the mixing does not fit that many replicas.
    message: `(payload_bytes, num_replicas) -> Message`, replicas counted as
      machines.
  """

  apply: Callable[[ArrayTree, Context], ArrayTree]
  matrix: Callable[[int, int], np.ndarray]
  message: Callable[[float, int], Message]


def mean() -> Mixing:
  """The mean of all replicas: W = 11'/N.

  The message is a ring all-reduce: 2 (N - 1) / N payloads in 2 (N - 1)
  latencies.
  """

  def apply(tree: ArrayTree, context: Context) -> ArrayTree:
    del context
    return collectives.replica_mean(tree)

  def matrix(num_replicas: int, step: int) -> np.ndarray:
    del step
    return np.full((num_replicas, num_replicas), 1 / num_replicas)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, num_replicas, 'global')

  return Mixing(apply, matrix, message)


def group_mean(size: int) -> Mixing:
  """The mean of each group of `size` consecutive replicas (Hier-AVG's S).

  Raises:
    ValueError: if `size` is not an integer >= 1; from `matrix`, if it does not
      divide the number of replicas.
  """
  size = check_positive_int('group_size', size)

  def apply(tree: ArrayTree, context: Context) -> ArrayTree:
    del context
    return collectives.replica_group_mean(tree, size)

  def matrix(num_replicas: int, step: int) -> np.ndarray:
    del step
    if num_replicas % size:
      raise ValueError(
        f'group_size must divide the {num_replicas} replicas, got {size}; '
        f'use one of {_divisors(num_replicas)}'
      )
    group = np.full((size, size), 1 / size)
    return np.kron(np.eye(num_replicas // size), group)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    del num_replicas
    return _all_reduce(payload_bytes, size, 'group')

  return Mixing(apply, matrix, message)


def ring(self_weight: float = 1 / 3) -> Mixing:
  """Each replica with its two neighbours on a ring.

  W_ii = w and W_i,i±1 = (1 - w) / 2; the two neighbours of N = 2 are one.

  Raises:
    ValueError: if `self_weight` is not in [0, 1).
  """
  if not 0 <= self_weight < 1:
    raise ValueError(f'self_weight must be in [0, 1), got {self_weight!r}')
  side = (1 - self_weight) / 2
  return _circulant({0: self_weight, 1: side, -1: side})


def _circulant(weights: dict[int, float]) -> Mixing:
  """Replica i takes weight w_k of replica i - k (mod N), for each k."""

  def folded(num_replicas: int) -> dict[int, float]:
    out: dict[int, float] = {}
    for k, weight in weights.items():
      out[k % num_replicas] = out.get(k % num_replicas, 0.0) + weight
    return out

  def apply(tree: ArrayTree, context: Context) -> ArrayTree:
    del context
    if not jax.tree.leaves(tree):
      return tree
    terms = [
      jax.tree.map(functools.partial(operator.mul, weight), shifted)
      for k, weight in folded(collectives.num_replicas(tree)).items()
      for shifted in [collectives.shift(tree, k)]
    ]
    return jax.tree.map(lambda *xs: functools.reduce(operator.add, xs), *terms)

  def matrix(num_replicas: int, step: int) -> np.ndarray:
    del step
    eye = np.eye(num_replicas)
    shifts = folded(num_replicas).items()
    return sum(
      (weight * np.roll(eye, k, axis=0) for k, weight in shifts), 0 * eye
    )

  def message(payload_bytes: float, num_replicas: int) -> Message:
    neighbours = len(folded(num_replicas).keys() - {0})
    return Message(neighbours * payload_bytes, neighbours, 'neighbour')

  return Mixing(apply, matrix, message)


def dense(matrix: np.ndarray) -> Mixing:
  """Any matrix W whose rows sum to one, by gathering all replicas.

  W is not required to be symmetric or doubly stochastic, but only a doubly
  stochastic one keeps the mean of the replicas. The message is a ring
  all-gather: N - 1 payloads in N - 1 latencies, whatever the zeros of W.

  Args:
    matrix: float[N, N]; replica i becomes sum_j matrix[i, j] x_j.

  Raises:
    ValueError: if the matrix is not square, not finite, or a row does not sum
      to one; from `Mixing.matrix`, if it is not of the number of replicas.
  """
  weights = np.array(matrix, np.float64)
  if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
    raise ValueError(
      f'dense expects a square matrix [N, N], got shape {weights.shape}'
    )
  if not np.isfinite(weights).all():
    raise ValueError('dense expects finite weights, got NaN or infinity')
  row_sums = weights.sum(axis=1)
  if not np.allclose(row_sums, 1, rtol=0, atol=1e-6):
    row = int(np.abs(row_sums - 1).argmax())
    raise ValueError(
      'dense expects rows that sum to 1, got '
      f'{row_sums[row]:.6g} in row {row}; divide each row by its sum'
    )

  def apply(tree: ArrayTree, context: Context) -> ArrayTree:
    def combine(x: Array) -> Array:
      rows = jnp.asarray(weights, x.dtype)[context.replica]
      gathered = collectives.all_gather(x)
      return jnp.tensordot(rows, gathered, 1, precision=lax.Precision.HIGHEST)

    return jax.tree.map(combine, tree)

  def checked_matrix(num_replicas: int, step: int) -> np.ndarray:
    del step
    if len(weights) != num_replicas:
      raise ValueError(
        f'the mixing matrix must be [{num_replicas}, {num_replicas}], one row '
        f'per replica, got {weights.shape}'
      )
    return weights

  def message(payload_bytes: float, num_replicas: int) -> Message:
    others = num_replicas - 1
    return Message(others * payload_bytes, others, 'neighbour')

  return Mixing(apply, checked_matrix, message)


def mix_inexact(
  mix: Callable[[ArrayTree], ArrayTree], tree: ArrayTree
) -> ArrayTree:
  """Applies `mix` to the floating leaves alone, in float32 or wider.

  Counters and other integers stay each replica's own; half precision is
  combined in float32 and cast back, so that a mean does not depend on how the
  replicas lie on the devices.
  """
  leaves, treedef = jax.tree.flatten(tree)
  floats = [i for i, x in enumerate(leaves) if is_inexact(x)]
  mixed = mix([leaves[i].astype(wire_dtype(leaves[i])) for i in floats])
  for i, new in zip(floats, mixed, strict=True):
    leaves[i] = new.astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, leaves)


def payload_bytes(shapes: ArrayTree) -> int:
  """Bytes of the leaves that `mix_inexact` combines, as they are sent."""
  return sum(
    x.size * wire_dtype(x).itemsize
    for x in jax.tree.leaves(shapes)
    if is_inexact(x)
  )


def is_inexact(x: AnyArray) -> bool:
  return jnp.issubdtype(x.dtype, jnp.inexact)


def wire_dtype(x: AnyArray) -> np.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)


def _all_reduce(payload: float, size: int, tier: str) -> Message:
  return Message(2 * (size - 1) / size * payload, 2 * (size - 1), tier)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]

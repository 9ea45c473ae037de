"""ORDERS: the rows of each replica's batch, computed on the host.

They are the rows of `samplers`, number for number, in NumPy. A pipeline reads
examples before they reach a device, so it must know their rows on the host. The
rows are a pure function of (seed, step, replica). So a run resumes in the
middle of an epoch without any saved position, and any number of processes
reads one global sequence.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import numpy as np

from prsgd_jax.data import samplers

# Rows of a step: (steps int[S], replicas int[R]) -> int64[S, R, batch_size].
Rows = Callable[[np.ndarray, np.ndarray], np.ndarray]

# The bound, because sums of two positions must fit into uint32.
MAX_EXAMPLES = 2**31 - 1


class Order(NamedTuple):
  """A function that assigns examples to replicas.

  Attributes:
    rows: `(steps, replicas) -> int64[steps, replicas, batch_size]`.
    num_replicas: N.
  """

  rows: Rows
  num_replicas: int


def shared(
  num_examples: int, num_replicas: int, batch_size: int, *, seed: int
) -> Order:
  """Return the order of `samplers.shared`.

  Args:
    num_examples: n, in 1 .. 2^31 - 1.
    num_replicas: N, >= 1.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if the batch of all replicas is larger than the data set.

  Example:
    >>> order = shared(8, 2, 2, seed=0)
    >>> order.rows(np.arange(2), np.arange(2)).tolist()
    [[[0, 2], [7, 5]], [[3, 4], [1, 6]]]
  """
  samplers.check_global_batch(num_examples, num_replicas, batch_size)
  per_step = num_replicas * batch_size

  def rows(steps: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    row = np.add.outer(replicas * batch_size, np.arange(batch_size))
    place = np.add.outer(steps.astype(np.int64) * per_step, row)
    epoch, position = np.divmod(place, num_examples)
    return shuffled_index(seed, epoch, position, num_examples)

  return Order(rows, num_replicas)


def sharded(
  num_examples: int, num_replicas: int, batch_size: int, *, seed: int
) -> Order:
  """Return the order of `samplers.sharded`.

  More than 2^23 examples are dealt out by the shuffle of the epochs, because a
  table of them would be large.

  Args:
    num_examples: n, in 1 .. 2^31 - 1.
    num_replicas: N, >= 1.
    batch_size: examples per replica and step, at most the smallest part.
    seed: seed of the parts and shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if a batch is larger than the smallest part.

  Example:
    >>> order = sharded(8, 2, 4, seed=0)
    >>> np.sort(order.rows(np.arange(2), np.arange(2))).tolist()
    [[[2, 3, 4, 6], [0, 1, 5, 7]], [[2, 3, 4, 6], [0, 1, 5, 7]]]
  """
  if num_examples <= samplers.MAX_RESIDENT:
    shards = samplers.random_shards(num_examples, num_replicas, seed)
    return from_shards(shards, batch_size, seed=seed)
  small, larger = divmod(num_examples, num_replicas)
  sizes = np.full(num_replicas, small)
  sizes[:larger] += 1
  samplers.check_shard_sizes(sizes, batch_size)
  starts = np.cumsum(sizes) - sizes
  # Another seed, so that the parts do not depend on the shuffles in them.
  deal = int(np.random.default_rng([seed, 2]).integers(2**32))

  def rows(steps: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    within = _within(seed, sizes, batch_size, steps, replicas)
    position = within + starts[replicas][:, None]
    return shuffled_index(deal, np.zeros(1, int), position, num_examples)

  return Order(rows, num_replicas)


def from_shards(
  shards: Sequence[np.ndarray], batch_size: int, *, seed: int
) -> Order:
  """Return the order of `samplers.from_shards`.

  Args:
    shards: N arrays of rows, int[n_i].
    batch_size: examples per replica and step, at most the smallest part.
    seed: seed of the shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if a batch is larger than a part.
  """
  sizes = np.array([len(shard) for shard in shards])
  samplers.check_shard_sizes(sizes, batch_size)
  starts = np.cumsum(sizes) - sizes
  table = np.concatenate(shards)

  def rows(steps: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    within = _within(seed, sizes, batch_size, steps, replicas)
    return table[within + starts[replicas][:, None]].astype(np.int64)

  return Order(rows, len(shards))


def _within(
  seed: int,
  sizes: np.ndarray,
  batch_size: int,
  steps: np.ndarray,
  replicas: np.ndarray,
) -> np.ndarray:
  """Return the places of a batch in the part of its replica."""
  size = sizes[replicas][:, None]
  place = np.add.outer(
    steps.astype(np.int64) * batch_size, np.arange(batch_size)
  )
  epoch, position = np.divmod(place[:, None], size)
  # One shuffle per (replica, epoch), so that replicas differ.
  stream = epoch * len(sizes) + replicas[:, None]
  return shuffled_index(seed, stream, position, size)


def shuffled_index(
  seed: int,
  stream: np.ndarray,
  position: np.ndarray,
  size: np.ndarray | int,
) -> np.ndarray:
  """Return `samplers.shuffled_index` in NumPy.

  Not the same code, because it is called in threads beside the compiled steps,
  and a program of JAX would wait for their cores.

  Args:
    seed: seed of the permutations.
    stream: int[...], number of the shuffle, broadcast against `position`.
    position: int[...], in 0 .. size - 1.
    size: number of examples, in 1 .. 2^31 - 1, broadcast against `position`.

  Returns:
    int64[...], in 0 .. size - 1.
  """
  streams, which = np.unique(stream.astype(np.uint32), return_inverse=True)
  which = which.reshape(stream.shape)
  words = _words(seed)[:, :, np.newaxis]
  pivots, salts = _hash(streams ^ words).swapaxes(0, 1)
  bound = np.asarray(size, np.uint32)
  if not bound.ndim:
    pivots %= bound  # before they are copied to the elements
  x = position.astype(np.uint32)
  for pivot, salt in zip(pivots, salts, strict=True):
    away = (pivot[which] if not bound.ndim else pivot[which] % bound) - x
    # pivot - x modulo the size, because a negative `away` wraps around.
    partner = np.minimum(away, away + bound)
    bits = _hash(np.maximum(x, partner) ^ salt[which])
    x = np.where(bits & np.uint32(1), partner, x)
  return x.astype(np.int64)


@functools.lru_cache(16)
def _words(seed: int) -> np.ndarray:
  return samplers.shuffle_words(seed)


def _hash(x: np.ndarray) -> np.ndarray:
  """Mix the bits of uint32, as `samplers` does."""
  x = x ^ (x >> np.uint32(16))
  x *= np.uint32(0x85EBCA6B)
  x ^= x >> np.uint32(13)
  x *= np.uint32(0xC2B2AE35)
  x ^= x >> np.uint32(16)
  return x

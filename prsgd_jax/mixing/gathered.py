"""GATHERED: mixing by a W in which a replica has many neighbors.

A program that lists the messages of a replica grows with its neighbors, and in
a star of N replicas one replica has N - 1. Here each device gathers all models.
Replicas with few senders add up their models one by one. For other replicas,
the hubs, the rows of W are multiplied by the models.
"""

import functools
import operator
from typing import TYPE_CHECKING, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree, over_block
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.decoding import Decode, add_weighted, scaled_rows
from prsgd_jax.mixing.matrices import busiest, links

if TYPE_CHECKING:
  from scipy.sparse import csr_array

# The most messages of a replica that a program lists one by one.
MOST_MESSAGES = 32


class Senders(NamedTuple):
  """The links of W, by receiver.

  Attributes:
    origin: int[K, N], the senders of each replica; itself for none, and for
      hubs.
    weight: float64[K, N], their weights; 0 for none.
    own: float64[N], the weight of the replica itself; 0 for hubs.
    hubs: int[H], the replicas with more than `MOST_MESSAGES` senders.
    rows: float64[H, N], their rows of W.
  """

  origin: np.ndarray
  weight: np.ndarray
  own: np.ndarray
  hubs: np.ndarray
  rows: np.ndarray


def is_shorter(weights: 'csr_array', block: int) -> bool:
  """Return whether to gather: for many messages, if it receives no more.

  Args:
    weights: W.
    block: V. A device receives up to V models for each message of a replica,
      and N - V if it gathers.

  Example:
    >>> import prsgd_jax as pr
    >>> star = pr.graphs.star().weights(64).matrix(0)
    >>> is_shorter(star, 64), is_shorter(star, 1)
    (True, False)
  """
  messages = max(busiest(weights))
  return messages > MOST_MESSAGES and block * (messages + 1) > weights.shape[0]


def by_receiver(weights: 'csr_array') -> Senders:
  """Return the links of W, by receiver.

  Example:
    >>> import prsgd_jax as pr
    >>> found = by_receiver(pr.graphs.star().weights(64).matrix(0))
    >>> found.hubs.tolist(), found.origin.shape, found.rows.shape
    ([0], (1, 64), (1, 64))
  """
  n = weights.shape[0]
  to, origin = links(weights)
  degree = np.bincount(to, minlength=n)
  hubs = np.flatnonzero(degree > MOST_MESSAGES)
  place = _count_up(degree)
  few = degree[to] <= MOST_MESSAGES
  to, origin, place = to[few], origin[few], place[few]
  most = int(degree[degree <= MOST_MESSAGES].max(initial=0))
  table, weight = np.tile(np.arange(n), (most, 1)), np.zeros((most, n))
  table[place, to] = origin
  weight[place, to] = np.asarray(weights[to, origin]).ravel()
  own = weights.diagonal()
  own[hubs] = 0
  return Senders(table, weight, own, hubs, weights[hubs].toarray())


def combine(
  weights: 'csr_array',
  replica: Array,
  decode: Decode | None,
  tree: ArrayTree,
) -> ArrayTree:
  """Return sum_j W_ij x_j of this block from all models.

  Args:
    weights: W.
    replica: int32[V], the indices of the block's replicas.
    decode: decodes one replica's codes; None for values.
    tree: the values or codes of the block, leaves `[V, ...]`.
  """
  senders = by_receiver(weights)
  everyone = collectives.all_gather(tree)
  if decode is not None:
    everyone = over_block(decode)(everyone)

  def term(origin: np.ndarray, weight: np.ndarray) -> ArrayTree:
    at = jnp.asarray(origin)[replica]
    came = jax.tree.map(lambda x: x[at], everyone)
    return scaled_rows(came, weight, replica)

  index = np.arange(weights.shape[0])
  terms = [
    term(*each)
    for each in [
      (index, senders.own),
      *zip(senders.origin, senders.weight, strict=True),
    ]
  ]
  total = jax.tree.map(lambda *xs: functools.reduce(operator.add, xs), *terms)
  if not len(senders.hubs):
    return total
  place, rows = _of_block(senders, replica.shape[0])

  def put(total: Array, everyone: Array) -> Array:
    # Beyond the block for padding, which is dropped.
    mixed = combine_rows(rows, everyone)
    return total.at[place].set(mixed, mode='drop')

  return jax.tree.map(put, total, everyone)


def _of_block(senders: Senders, block: int) -> tuple[Array, Array]:
  """Return (int[H'], float[H', N]), the hubs of the block, and their rows."""
  num_devices = senders.own.shape[0] // block
  if num_devices == 1:
    return jnp.asarray(senders.hubs), jnp.asarray(senders.rows)
  device = senders.hubs // block
  counts = np.bincount(device, minlength=num_devices)
  # Of each device equally many, because all run one program.
  which = np.full((num_devices, counts.max()), len(senders.hubs))
  column = np.arange(len(device)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  which[device, column] = np.arange(len(device))
  here = jnp.asarray(which)[lax.axis_index(AXIS_NAME)]
  place = jnp.asarray(np.append(senders.hubs % block, block))[here]
  some = jnp.minimum(here, len(senders.hubs) - 1)
  return place, jnp.asarray(senders.rows)[some]


def _count_up(sizes: np.ndarray) -> np.ndarray:
  """Return 0, 1, ... size - 1 for each size, joined."""
  begins = np.cumsum(sizes) - sizes
  return np.arange(sizes.sum()) - np.repeat(begins, sizes)


def combine_rows(rows: Array, gathered: Array) -> Array:
  """Return rows . gathered, in which a weight of 0 always adds 0.

  Args:
    rows: rows of W, float[R, N].
    gathered: `[N, ...]`.
  """

  def one_by_one(rows: Array, gathered: Array) -> Array:
    shape = (len(rows), *gathered.shape[1:])
    zero = jnp.zeros(shape, gathered.dtype)
    return add_weighted(rows, lambda j: gathered[j], zero)

  # A matrix product is faster, but wrong here, because 0 times NaN is NaN.
  finite = jnp.isfinite(gathered).all()
  return lax.cond(finite, multiply_rows, one_by_one, rows, gathered)


def multiply_rows(rows: Array, gathered: Array) -> Array:
  """Return rows . gathered, `[R, N]` times `[N, ...]`."""
  return jnp.tensordot(
    rows.astype(gathered.dtype), gathered, 1, precision=lax.Precision.HIGHEST
  )

"""Primitives on the axis of replicas: mean, sum, shift, permute, gather.

N replicas live on D devices in blocks of V = N / D: replica r is row r mod V of
device r // V. Each primitive takes a tree of `[V, ...]` leaves inside the
mapped axis `AXIS_NAME`, combines the block with the axis of devices, and sends
only the rows that must move. With V = 1 it is exactly the collective of its
name. Leaves are taken as they are: who averages bfloat16 casts first (see
`payload.mix_inexact`).
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree


def num_replicas(tree: ArrayTree) -> int:
  """N, from the block of a leaf and the size of the axis of devices."""
  return jax.tree.leaves(tree)[0].shape[0] * lax.axis_size(AXIS_NAME)


def replica_mean(tree: ArrayTree) -> ArrayTree:
  """The mean over all replicas, on every replica: `[V, ...] -> [V, ...]`."""

  def mean(x: Array) -> Array:
    return jnp.broadcast_to(lax.pmean(x.mean(axis=0), AXIS_NAME), x.shape)

  return jax.tree.map(mean, tree)


def replica_sum(tree: ArrayTree) -> ArrayTree:
  """The sum over all replicas, on every replica: `[V, ...] -> [V, ...]`."""

  def total(x: Array) -> Array:
    return jnp.broadcast_to(lax.psum(x.sum(axis=0), AXIS_NAME), x.shape)

  return jax.tree.map(total, tree)


def replica_group_mean(tree: ArrayTree, size: int) -> ArrayTree:
  """The mean over each group of `size` consecutive replicas, on its members.

  Groups inside a device send nothing; groups of whole devices are one
  all-reduce among them; groups that begin in the middle of a device are an
  all-reduce of all groups' sums.
  """
  return jax.tree.map(functools.partial(_group_mean, size=size), tree)


def _group_mean(x: Array, size: int) -> Array:
  block, num_devices = x.shape[0], lax.axis_size(AXIS_NAME)
  if block % size == 0:
    groups = x.reshape((block // size, size, *x.shape[1:]))
    mean = groups.mean(axis=1, keepdims=True)
    return jnp.broadcast_to(mean, groups.shape).reshape(x.shape)
  if size % block == 0:
    devices = np.arange(num_devices).reshape(-1, size // block)
    mean = lax.pmean(
      x.mean(axis=0), AXIS_NAME, axis_index_groups=devices.tolist()
    )
    return jnp.broadcast_to(mean, x.shape)
  first = lax.axis_index(AXIS_NAME) * block
  group = (first + jnp.arange(block)) // size
  num_groups = block * num_devices // size
  sums = jnp.zeros((num_groups, *x.shape[1:]), x.dtype).at[group].add(x)
  return (lax.psum(sums, AXIS_NAME) / size)[group]


def shift(tree: ArrayTree, k: int) -> ArrayTree:
  """Replica i receives what replica i - k (mod N) holds.

  Sends min(k, V) rows to the next devices in at most two messages.
  """
  return jax.tree.map(functools.partial(_shift, k=k), tree)


def _shift(x: Array, k: int) -> Array:
  block, num_devices = x.shape[0], lax.axis_size(AXIS_NAME)
  hops, offset = divmod(k % (block * num_devices), block)

  def send(rows: Array, hops: int) -> Array:
    if hops % num_devices == 0 or rows.shape[0] == 0:
      return rows
    ring = [(d, (d + hops) % num_devices) for d in range(num_devices)]
    return lax.ppermute(rows, AXIS_NAME, ring)

  wrapped = send(x[block - offset :], hops + 1)
  return jnp.concatenate([wrapped, send(x[: block - offset], hops)])


def permute(tree: ArrayTree, source: Sequence[int] | np.ndarray) -> ArrayTree:
  """Replica i receives what replica `source[i]` holds; zeros for -1.

  A static permutation becomes at most V messages of one row: row traffic among
  the devices is a V-regular bipartite multigraph, which König's theorem splits
  into V perfect matchings. Rows that stay on their device are not sent, and a
  cyclic permutation is a `shift`.

  Raises:
    ValueError: if a replica of the N would be received twice, or is none.
  """
  leaves = jax.tree.leaves(tree)
  if not leaves:
    return tree
  block, num_devices = leaves[0].shape[0], lax.axis_size(AXIS_NAME)
  n = block * num_devices
  origin = np.asarray(source)
  known = origin[origin >= 0]
  if len(origin) != n or len(set(known.tolist()) & set(range(n))) != len(known):
    raise ValueError(
      f'source must be a permutation of 0 .. {n - 1} (or -1 for none), '
      f'got {origin.tolist()}'
    )
  if (origin == (origin[0] + np.arange(n)) % n).all():
    return shift(tree, -int(origin[0]))
  if num_devices == 1:
    return jax.tree.map(functools.partial(_take, source=origin), tree)
  rounds = _matchings(origin, block, num_devices)
  device = lax.axis_index(AXIS_NAME)
  # The rows of the block in the order in which they go, and as they come.
  leaving = np.stack([sent_row for _, sent_row, _, _ in rounds], axis=1)
  arrival = np.argsort([kept_row for _, _, kept_row, _ in rounds], axis=0).T

  def move(x: Array) -> Array:
    rows, come = x[jnp.asarray(leaving)[device]], []
    for r, (origin, _, _, real) in enumerate(rounds):
      row = rows[r : r + 1]
      ways = [(o, d) for d, o in enumerate(origin.tolist()) if real[d]]
      away = [(o, d) for o, d in ways if o != d]
      stays = jnp.asarray((origin == np.arange(num_devices)) & real)[device]
      other = (
        lax.ppermute(row, AXIS_NAME, away) if away else jnp.zeros_like(row)
      )
      come.append(jnp.where(stays, row, other))
    return jnp.concatenate(come)[jnp.asarray(arrival)[device]]

  return jax.tree.map(move, tree)


def _take(x: Array, source: np.ndarray) -> Array:
  """`x[source]`, zeros for -1."""
  rows = x[np.maximum(source, 0)]
  known = (source >= 0).reshape((-1, *[1] * (x.ndim - 1)))
  return rows if known.all() else jnp.where(known, rows, jnp.zeros_like(rows))


def _matchings(
  source: np.ndarray, block: int, num_devices: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
  """Splits a permutation of replicas into `block` permutations of devices.

  Returns:
    For each round, int[D] each: the device that every device receives from, the
    row that every device sends, and the row where the received one goes; and
    bool[D], whether it receives anything.
  """
  received = source >= 0
  source = source.copy()
  source[~received] = np.setdiff1d(np.arange(len(source)), source)
  wanted: dict[tuple[int, int], list[int]] = {}
  for i, j in enumerate(source.tolist()):
    wanted.setdefault((i // block, j // block), []).append(i)
  rounds = []
  for _ in range(block):
    count = np.zeros((num_devices, num_devices), int)
    for pair, replicas in wanted.items():
      count[pair] = len(replicas)
    _, origin = linear_sum_assignment(count == 0)
    sent_row = np.zeros(num_devices, int)
    kept_row = np.zeros(num_devices, int)
    real = np.zeros(num_devices, bool)
    for device in range(num_devices):
      i = wanted[device, int(origin[device])].pop()
      kept_row[device] = i % block
      sent_row[origin[device]] = source[i] % block
      real[device] = received[i]
    rounds.append((origin, sent_row, kept_row, real))
  return rounds


def all_gather(tree: ArrayTree) -> ArrayTree:
  """What every replica holds, on every device: `[V, ...] -> [N, ...]`."""
  return jax.tree.map(lambda x: lax.all_gather(x, AXIS_NAME, tiled=True), tree)

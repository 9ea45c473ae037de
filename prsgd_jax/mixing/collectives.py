"""Primitives on the axis of replicas: mean, sum, shift, permute, gather.

N replicas are placed on D devices in blocks of V = N / D: replica r is row
r mod V of device r // V. Each primitive takes a tree of `[V, ...]` leaves
inside the mapped axis `AXIS_NAME` and sends only the rows that must move. With
V = 1 it is exactly the JAX collective of its name. Dtypes are kept; cast
bfloat16 before averaging (see `payload.mix_inexact`).
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree
from prsgd_jax.mixing import routes


def num_replicas(tree: ArrayTree) -> int:
  """Return N: the block size of a leaf times the number of devices."""
  return jax.tree.leaves(tree)[0].shape[0] * lax.axis_size(AXIS_NAME)


def replica_mean(tree: ArrayTree) -> ArrayTree:
  """Return the mean over all replicas, on every replica, `[V, ...]`."""

  def mean(x: Array) -> Array:
    return jnp.broadcast_to(lax.pmean(x.mean(axis=0), AXIS_NAME), x.shape)

  return _send(mean, tree)


def replica_sum(tree: ArrayTree) -> ArrayTree:
  """Return the sum over all replicas, on every replica, `[V, ...]`."""

  def total(x: Array) -> Array:
    return jnp.broadcast_to(lax.psum(x.sum(axis=0), AXIS_NAME), x.shape)

  return _send(total, tree)


def replica_group_mean(tree: ArrayTree, size: int) -> ArrayTree:
  """Return the mean over each group of `size` consecutive replicas.

  Groups inside a device send nothing. Groups of whole devices use one
  all-reduce inside each group. If groups begin in the middle of a device, the
  sums of all groups are all-reduced.
  """
  return _send(functools.partial(_group_mean, size=size), tree)


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


def group_gather(
  tree: ArrayTree, replica: Array, size: int
) -> tuple[ArrayTree, Array, Array]:
  """Return the values of all replicas in each group of `size` consecutive ones.

  Groups inside a device send nothing. Groups of whole devices gather inside
  each group. If groups begin in the middle of a device, all replicas are
  gathered.

  Args:
    tree: leaves `[V, ...]`.
    replica: int32[V], the indices of the block's replicas.
    size: S.

  Returns:
    (rows, begins, index): the rows of all groups that overlap the block, the
    first row of each of these groups, and int[V], the group of each replica.
  """
  block = replica.shape[0]
  if block % size == 0:
    starts = jnp.arange(0, block, size)
    return tree, starts, jnp.arange(block) // size
  if size % block == 0:
    devices = np.arange(lax.axis_size(AXIS_NAME)).reshape(-1, size // block)
    gather = functools.partial(
      lax.all_gather,
      axis_name=AXIS_NAME,
      axis_index_groups=devices.tolist(),
      tiled=True,
    )
    return _send(gather, tree), jnp.zeros(1, int), replica - replica
  n = block * lax.axis_size(AXIS_NAME)
  first = replica[0] // size
  some = jnp.arange((block - 2) // size + 2)  # the most groups in a block
  starts = jnp.minimum(first + some, n // size - 1) * size
  return all_gather(tree), starts, replica // size - first


def shift(tree: ArrayTree, k: int) -> ArrayTree:
  """Return, on replica i, the value of replica i - k (mod N).

  It sends min(k, V) rows to the next devices, in at most two messages.
  """
  return _send(functools.partial(_shift, k=k), tree)


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


def shift_by(tree: ArrayTree, k: Array) -> ArrayTree:
  """`shift` by a traced k in 0 .. N - 1.

  On one device it moves rows. On several devices it is a switch over the
  distances between them, with one branch per device. The rows of a block go to
  two devices. Their split is unknown when compiling, so whole blocks are sent
  to both. With one replica per device they are sent to one.
  """
  block, num_devices = _layout(tree)
  if num_devices == 1:
    return jax.tree.map(lambda x: jnp.roll(x, k, axis=0), tree)
  device = np.arange(num_devices)

  def move(hops: int, x: Array) -> Array:
    near = _route(x, (device - hops) % num_devices)
    if block == 1:
      return near
    far = _route(x, (device - hops - 1) % num_devices)
    both = jnp.concatenate([far, near])
    return lax.dynamic_slice_in_dim(both, block - k % block, block)

  return _switch(k // block, num_devices, move, tree)


def meet(tree: ArrayTree, r: Array) -> ArrayTree:
  """Return, on replica i, the value of its `partner` in a traced round r.

  On one device it moves rows. With one replica per device it is a switch over
  the N - 1 rounds, with one message each. Otherwise the partners of a block
  are one or two blocks in reverse order, except for the last replica's. Then
  it is a switch over this reflection, with one branch per device, in which
  whole blocks are sent to both. A second switch selects the device that sends
  a row to the last replica.
  """
  block, num_devices = _layout(tree)
  n = block * num_devices
  if num_devices == 1:
    return jax.tree.map(lambda x: x[partner(jnp.arange(n), r, n)], tree)
  if block == 1:
    origins = [partner(np.arange(n), turn, n) for turn in range(n - 1)]
    return lax.switch(
      r, [functools.partial(permute, source=o) for o in origins], tree
    )
  device, last = np.arange(num_devices), num_devices - 1
  here = lax.axis_index(AXIS_NAME)
  replica = here * block + jnp.arange(block)
  source = partner(replica, r, n)
  lone = partner(n - 1, r, n)
  off = (replica == n - 1) | (replica == lone)

  def reflect(hops: int, x: Array) -> Array:
    both = [_route(x, (hops - less - device) % num_devices) for less in (0, 1)]
    second = source // block != (hops - here) % num_devices
    return jnp.concatenate(both)[second * block + source % block]

  def trade(other: int, x: Array) -> Array:
    if other == last:
      return x[source % block]
    row = jnp.where(here == last, block - 1, lone % block)
    swapped = np.where(device == last, other, device)
    swapped[other] = last
    sent = lax.dynamic_slice_in_dim(x, row, 1)
    return jnp.broadcast_to(_route(sent, swapped), x.shape)

  met = _switch(r // block, num_devices, reflect, tree)
  traded = _switch(lone // block, num_devices, trade, tree)
  pick = jax.vmap(jnp.where)
  return jax.tree.map(lambda x, y: pick(off, x, y), traded, met)


def partner(replica: Any, r: Any, n: int) -> Any:
  """Return the partner of a replica in round r of the circle method, N even.

  The replicas 0 .. N - 2 lie on a circle and are mirrored at r / 2. The replica
  that would be its own partner is paired with the last replica, N - 1. The
  rounds r = 0 .. N - 2 contain each pair once.

  Example:
    >>> [[int(partner(i, r, 4)) for i in range(4)] for r in range(3)]
    [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]]
  """
  alone = r * (n // 2) % (n - 1)
  where = jnp.where if isinstance(r, jax.Array) else np.where
  mirrored = where(replica == alone, n - 1, (r - replica) % (n - 1))
  return where(replica == n - 1, alone, mirrored)


def _layout(tree: ArrayTree) -> tuple[int, int]:
  """Return (V, D)."""
  return jax.tree.leaves(tree)[0].shape[0], lax.axis_size(AXIS_NAME)


def _switch(
  index: Array, count: int, move: Callable[[int, Array], Array], tree: ArrayTree
) -> ArrayTree:
  """Return `move(index, leaf)` of every leaf, one branch per static index."""
  branches = [
    functools.partial(_send, functools.partial(move, i)) for i in range(count)
  ]
  return lax.switch(index, branches, tree)


def _route(x: Array, origin: np.ndarray) -> Array:
  """Return, on device d, the value of device `origin[d]`, a permutation."""
  stays = origin == np.arange(len(origin))
  away = [(o, d) for d, o in enumerate(origin.tolist()) if o != d]
  if not away:
    return x
  other = lax.ppermute(x, AXIS_NAME, away)
  if not stays.any():
    return other
  return jnp.where(jnp.asarray(stays)[lax.axis_index(AXIS_NAME)], x, other)


def permute(tree: ArrayTree, source: Sequence[int] | np.ndarray) -> ArrayTree:
  """Return, on replica i, the value of replica `source[i]`; zeros for -1.

  Rows that go from one device to the same other device travel together, so the
  number of messages does not grow with V; see `routes`. Rows that stay on their
  device are not sent, and a cyclic permutation is a `shift`.

  Args:
    tree: leaves `[V, ...]`.
    source: int[N], the sender of each replica; -1 for none.

  Raises:
    ValueError: if an entry is not in -1 .. N - 1, or if a replica is listed
      twice.
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
  plan = routes.messages(origin, block, num_devices)
  device = lax.axis_index(AXIS_NAME)
  # Rows in the order in which they are sent, and in that of arrival.
  leaving = np.concatenate([each.sent for each in plan], axis=1)
  kept = np.concatenate([each.kept for each in plan], axis=1)
  arrival = np.argsort(kept, axis=1)
  ends = np.cumsum([each.sent.shape[1] for each in plan])[:-1]

  def move(x: Array) -> Array:
    rows = jnp.split(x[jnp.asarray(leaving)[device]], ends)
    come = [_message(*pair) for pair in zip(rows, plan, strict=True)]
    return jnp.concatenate(come)[jnp.asarray(arrival)[device]]

  return _send(move, tree)


def _message(rows: Array, message: routes.Message) -> Array:
  """Send rows; return those received, zeros on a device that needs none."""
  origin, real = message.origin, message.real
  ways = [(o, d) for d, o in enumerate(origin.tolist()) if real[d]]
  away = [(o, d) for o, d in ways if o != d]
  other = lax.ppermute(rows, AXIS_NAME, away) if away else jnp.zeros_like(rows)
  stays = (origin == np.arange(len(origin))) & real
  return jnp.where(jnp.asarray(stays)[lax.axis_index(AXIS_NAME)], rows, other)


def _take(x: Array, source: np.ndarray) -> Array:
  """Return `x[source]`, with zeros for -1."""
  rows = x[np.maximum(source, 0)]
  known = (source >= 0).reshape((-1, *[1] * (x.ndim - 1)))
  return rows if known.all() else jnp.where(known, rows, jnp.zeros_like(rows))


def all_gather(tree: ArrayTree) -> ArrayTree:
  """Return the values of all replicas, on every device, `[N, ...]`."""
  gather = functools.partial(lax.all_gather, axis_name=AXIS_NAME, tiled=True)
  return _send(gather, tree)


def _send(fn: Callable[[Array], Array], tree: ArrayTree) -> ArrayTree:
  """Map a function that communicates over leaves `[V, ...]`.

  Between CPU processes, leaves of one dtype travel in one message, because the
  runtime waits for one leaf before it sends the next, and each wait has the
  latency of the network. Compilers for GPUs and TPUs join messages themselves.

  Args:
    fn: `[V, ...] -> [R, ...]`, equal for all positions of the trailing axes.
    tree: the leaves.
  """
  leaves, treedef = jax.tree.flatten(tree)
  if not _is_between_cpu_processes():
    return jax.tree.unflatten(treedef, [fn(x) for x in leaves])
  by_dtype: dict[Any, list[int]] = {}
  for i, x in enumerate(leaves):
    by_dtype.setdefault(x.dtype, []).append(i)
  for places in by_dtype.values():
    flat = [leaves[i].reshape((leaves[i].shape[0], -1)) for i in places]
    ends = np.cumsum([x.shape[1] for x in flat])[:-1]
    sent = jnp.split(fn(jnp.concatenate(flat, axis=1)), ends, axis=1)
    for i, x in zip(places, sent, strict=True):
      leaves[i] = x.reshape((x.shape[0], *leaves[i].shape[1:]))
  return jax.tree.unflatten(treedef, leaves)


def _is_between_cpu_processes() -> bool:
  return jax.process_count() > 1 and jax.default_backend() == 'cpu'

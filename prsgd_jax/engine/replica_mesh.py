"""REPLICA MESH: the placement of N replicas on D devices.

Arrays on a mesh have the shape `[D, V, ...]`: D devices, each with a block of
V = N / D replicas. Replica r is row r mod V of device r // V.

In a run of several processes, D counts the devices of all of them. A process
holds only the rows of its D_local devices, `[D_local, V, ...]`. Every
process must make the same calls in the same order.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import operator
from typing import Any

import jax
from jax import lax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree
from prsgd_jax.checks import check_live, check_positive_int
from prsgd_jax.engine import block_mapping, mapping
from prsgd_jax.tracing.keys import from_data, to_data
from prsgd_jax.tree_types import describe


def first(x: Array) -> np.ndarray:
  """Fetch the first row of `[D, ...]`, an array equal on all devices.

  Not by `x[0]`, because indexing a sharded array is a program with a
  collective, which can dead-lock with dispatches in flight.

  Args:
    x: array on the devices of a mesh.

  Example:
    >>> import jax.numpy as jnp
    >>> int(first(jnp.arange(3)[None] + 4)[0])
    4
  """
  return np.array(np.asarray(x.addressable_shards[0].data)[0])


@dataclasses.dataclass(frozen=True, init=False)
class ReplicaMesh:
  """The placement of N replicas on D devices.

  Args:
    num_replicas: N, >= 1.
    num_devices: D, which must divide N. Default: the largest number of
      available devices that does. With several processes, D must be a multiple
      of their number, because each takes part with as many devices.
    devices: the devices to choose from. Default: all of JAX's, of all
      processes.
    map_by: the function of JAX that maps over the devices, 'pmap' or
      'shard_map'. The results are equal bit for bit. Default: 'pmap'.
    block: how the replicas of a device are computed, 'vmap', 'unrolled' or
      'loop', see `engine.block_mapping`. The results are equal up to rounding.
      Default: the fastest known way for each program.

  Raises:
    ValueError: if N is not an integer >= 1, D does not divide N, fewer than D
      devices are available, `devices` is not a list of different devices, the
      devices are not shared equally among the processes, or a word is unknown.

  Example:
    >>> print(ReplicaMesh(num_replicas=8, num_devices=1))
    8 replicas on 1 cpu device (8 on each)
  """

  num_replicas: int
  devices: tuple[jax.Device, ...]
  map_by: str
  block: str | None

  def __init__(
    self,
    num_replicas: int,
    num_devices: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    map_by: str = mapping.PMAP,
    block: str | None = None,
  ):
    num_replicas = check_positive_int('num_replicas', num_replicas)
    if map_by not in (mapping.PMAP, mapping.SHARD_MAP):
      raise ValueError(
        f"map_by must be 'pmap' or 'shard_map', got {describe(map_by)}"
      )
    block = block_mapping.check_block(block)
    there = _devices(jax.devices() if devices is None else devices)
    chosen = _choose(num_replicas, num_devices, there)
    object.__setattr__(self, 'num_replicas', num_replicas)
    object.__setattr__(self, 'devices', chosen)
    object.__setattr__(self, 'map_by', map_by)
    object.__setattr__(self, 'block', block)

  def __deepcopy__(self, memo: dict[int, Any]) -> 'ReplicaMesh':
    """Return the mesh itself, because devices have no copies."""
    del memo
    return self

  def __reduce__(self) -> Any:
    """Raise TypeError, because devices are those of one process."""
    raise TypeError(
      'the placement on devices cannot be pickled; save a state by '
      'trainer.save(directory, state)'
    )

  @property
  def num_devices(self) -> int:
    """Number of devices, D."""
    return len(self.devices)

  @property
  def block_size(self) -> int:
    """Replicas per device, V = N / D."""
    return self.num_replicas // self.num_devices

  @functools.cached_property
  def local_devices(self) -> tuple[jax.Device, ...]:
    """The D_local devices of this process."""
    own = jax.process_index()
    return tuple(d for d in self.devices if d.process_index == own)

  @property
  def num_processes(self) -> int:
    """Number of processes, P."""
    return self.num_devices // len(self.local_devices)

  @property
  def process(self) -> int:
    """Index of this process in the mesh, 0-based."""
    first = self.devices.index(self.local_devices[0])
    return first // len(self.local_devices)

  @property
  def local_replicas(self) -> range:
    """The replicas on the devices of this process, N / P consecutive ones."""
    count = self.num_replicas // self.num_processes
    return range(self.process * count, (self.process + 1) * count)

  def __str__(self) -> str:
    plural = 's' if self.num_devices > 1 else ''
    processes = self.num_processes
    of = f' of {processes} processes' if processes > 1 else ''
    return (
      f'{self.num_replicas} replicas on {self.num_devices} '
      f'{self.devices[0].platform} device{plural}{of} '
      f'({self.block_size} on each)'
    )

  def map(
    self,
    fn: Callable[..., Any],
    *,
    donate_argnums: Sequence[int] = (),
    static_argnums: Sequence[int] = (),
  ) -> Callable[..., Any]:
    """Compile `fn` to run on every device, on its `[V, ...]` blocks.

    Args:
      fn: function of blocks; it may use `prsgd_jax.mixing.collectives`.
      donate_argnums: positions of the arguments to donate. Default: none.
      static_argnums: positions of the arguments that are not arrays. Default:
        none.

    Returns:
      The function, with the leading axis D_local on arguments and results.
      With several processes, each must call it.
    """
    return mapping.mapped(
      self.map_by, self.devices, fn, donate_argnums, static_argnums
    )

  def map_block(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Map `fn` of one replica over its block, in the way of `block`.

    Args:
      fn: function of one replica's arrays.
    """

    def mapped(*args: Any) -> Any:
      row = jax.tree.map(operator.itemgetter(0), args)
      # Traced once, for the choice and for all rows.
      closed, out = jax.make_jaxpr(fn, return_shape=True)(*row)
      stacked = block_mapping.mapped(
        self.block_of(closed.jaxpr),
        self.block_size,
        jax.extend.core.jaxpr_as_fun(closed),
        jax.tree.leaves(args),
      )
      return jax.tree.unflatten(jax.tree.structure(out), stacked)

    return mapped

  def block_of(self, jaxpr: Any) -> str:
    """Return how a program is mapped over a block: 'vmap', 'unrolled', 'loop'.

    Args:
      jaxpr: the traced program of one replica.
    """
    platform = self.devices[0].platform
    return self.block or block_mapping.choose(platform, self.block_size, jaxpr)

  def replica_index(self) -> Array:
    """Return the replicas of the block, int32[V], inside a mapped function."""
    first = lax.axis_index(AXIS_NAME) * self.block_size
    return (first + jnp.arange(self.block_size)).astype(jnp.int32)

  def place(self, tree: ArrayTree) -> ArrayTree:
    """Put host arrays `[N, ...]` on the devices as `[D_local, V, ...]`.

    The arrays are copied, so the caller may write to them afterwards. Typed
    keys stay typed. Every process passes all N rows, and places its own.

    Args:
      tree: arrays `[N, ...]`.

    Raises:
      ValueError: if an array lacks the leading axis N.
    """
    data = to_data(tree)
    for x in jax.tree.leaves(data):
      self._check_rows(x, self.num_replicas)
    own = jax.tree.map(lambda x: np.asarray(x)[self._own_rows], data)
    return from_data(self.place_rows(own), tree)

  def place_rows(self, tree: ArrayTree) -> ArrayTree:
    """Put the rows of this process on its devices.

    Args:
      tree: host arrays `[N / P, ...]`, one row for each of `local_replicas`.
        With one process, that is `place`.

    Raises:
      ValueError: if an array lacks this leading axis.
    """
    blocks = (len(self.local_devices), self.block_size)

    def cut(x: np.ndarray) -> np.ndarray:
      self._check_rows(x, len(self.local_replicas))
      return np.asarray(x).reshape(blocks + np.shape(x)[1:])

    data = self.place_per_device(jax.tree.map(cut, to_data(tree)))
    return from_data(data, tree)

  @property
  def _own_rows(self) -> slice:
    own = self.local_replicas
    return slice(own.start, own.stop)

  def _check_rows(self, x: Any, rows: int) -> None:
    if np.shape(x)[:1] != (rows,):
      raise ValueError(
        f'expected a leading axis of {rows} replicas, got an array of shape '
        f'{np.shape(x)}'
      )

  def place_per_device(self, tree: ArrayTree) -> ArrayTree:
    """Put host arrays `[D_local, ...]` on the devices, one row on each."""
    data = self._put(jax.tree.map(np.array, to_data(tree)))
    return from_data(data, tree)

  def replicate(self, tree: ArrayTree) -> ArrayTree:
    """Copy host arrays to every device, as `[D_local, ...]`."""

    def rows(x: np.ndarray) -> np.ndarray:
      # One copy, which fake CPU devices may share.
      return np.broadcast_to(
        np.array(x), (len(self.local_devices), *np.shape(x))
      )

    return from_data(self._put(jax.tree.map(rows, to_data(tree))), tree)

  def check_replicated(self, tree: ArrayTree) -> None:
    """Check that data has the form that `replicate` returns, `[D, ...]`.

    Args:
      tree: the data.

    Raises:
      ValueError: if a leaf lacks the leading axis D_local.
    """
    rows = len(self.local_devices)
    for x in jax.tree.leaves(tree):
      if np.shape(x)[:1] != (rows,):
        raise ValueError(
          f'data must have leaves [D, ...] = [{rows}, ...], got '
          f'{describe(x)}; place it by mesh.replicate(data) first'
        )

  def _put(self, tree: ArrayTree) -> ArrayTree:
    """Place arrays `[D_local, ...]`; a CPU device may keep their memory."""
    return jax.device_put(tree, mapping.sharding(self.local_devices))

  def rows(self, tree: ArrayTree) -> ArrayTree:
    """Fetch the rows of this process to the host as NumPy `[N / P, ...]`.

    It does not communicate. Typed keys become their uint32 data, because NumPy
    has no typed keys.

    Args:
      tree: arrays `[D_local, V, ...]`.

    Raises:
      ValueError: if an array was donated to a dispatch.
    """

    def fetch(x: Array) -> np.ndarray:
      check_live(x)
      host = np.asarray(x)
      return host.reshape((len(self.local_replicas), *host.shape[2:]))

    return jax.tree.map(fetch, to_data(tree))

  def gather(self, tree: ArrayTree) -> ArrayTree:
    """Fetch the rows of all processes to the host as NumPy `[N, ...]`.

    With several processes, each must call it, and each gets all rows. Typed
    keys become their uint32 data, because NumPy has no typed keys.

    Args:
      tree: arrays `[D_local, V, ...]`.

    Raises:
      ValueError: if an array was donated to a dispatch.
    """

    def join(x: np.ndarray) -> np.ndarray:
      return x.reshape((self.num_replicas, *x.shape[2:]))

    return jax.tree.map(join, self.gather_per_device(tree))

  def gather_per_device(self, tree: ArrayTree) -> ArrayTree:
    """Fetch the rows of all devices to the host as NumPy `[D, ...]`.

    With several processes, each must call it.

    Args:
      tree: arrays `[D_local, ...]`, on the devices or on the host.

    Raises:
      ValueError: if an array was donated to a dispatch.
    """

    def fetch(x: Array) -> np.ndarray:
      check_live(x)
      # Leaf by leaf, because each device then holds the rows of all.
      everywhere = x if self.num_processes == 1 else _all_rows(self)(x)
      return np.asarray(everywhere) if everywhere is x else first(everywhere)

    return jax.tree.map(fetch, to_data(tree))


@functools.lru_cache(8)
def _all_rows(mesh: ReplicaMesh) -> Callable[[Array], Array]:
  """Return the program that brings the rows of all devices to each of them."""
  return mesh.map(lambda x: lax.all_gather(x, AXIS_NAME))


def _devices(devices: Any) -> tuple[jax.Device, ...]:
  """Return different devices, as a tuple."""
  listed = tuple(devices) if isinstance(devices, Iterable) else (devices,)
  is_list = isinstance(devices, Iterable) and all(
    isinstance(x, jax.Device) for x in listed
  )
  if not is_list or len(set(listed)) != len(listed):
    raise ValueError(
      'devices expects a list of different devices, such as jax.devices()[:2], '
      f'got {describe(devices)}'
    )
  if not listed:
    raise ValueError('devices expects at least one device, got none')
  return listed


def _choose(
  num_replicas: int, num_devices: Any, there: tuple[jax.Device, ...]
) -> tuple[jax.Device, ...]:
  """Return D of the devices, equally many of each process, in their order."""
  owned: dict[int, list[jax.Device]] = {}
  for device in there:
    owned.setdefault(device.process_index, []).append(device)
  if jax.process_index() not in owned:
    raise ValueError(
      f'devices must include some of process {jax.process_index()}, got those '
      f'of {sorted(owned)}; pass devices=jax.devices()'
    )
  processes = len(owned)
  if len({len(own) for own in owned.values()}) > 1:
    counts = {process: len(own) for process, own in sorted(owned.items())}
    raise ValueError(
      'each process must have as many devices as the others, got (process: '
      f'devices) {counts}'
    )
  fitting = [
    d
    for d in range(processes, num_replicas + 1, processes)
    if num_replicas % d == 0
  ]
  if not fitting:
    raise ValueError(
      f'num_replicas must be a multiple of the {processes} processes, got '
      f'{num_replicas}'
    )
  if num_devices is None:
    num_devices = max(d for d in fitting if d <= len(there))
  num_devices = check_positive_int('num_devices', num_devices)
  if num_devices not in fitting:
    of = f' and be a multiple of the {processes} processes'
    raise ValueError(
      f'num_devices must divide the {num_replicas} replicas'
      f'{of if processes > 1 else ""}, got {num_devices}; use one of {fitting}'
    )
  if num_devices > len(there):
    raise ValueError(
      f'num_devices must be at most the {len(there)} {there[0].platform} '
      f'device(s) available, got {num_devices}; for fake CPU devices set '
      f"jax.config.update('jax_num_cpu_devices', {num_devices // processes}) "
      'first'
    )
  if processes == 1:  # in the order of the caller
    return there[:num_devices]
  each = num_devices // processes
  return tuple(
    device
    for _, own in sorted(owned.items())
    for device in sorted(own, key=lambda d: d.id)[:each]
  )

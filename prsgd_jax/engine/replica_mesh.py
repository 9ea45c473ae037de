"""REPLICA MESH: the placement of N replicas on D devices; the only `jax.pmap`.

Arrays on a mesh have the shape `[D, V, ...]`: D devices, each with a block of
V = N / D replicas. Replica r is row r mod V of device r // V.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import operator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree
from prsgd_jax.checks import check_live, check_positive_int
from prsgd_jax.tracing.keys import from_data, to_data
from prsgd_jax.tree_types import describe

# The largest block that is unrolled on CPU.
WRITTEN_OUT = 128


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
      available devices that does.
    devices: the devices to choose from. Default: all of JAX's.

  Raises:
    ValueError: if N is not an integer >= 1, D does not divide N, fewer than D
      devices are available, or `devices` is not a list of different devices.

  Example:
    >>> print(ReplicaMesh(num_replicas=8, num_devices=1))
    8 replicas on 1 cpu device (8 on each)
  """

  num_replicas: int
  devices: tuple[jax.Device, ...]

  def __init__(
    self,
    num_replicas: int,
    num_devices: int | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    if jax.process_count() > 1:
      raise ValueError(
        'ReplicaMesh places replicas on the devices of one process, got '
        f'{jax.process_count()} processes; start a single one'
      )
    num_replicas = check_positive_int('num_replicas', num_replicas)
    there = _devices(jax.devices() if devices is None else devices)
    if num_devices is None:
      num_devices = max(
        d for d in range(1, len(there) + 1) if num_replicas % d == 0
      )
    num_devices = check_positive_int('num_devices', num_devices)
    if num_replicas % num_devices:
      raise ValueError(
        f'num_devices must divide the {num_replicas} replicas, got '
        f'{num_devices}; use one of '
        f'{[d for d in range(1, num_replicas + 1) if num_replicas % d == 0]}'
      )
    if num_devices > len(there):
      raise ValueError(
        f'num_devices must be at most the {len(there)} {there[0].platform} '
        f'device(s) available, got {num_devices}; for fake CPU devices set '
        f"jax.config.update('jax_num_cpu_devices', {num_devices}) first"
      )
    object.__setattr__(self, 'num_replicas', num_replicas)
    object.__setattr__(self, 'devices', there[:num_devices])

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

  def __str__(self) -> str:
    plural = 's' if self.num_devices > 1 else ''
    return (
      f'{self.num_replicas} replicas on {self.num_devices} '
      f'{self.devices[0].platform} device{plural} ({self.block_size} on each)'
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
      The function, with the leading axis D on arguments and results.
    """
    return jax.pmap(
      fn,
      axis_name=AXIS_NAME,
      devices=self.devices,
      donate_argnums=tuple(donate_argnums),
      static_broadcasted_argnums=tuple(static_argnums),
    )

  def map_block(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Map `fn` of one replica over its block, in the fastest known way.

    On CPU, the calls are unrolled for blocks of up to 128 replicas, because a
    larger one would compile slowly. A vmap over the weights of convolutions
    would be a grouped convolution, five times slower than one replica after the
    other. A loop around convolutions would be slower still.

    Args:
      fn: function of one replica's arrays.
    """
    on_cpu = self.devices[0].platform == 'cpu'

    def mapped(*args: Any) -> Any:
      if self.block_size > (WRITTEN_OUT if on_cpu else 1):
        return jax.vmap(fn)(*args)
      once = jax.jit(fn, inline=True)  # traced once for the rows
      rows = [
        once(*jax.tree.map(operator.itemgetter(i), args))
        for i in range(self.block_size)
      ]
      return jax.tree.map(lambda *xs: jnp.stack(xs), *rows)

    return mapped

  def replica_index(self) -> Array:
    """Return the replicas of the block, int32[V], inside a mapped function."""
    first = lax.axis_index(AXIS_NAME) * self.block_size
    return (first + jnp.arange(self.block_size)).astype(jnp.int32)

  def place(self, tree: ArrayTree) -> ArrayTree:
    """Put host arrays `[N, ...]` on the devices as `[D, V, ...]`.

    The arrays are copied, so the caller may write to them afterwards. Typed
    keys stay typed.

    Args:
      tree: arrays `[N, ...]`.

    Raises:
      ValueError: if an array lacks the leading axis N.
    """
    blocks = (self.num_devices, self.block_size)

    def cut(x: np.ndarray) -> np.ndarray:
      x = np.asarray(x)
      if x.shape[:1] != (self.num_replicas,):
        raise ValueError(
          f'expected a leading axis of {self.num_replicas} replicas, got an '
          f'array of shape {x.shape}'
        )
      return x.reshape(blocks + x.shape[1:])

    data = self.place_per_device(jax.tree.map(cut, to_data(tree)))
    return from_data(data, tree)

  def place_per_device(self, tree: ArrayTree) -> ArrayTree:
    """Put host arrays `[D, ...]` on the devices, one row on each."""
    data = self._put(jax.tree.map(np.array, to_data(tree)))
    return from_data(data, tree)

  def replicate(self, tree: ArrayTree) -> ArrayTree:
    """Copy host arrays to every device, as `[D, ...]`."""

    def rows(x: np.ndarray) -> np.ndarray:
      # One copy, which fake CPU devices may share.
      return np.broadcast_to(np.array(x), (self.num_devices, *np.shape(x)))

    return from_data(self._put(jax.tree.map(rows, to_data(tree))), tree)

  def check_replicated(self, tree: ArrayTree) -> None:
    """Check that data has the form that `replicate` returns, `[D, ...]`.

    Args:
      tree: the data.

    Raises:
      ValueError: if a leaf lacks the leading axis D.
    """
    for x in jax.tree.leaves(tree):
      if np.shape(x)[:1] != (self.num_devices,):
        raise ValueError(
          f'data must have leaves [D, ...] = [{self.num_devices}, ...], got '
          f'{describe(x)}; place it by mesh.replicate(data) first'
        )

  def _put(self, tree: ArrayTree) -> ArrayTree:
    """Place arrays `[D, ...]`; a CPU device may keep using their memory."""
    mesh = Mesh(np.asarray(self.devices), (AXIS_NAME,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS_NAME)))

  def gather(self, tree: ArrayTree) -> ArrayTree:
    """Fetch `[D, V, ...]` arrays to the host as NumPy `[N, ...]`.

    Typed keys become their uint32 data, because NumPy has no typed keys.

    Args:
      tree: arrays `[D, V, ...]`.

    Raises:
      ValueError: if an array was donated to a dispatch.
    """

    def fetch(x: Array) -> np.ndarray:
      check_live(x)
      host = np.asarray(x)
      return host.reshape((self.num_replicas, *host.shape[2:]))

    return jax.tree.map(fetch, to_data(tree))


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

"""MAPPING: a function on every device; the only `jax.pmap` and `jax.shard_map`.

Two back ends map a function over the devices, and both do the same arithmetic.
Arrays are those of this process, `[D_local, ...]`, on either of them. With one
process these are all D devices.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array

Devices = tuple[jax.Device, ...]

PMAP, SHARD_MAP = 'pmap', 'shard_map'


def sharding(devices: Devices) -> NamedSharding:
  """Return the placement of one row of `[D, ...]` on each device."""
  mesh = Mesh(np.asarray(devices), (AXIS_NAME,))
  return NamedSharding(mesh, PartitionSpec(AXIS_NAME))


def mapped(
  map_by: str,
  devices: Devices,
  fn: Callable[..., Any],
  donate_argnums: Sequence[int],
  static_argnums: Sequence[int],
) -> Callable[..., Any]:
  """Compile `fn` to run on every device, on its row of the arguments.

  Args:
    map_by: 'pmap' or 'shard_map'.
    devices: all D devices, of all processes, in the order of the replicas.
    fn: function of one device's arrays, without the leading axis.
    donate_argnums: positions of the arguments to donate.
    static_argnums: positions of the arguments that are not arrays.
  """
  donate, static = tuple(donate_argnums), tuple(static_argnums)
  several = len({d.process_index for d in devices}) > 1
  if map_by == PMAP:
    program = jax.pmap(
      fn,
      axis_name=AXIS_NAME,
      devices=devices,
      donate_argnums=donate,
      static_broadcasted_argnums=static,
    )
    if not several:
      return program
  globally = _shard_mapped(devices, fn, donate, static)
  if not several:
    return globally
  locally = _with_local_arrays(devices, globally, donate, static)
  return _unless_traced(program, locally) if map_by == PMAP else locally


def _unless_traced(
  program: Callable[..., Any], traced: Callable[..., Any]
) -> Callable[..., Any]:
  """Return a `jax.pmap` that is traced as another program.

  With several processes, because `jax.pmap` then takes the devices of this
  process for all of them.
  """

  def run(*args: Any) -> Any:
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)):
      return traced(*args)
    return program(*args)

  run.lower = program.lower  # type: ignore[attr-defined]
  return run


def _shard_mapped(
  devices: Devices,
  fn: Callable[..., Any],
  donate: tuple[int, ...],
  static: tuple[int, ...],
) -> Callable[..., Any]:
  """Return the program of global arrays `[D, ...]`."""
  placed = sharding(devices)

  def run(*args: Any) -> Any:
    arrays = [x for i, x in enumerate(args) if i not in static]

    def on_device(*rows: Any) -> Any:
      own = iter(jax.tree.map(operator.itemgetter(0), rows))
      out = fn(*(x if i in static else next(own) for i, x in enumerate(args)))
      return jax.tree.map(lambda x: jnp.asarray(x)[None], out)

    return jax.shard_map(
      on_device,
      mesh=placed.mesh,
      in_specs=placed.spec,
      out_specs=placed.spec,
      check_vma=False,  # because collectives by groups have no replication type
    )(*arrays)

  # The name of the function, for profiles.
  functools.update_wrapper(run, fn)
  return jax.jit(
    run,
    donate_argnums=donate,
    static_argnums=static,
    in_shardings=placed,
    out_shardings=placed,
  )


def _with_local_arrays(
  devices: Devices,
  program: Callable[..., Any],
  donate: tuple[int, ...],
  static: tuple[int, ...],
) -> Callable[..., Any]:
  """Return the program with this process's rows as arguments and results."""
  everywhere = sharding(devices)
  here = tuple(d for d in devices if d.process_index == jax.process_index())
  local = sharding(here)
  num_processes = len(devices) // len(here)

  def to_global(x: Any) -> Any:
    if isinstance(x, jax.core.Tracer):  # only its shape matters
      return jnp.concatenate([x] * num_processes)
    if not isinstance(x, jax.Array):
      x = jax.device_put(np.asarray(x), local)
    return _regrouped(x, everywhere, len(devices))

  def to_local(x: Any) -> Any:
    if isinstance(x, jax.core.Tracer):
      return x[: len(here)]
    return _regrouped(x, local, len(here))

  def run(*args: Any) -> Any:
    moved = [
      x if i in static else jax.tree.map(to_global, x)
      for i, x in enumerate(args)
    ]
    out = jax.tree.map(to_local, program(*moved))
    for i in donate:  # because the views of its buffers are still alive
      for x in jax.tree.leaves(args[i]):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
          x.delete()
    return out

  def lower(*args: Any) -> jax.stages.Lowered:
    return program.lower(  # type: ignore[attr-defined]
      *(
        x if i in static else jax.tree.map(to_global, x)
        for i, x in enumerate(args)
      )
    )

  run.lower = lower  # type: ignore[attr-defined]
  return run


def _regrouped(x: Array, placed: NamedSharding, rows: int) -> Array:
  """Return the rows of this process as an array with another number of rows."""
  shape = (rows, *x.shape[1:])
  if not x.size:  # because JAX gives the shards of an empty result all rows
    row = np.zeros((1, *shape[1:]), x.dtype)
    return jax.make_array_from_callback(shape, placed, lambda index: row)
  return jax.make_array_from_single_device_arrays(
    shape, placed, [s.data for s in x.addressable_shards]
  )

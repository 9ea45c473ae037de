"""PREFETCHING: the batches of a pipeline, many steps in one dispatch.

A pipeline is read from the step of the state. While it is read on, no step is
asked for, because asking would make the host wait for the devices.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.checks import check_positive_int
from prsgd_jax.data import reading
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.stacking import lengths


class Flow(NamedTuple):
  """A pipeline that is being read.

  Attributes:
    take: `(step, num_steps) -> iterator` over trees `[D_local, steps, V, batch,
      ...]` on the devices, where `step` is the array `[D_local]` of a state.
    continue_at: `step -> None`; the array of the state after all that was
      taken, which the next call of `take` will get.
  """

  take: Callable[[Array, int], Iterator[Any]]
  continue_at: Callable[[Array], None]


def make_flow(mesh: ReplicaMesh, pipeline: Pipeline) -> Flow:
  """Return the batches of the replicas of this process.

  Args:
    mesh: placement of the replicas.
    pipeline: the data. Reading starts at the first `take`.

  Raises:
    ValueError: if the examples are too few for the replicas and the batch.
    DataError: if the first example cannot be read.
  """
  order = pipeline.order(mesh.num_replicas)
  units = reading.sizes(pipeline, len(mesh.local_replicas))
  batches: Iterator[Any] | None = None
  position = 0  # the step of the next of `batches`
  known: Array | None = None  # the array that holds this number

  def take(step: Array, num_steps: int) -> Iterator[Any]:
    nonlocal batches, position
    begin = position if step is known else int(first(step))
    if batches is None or begin != position:
      batches = None  # ends the reading before another one starts
      batches = reading.open_at(
        pipeline, order, mesh.local_replicas, begin, units
      )
      position = begin
    for length in lengths(num_steps, units.step_bytes):
      taken, batches = batches, None  # not used again after an error
      placed = _place(mesh, taken, length)
      batches, position = taken, position + length
      yield placed

  def continue_at(step: Array) -> None:
    nonlocal known
    known = step

  def checked(step: Array, num_steps: int) -> Iterator[Any]:
    return take(step, check_positive_int('num_steps', num_steps))

  return Flow(checked, continue_at)


def _place(mesh: ReplicaMesh, batches: Iterator[Any], num_steps: int) -> Any:
  """Stack the next batches as `[D_local, steps, V, ...]` on the devices."""
  blocks = (len(mesh.local_devices), mesh.block_size)
  stacked: list[np.ndarray] = []
  for i in range(num_steps):
    leaves, treedef = jax.tree.flatten(next(batches))
    if not stacked:
      stacked = [
        np.empty((blocks[0], num_steps, blocks[1], *x.shape[1:]), x.dtype)
        for x in leaves
      ]
    for into, x in zip(stacked, leaves, strict=True):
      into[:, i] = x.reshape(*blocks, *x.shape[1:])
  return mesh.place_per_device(jax.tree.unflatten(treedef, stacked))

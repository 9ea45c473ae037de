"""RUN STATE: the state and metrics of a run, without the device axis.

Arrays on the devices are `[D, V, ...]`: D devices, V replicas on each. The
views here are `[N, ...]` arrays in NumPy. They are made when they are read, so
they add no cost to a step. With several processes they bring the replicas of
all processes together, so each process must read them.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree
from prsgd_jax.checks import check_live
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.train_state import TrainState, check_state
from prsgd_jax.tracing.keys import from_data
from prsgd_jax.tree_types import describe, is_array


class State(struct.PyTreeNode):
  """The state of N replicas after some steps.

  Reading an attribute fetches it from the devices, and waits for the steps
  before it. Arrays are NumPy's; random keys are JAX's. `copy.deepcopy` copies
  the arrays, so that one copy may be trained and the other kept.

  Attributes:
    on_devices: the arrays on the devices, `[D, V, ...]`.
    mesh: the placement of the replicas.
  """

  on_devices: TrainState
  mesh: ReplicaMesh = struct.field(pytree_node=False)

  @property
  def step(self) -> int:
    """The number of steps done."""
    step = self.on_devices.step
    check_live(step)
    return int(first(step) if isinstance(step, jax.Array) else step[0])

  @property
  def params(self) -> ArrayTree:
    """The parameters of all replicas, leaves `[N, ...]`."""
    return self._gather(self.on_devices.params)

  @property
  def model_state(self) -> ArrayTree:
    """The model states of all replicas, leaves `[N, ...]`."""
    return self._gather(self.on_devices.model_state)

  @property
  def opt_state(self) -> ArrayTree:
    """The optimizer states of all replicas, leaves `[N, ...]`."""
    return self._gather(self.on_devices.opt_state)

  @property
  def registers(self) -> dict[str, ArrayTree]:
    """The registers that `remember` declares, by name, leaves `[N, ...]`."""
    return self._gather(self.on_devices.registers)

  def _gather(self, tree: ArrayTree) -> ArrayTree:
    return from_data(self.mesh.gather(tree), tree)

  def __repr__(self) -> str:
    """Return sizes instead of numbers, because the arrays are large."""
    params = jax.tree.leaves(self.on_devices.params)
    if not all(map(is_array, params)) or not _is_known(self.on_devices.step):
      return f'State(of {describe(self.on_devices.params)})'
    size = sum(math.prod(x.shape[2:]) for x in params)
    gone = isinstance(self.on_devices.step, jax.Array) and (
      self.on_devices.step.is_deleted()
    )
    done = 'used up' if gone else f'step {self.step}'
    return f'State({done}, {size:,} parameters, {self.mesh})'


def _is_known(step: Any) -> bool:
  """Return whether it has a number; shapes and traced arrays have none."""
  return isinstance(step, np.ndarray | jax.Array) and not isinstance(
    step, jax.core.Tracer
  )


def check_own(who: str, mesh: ReplicaMesh, state: Any) -> TrainState:
  """Return the arrays on the devices of a checked state.

  Args:
    who: name of the caller, for the message.
    mesh: mesh that the state should be on.
    state: should be a `State`.

  Raises:
    ValueError: if it is not a `State`, is of another mesh, or was used up.
  """
  if not isinstance(state, State):
    raise ValueError(
      f'{who} expects the state that trainer.init or trainer.run returns, got '
      f'{describe(state)}'
    )
  if state.mesh != mesh:
    raise ValueError(
      f'{who} is of a trainer of {mesh}, but the state is of one of '
      f'{state.mesh}; use the trainer that made it'
    )
  check_state(who, mesh, state.on_devices)
  return state.on_devices


def by_step(mesh: ReplicaMesh, tree: ArrayTree) -> ArrayTree:
  """Return metrics `[D, steps, V, ...]` as `[steps, N, ...]`, on one device.

  The part of each device is copied to the first device and joined there,
  asynchronously. No sharded array is transposed, because that may be a program
  with a collective, which can dead-lock with dispatches in flight. With several
  processes, all parts are first gathered on every device.

  Args:
    mesh: placement of the replicas.
    tree: metrics `[D_local, steps, V, ...]`.
  """
  if mesh.num_processes > 1:
    everywhere = _gathered(mesh)(tree)
    return _split(
      jax.tree.map(lambda x: x.addressable_shards[0].data, everywhere)
    )
  if mesh.num_devices == 1:
    return _join((tree,))
  leaves, treedef = jax.tree.flatten(tree)
  rows = [{s.device: s.data for s in x.addressable_shards} for x in leaves]
  parts = [[row[device] for row in rows] for device in mesh.devices]
  moved = jax.device_put(parts, mesh.devices[0])
  return jax.tree.unflatten(treedef, _join(moved))


@functools.lru_cache(8)
def _gathered(mesh: ReplicaMesh) -> Callable[[ArrayTree], ArrayTree]:
  """Return the program `[D_local, steps, V] -> [D_local, D, steps, V]`."""

  def gather(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x: lax.all_gather(x, AXIS_NAME), tree)

  return mesh.map(gather)


@jax.jit
def _split(tree: ArrayTree) -> ArrayTree:
  """Bring `[1, D, steps, V, ...]` to `[steps, N, ...]`."""

  def join(x: Array) -> Array:
    _, num_devices, num_steps, block_size = x.shape[:4]
    shape = (num_steps, num_devices * block_size, *x.shape[4:])
    return jnp.moveaxis(x[0], 0, 1).reshape(shape)

  return jax.tree.map(join, tree)


@jax.jit
def _join(parts: Sequence[ArrayTree]) -> ArrayTree:
  """Join the devices' parts `[1, steps, V, ...]` to `[steps, N, ...]`."""
  return jax.tree.map(
    lambda *xs: jnp.concatenate([x[0] for x in xs], axis=1), *parts
  )

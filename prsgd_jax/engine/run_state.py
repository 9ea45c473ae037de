"""VIEWS: the state and the metrics of a run, without the axis of devices.

The engine's arrays have the axes `[D, V, ...]`, devices and replicas on each.
Here they are shown as `[N, ...]`. The arrays on the devices stay as they are,
so that a step costs nothing more.
"""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from prsgd_jax.base import ArrayTree
from prsgd_jax.checks import check_live
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.train_state import TrainState, check_state
from prsgd_jax.tracing.keys import from_data
from prsgd_jax.tree_types import describe


class State(struct.PyTreeNode):
  """The state of N replicas after some steps.

  Reading an attribute fetches it from the devices, and waits for the steps
  before it. Arrays are NumPy's; random keys are JAX's.

  Attributes:
    on_devices: the arrays of the engine, `[D, V, ...]`.
    mesh: where they are.
  """

  on_devices: TrainState
  mesh: ReplicaMesh = struct.field(pytree_node=False)

  @property
  def step(self) -> int:
    """The number of steps done."""
    check_live(self.on_devices.step)
    return int(first(self.on_devices.step))

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
    """The sizes in place of the numbers."""
    params = jax.tree.leaves(self.on_devices.params)
    size = sum(x.size for x in params) // self.mesh.num_replicas
    gone = self.on_devices.step.is_deleted()
    done = 'used up' if gone else f'step {self.step}'
    return f'State({done}, {size:,} parameters, {self.mesh})'


def check_own(who: str, mesh: ReplicaMesh, state: Any) -> TrainState:
  """Returns the arrays of a state that lies on a mesh.

  Args:
    who: what the state was passed to.
    mesh: where it should be.
    state: what was passed.

  Raises:
    ValueError: if it is no `State`, is of another mesh, or was used up.
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
  """Returns metrics `[D, steps, V, ...]` as `[steps, N, ...]`, on one device.

  A transposition of arrays that several devices share may be a program with a
  collective, which may meet those of dispatches in flight in another order. So
  each device's part is copied to the first device and joined there. The copies
  are asynchronous.

  Args:
    mesh: of the arrays.
    tree: the arrays.
  """
  if mesh.num_devices == 1:
    return _join((tree,))
  leaves, treedef = jax.tree.flatten(tree)
  rows = [{s.device: s.data for s in x.addressable_shards} for x in leaves]
  parts = [[row[device] for row in rows] for device in mesh.devices]
  moved = jax.device_put(parts, mesh.devices[0])
  return jax.tree.unflatten(treedef, _join(moved))


@jax.jit
def _join(parts: Sequence[ArrayTree]) -> ArrayTree:
  """The devices' parts `[1, steps, V, ...]` as `[steps, N, ...]`."""
  return jax.tree.map(
    lambda *xs: jnp.concatenate([x[0] for x in xs], axis=1), *parts
  )

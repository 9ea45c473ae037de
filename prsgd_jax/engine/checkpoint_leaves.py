"""CHECKPOINT LEAVES: a train state as host arrays with names, and back.

A leaf of the replicas is `[N, ...]`, which does not depend on the number of
devices. `step` and `key` are single values, because all replicas share them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.train_state import TrainState, check_state
from prsgd_jax.tracing.keys import from_data, to_data

# Name -> rows of replicas, or one value of a leaf that all replicas share.
Leaves = dict[str, np.ndarray]


def names(state: TrainState) -> list[str]:
  """Return the name of each leaf, in the order of `jax.tree.leaves`.

  Args:
    state: the state, of arrays or shapes.

  Raises:
    ValueError: if two leaves have one name.
  """
  paths, _ = jax.tree.flatten_with_path(state)
  found = [
    jax.tree_util.keystr(path, simple=True, separator='.') for path, _ in paths
  ]
  if len(set(found)) < len(found):
    raise ValueError(
      'two parameters have the same name once their path is joined by dots; '
      'rename the one with a dot in its key'
    )
  return found


def is_shared(name: str) -> bool:
  """Return whether all replicas share a leaf, equal on every device."""
  return name in ('step', 'key')


def to_host(mesh: ReplicaMesh, state: TrainState) -> Leaves:
  """Return the rows of this process in NumPy; keys become their uint32 data.

  It does not communicate. With one process, the rows are those of all replicas.

  Args:
    mesh: placement of the replicas.
    state: state to read; it stays usable.

  Raises:
    ValueError: if it is not a state of this mesh, or was used up.
  """
  check_state('a checkpoint', mesh, state)

  def fetch(name: str, x: Array) -> np.ndarray:
    x = to_data(x)  # because NumPy has no typed keys
    return first(x) if is_shared(name) else mesh.rows(x)

  leaves = jax.tree.leaves(state)
  return {n: fetch(n, x) for n, x in zip(names(state), leaves, strict=True)}


def to_devices(
  mesh: ReplicaMesh, like: TrainState, leaves: Leaves
) -> TrainState:
  """Put host arrays on the devices of a mesh.

  Args:
    mesh: placement of the replicas.
    like: state whose structure, names and types of keys are used.
    leaves: an array for each name of `like`, as `to_host` returns them: the
      rows of this process.

  Returns:
    The state; its buffers may be donated.
  """

  def put(name: str, known: Array) -> Array:
    x = leaves[name]
    placed = mesh.replicate(x) if is_shared(name) else mesh.place_rows(x)
    return from_data(placed, known)

  known, treedef = jax.tree.flatten(like)
  new = [put(n, x) for n, x in zip(names(like), known, strict=True)]
  placed = jax.tree.unflatten(treedef, new)
  # Copied by a program, because only buffers it owns may be donated.
  return mesh.map(lambda state: jax.tree.map(jnp.copy, state))(placed)


def own_rows(mesh: ReplicaMesh, leaves: Leaves) -> Leaves:
  """Return the rows of this process.

  Args:
    mesh: placement of the replicas.
    leaves: the rows of all replicas, `[N, ...]`, by name.
  """
  own = mesh.local_replicas
  return {
    name: x if is_shared(name) else x[own.start : own.stop]
    for name, x in leaves.items()
  }


def signature(mesh: ReplicaMesh, state: TrainState) -> dict[str, str]:
  """Return name -> dtype and shape of each leaf, as a record keeps them.

  Args:
    mesh: placement of the replicas.
    state: the state; only its types are read.

  Returns:
    Texts such as 'float32[8, 3, 4]', by sorted names.
  """

  def text(name: str, x: Array) -> str:
    x = jax.eval_shape(to_data, x)
    shared = is_shared(name)
    shape = x.shape[1:] if shared else (mesh.num_replicas, *x.shape[2:])
    return f'{x.dtype}{list(shape)}'

  leaves = jax.tree.leaves(state)
  pairs = zip(names(state), leaves, strict=True)
  return dict(sorted((name, text(name, x)) for name, x in pairs))

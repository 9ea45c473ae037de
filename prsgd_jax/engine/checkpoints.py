"""CHECKPOINTS of the whole train state, with all replicas.

Leaves are saved as `[N, ...]`, so that a run can resume with another number of
devices. orbax writes the arrays to a side directory. A record of the run, the
leaves and the SHA-256 of every file is added. Then one rename puts the
directory into place, so that a directory named by a step is complete. Checksums
are verified before any array is read.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import system_errors
from prsgd_jax.base import Array
from prsgd_jax.engine import checkpoint_files
from prsgd_jax.engine.checkpoint_files import (
  CheckpointError,
  Path,
  latest_step,
  path_of,
  prune,
  steps,
)
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.train_state import TrainState, check_state
from prsgd_jax.tracing.keys import from_data, to_data

__all__ = (
  'CheckpointError',
  'latest_step',
  'prune',
  'read_notes',
  'restore',
  'save',
  'steps',
)


class SaveError(CheckpointError):
  """A checkpoint cannot be written; older ones are still whole."""


def save(
  directory: Path,
  mesh: ReplicaMesh,
  state: TrainState,
  description: Mapping[str, Any],
  *,
  notes: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Save the state in `directory/<step>`, completely or not at all.

  The files are on the disk when this returns, so `prune` may remove older ones.

  Args:
    directory: directory of the checkpoints of one run; created if missing.
    mesh: placement of the replicas.
    state: state to save; it stays usable.
    description: identity of the run, of JSON types; `restore` compares it.
    notes: further values of JSON types, for `read_notes`. Default: none.

  Returns:
    The path of the checkpoint.

  Raises:
    CheckpointError: if a checkpoint of this step exists.
    SaveError: if the checkpoint cannot be written, such as on a full disk. Its
      partial files are removed, and older checkpoints are still whole.
  """
  leaves = _to_host(mesh, state)
  step = int(leaves['step'])
  target = path_of(directory, step)
  if target.exists():
    raise CheckpointError(
      f'{target} is there already and is not overwritten; use another directory'
    )
  staging = target.with_name(f'.{step}.partial')
  record = {
    'description': _as_json(description),
    'num_replicas': mesh.num_replicas,
    'leaves': _signature(leaves),
    'notes': None if notes is None else _as_json(notes),
  }
  try:
    _write(staging, leaves, record)
    staging.rename(target)
    checkpoint_files.sync(target.parent)
  # All three, because orbax lets errors of tensorstore and threads through.
  except (OSError, ValueError, RuntimeError) as error:
    with contextlib.suppress(OSError):
      checkpoint_files.remove(staging)  # makes room on a full disk
    raise SaveError(
      f'{target} cannot be written ({system_errors.reason(error)})'
    ) from error
  return target


def _write(
  staging: pathlib.Path,
  leaves: dict[str, np.ndarray],
  record: Mapping[str, Any],
) -> None:
  """Write a checkpoint to a side directory and force it to the disk."""
  import orbax.checkpoint as ocp

  checkpoint_files.remove(staging)  # an interrupted save may have left one
  # Not the asynchronous checkpointer, because it leaves threads if it cannot
  # create its directory, and the process waits for them when it ends.
  handler = ocp.StandardCheckpointHandler()
  with _without_orbax_logs(), ocp.Checkpointer(handler) as checkpointer:
    saved = ocp.args.StandardSave(_not_empty(leaves))
    checkpointer.save(staging / 'state', args=saved)
  checkpoint_files.write_record(staging, record)


@contextlib.contextmanager
def _without_orbax_logs() -> Iterator[None]:
  """Keep orbax from logging the errors that it raises, with tracebacks."""

  def from_elsewhere(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname

  logger = logging.getLogger('absl')
  logger.addFilter(from_elsewhere)
  try:
    yield
  finally:
    logger.removeFilter(from_elsewhere)


def read_notes(directory: Path, step: int) -> dict[str, Any] | None:
  """Return the `notes` of a checkpoint, None if it has none.

  Args:
    directory: directory of the checkpoints of one run.
    step: step of the checkpoint.

  Raises:
    CheckpointError: if the record of the checkpoint is damaged.
  """
  return checkpoint_files.read_seal(path_of(directory, step)).get('notes')


def restore(
  directory: Path,
  mesh: ReplicaMesh,
  like: TrainState,
  description: Mapping[str, Any],
  step: int | None = None,
) -> TrainState:
  """Read a checkpoint onto the devices of a mesh.

  Args:
    directory: directory of the checkpoints of one run.
    mesh: placement of the replicas; N as saved, any D.
    like: a new state of the algorithm and model, for its structure.
    description: identity of the run, as passed to `save`.
    step: step of the checkpoint. Default: the newest one.

  Returns:
    The state, on the devices.

  Raises:
    CheckpointError: if the checkpoint is missing, damaged, of another run, of
      another number of replicas, or of other shapes.
  """
  import orbax.checkpoint as ocp

  step = latest_step(directory) if step is None else step
  if step is None or not path_of(directory, step).is_dir():
    wanted = 'no whole checkpoint' if step is None else f'no checkpoint {step}'
    raise CheckpointError(f'there is {wanted} in {directory}')
  source = path_of(directory, step)
  expected = _to_host(mesh, like)
  record = checkpoint_files.read_record(source)
  _compare(source, record, mesh, expected, description)
  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.restore(source / 'state', _not_empty(expected))
  if int(saved['step']) != step:
    raise CheckpointError(
      f'{source} holds step {int(saved["step"])}: it was renamed; rename it '
      'back, or move it away'
    )
  return _to_devices(mesh, like, {**expected, **saved})


def _as_json(description: Mapping[str, Any]) -> dict[str, Any]:
  """Convert through JSON, because a tuple becomes a list there."""
  return json.loads(json.dumps(dict(description)))


def _names(state: TrainState) -> list[str]:
  paths, _ = jax.tree.flatten_with_path(state)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='.') for path, _ in paths
  ]
  if len(set(names)) < len(names):
    raise ValueError(
      'two parameters have the same name once their path is joined by dots; '
      'rename the one with a dot in its key'
    )
  return names


def _is_global(name: str) -> bool:
  """Return whether all replicas share a leaf, equal on every device."""
  return name in ('step', 'key')


def _to_host(mesh: ReplicaMesh, state: TrainState) -> dict[str, np.ndarray]:
  """Return name -> `[N, ...]`, or one value of a leaf that all share."""
  check_state('a checkpoint', mesh, state)

  def fetch(name: str, x: Array) -> np.ndarray:
    x = to_data(x)  # because NumPy has no typed keys
    return first(x) if _is_global(name) else mesh.gather(x)

  leaves = jax.tree.leaves(state)
  return {n: fetch(n, x) for n, x in zip(_names(state), leaves, strict=True)}


def _not_empty(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Omit arrays of size 0, because orbax rejects them."""
  return {name: x for name, x in leaves.items() if x.size}


def _to_devices(
  mesh: ReplicaMesh, like: TrainState, leaves: dict[str, np.ndarray]
) -> TrainState:
  def put(name: str, known: Array) -> Array:
    x = leaves[name]
    placed = mesh.replicate(x) if _is_global(name) else mesh.place(x)
    return from_data(placed, known)

  known, treedef = jax.tree.flatten(like)
  new = [put(n, x) for n, x in zip(_names(like), known, strict=True)]
  placed = jax.tree.unflatten(treedef, new)
  # Copied by a program, because only buffers it owns may be donated.
  return mesh.map(lambda state: jax.tree.map(jnp.copy, state))(placed)


def _signature(leaves: dict[str, np.ndarray]) -> dict[str, str]:
  return {
    name: f'{x.dtype}{list(x.shape)}' for name, x in sorted(leaves.items())
  }


def _compare(
  source: pathlib.Path,
  record: Mapping[str, Any],
  mesh: ReplicaMesh,
  expected: dict[str, np.ndarray],
  description: Mapping[str, Any],
) -> None:
  """Raise CheckpointError if a checkpoint is not of this run."""
  saved, shapes = record['description'], record['leaves']
  num_replicas = record['num_replicas']
  this = _as_json(description)
  for name in sorted({*saved, *this}):
    if saved.get(name) != this.get(name):
      raise CheckpointError(
        f'{source} is of a run with {name}={saved.get(name)!r}, this run has '
        f'{this.get(name)!r}; use the same or another directory'
      )
  if num_replicas != mesh.num_replicas:
    raise CheckpointError(
      f'{source} has {num_replicas} replicas, this run has '
      f'{mesh.num_replicas}; N cannot change'
    )
  wanted = _signature(expected)
  for name in sorted({*shapes, *wanted}):
    if shapes.get(name) != wanted.get(name):
      raise CheckpointError(
        f'{source} has {name}: {shapes.get(name, "nothing")}, this run has '
        f'{wanted.get(name, "nothing")}; it is of another algorithm or model'
      )

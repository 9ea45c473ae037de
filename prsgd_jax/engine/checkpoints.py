"""CHECKPOINTS of the whole train state, with all replicas.

Leaves are saved as `[N, ...]`, so that a run can resume with another number of
devices. orbax writes the arrays to a side directory. A record of the run, the
leaves and the SHA-256 of every file is added. Then one rename puts the
directory into place, so that a directory named by a step is complete. Checksums
are verified before any array is read.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import pathlib
from typing import Any

from prsgd_jax import system_errors
from prsgd_jax.engine import (
  checkpoint_arrays,
  checkpoint_files,
  checkpoint_leaves,
)
from prsgd_jax.engine.checkpoint_files import (
  CheckpointError,
  Path,
  latest_step,
  path_of,
  prune,
  steps,
)
from prsgd_jax.engine.checkpoint_leaves import Leaves
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState

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
  leaves = checkpoint_leaves.to_host(mesh, state)
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
    'leaves': checkpoint_leaves.signature(mesh, state),
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
  staging: pathlib.Path, leaves: Leaves, record: Mapping[str, Any]
) -> None:
  """Write a checkpoint to a side directory and force it to the disk."""
  checkpoint_files.remove(staging)  # an interrupted save may have left one
  checkpoint_arrays.write(staging, leaves)
  checkpoint_files.write_record(staging, record)


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
  *,
  resize: Callable[[Leaves], Leaves] | None = None,
) -> TrainState:
  """Read a checkpoint onto the devices of a mesh.

  Args:
    directory: directory of the checkpoints of one run.
    mesh: placement of the replicas; N as saved unless `resize` is given, any D.
    like: a new state of the algorithm and model, for its structure.
    description: identity of the run, as passed to `save`.
    step: step of the checkpoint. Default: the newest one.
    resize: a function that changes the number of replicas of the leaves, see
      `resizing.resize`. Default: N must be as saved.

  Returns:
    The state, on the devices.

  Raises:
    CheckpointError: if the checkpoint is missing, damaged, of another run, of
      another number of replicas, or of other shapes; if `resize` refuses it.
  """
  source = find(directory, step)
  record = checkpoint_files.read_record(source)
  check_description(source, record, description)
  if resize is None or record['num_replicas'] == mesh.num_replicas:
    _check_leaves(source, record, mesh, like)
  leaves = read_leaves(source, record)
  if resize is not None:
    try:
      leaves = resize(leaves)
    except ValueError as error:
      raise CheckpointError(f'{source} cannot be resized: {error}') from error
  return checkpoint_leaves.to_devices(mesh, like, leaves)


def find(directory: Path, step: int | None = None) -> pathlib.Path:
  """Return the path of a checkpoint, without reading it.

  Args:
    directory: directory of the checkpoints of one run.
    step: step of the checkpoint. Default: the newest one.

  Raises:
    CheckpointError: if it is missing.
  """
  step = latest_step(directory) if step is None else step
  if step is None or not path_of(directory, step).is_dir():
    wanted = 'no whole checkpoint' if step is None else f'no checkpoint {step}'
    raise CheckpointError(f'there is {wanted} in {directory}')
  return path_of(directory, step)


def read_leaves(source: pathlib.Path, record: Mapping[str, Any]) -> Leaves:
  """Return name -> `[N, ...]` on the host, with the N of the checkpoint.

  Args:
    source: path of the checkpoint.
    record: its record, from `checkpoint_files.read_record`, which verifies the
      files.

  Raises:
    CheckpointError: if the checkpoint is of another step than its name says.
  """
  leaves = checkpoint_arrays.read(source, record)
  step = int(leaves['step'])
  if source.name != str(step):
    raise CheckpointError(
      f'{source} holds step {step}: it was renamed; rename it back, or move it '
      'away'
    )
  return leaves


def _as_json(description: Mapping[str, Any]) -> dict[str, Any]:
  """Convert through JSON, because a tuple becomes a list there."""
  return json.loads(json.dumps(dict(description)))


def check_description(
  source: pathlib.Path,
  record: Mapping[str, Any],
  description: Mapping[str, Any],
) -> None:
  """Check that a checkpoint is of the run with a description.

  Args:
    source: path of the checkpoint, for the message.
    record: its record.
    description: identity of the run, as passed to `save`.

  Raises:
    CheckpointError: if it is of another run.
  """
  saved, this = record['description'], _as_json(description)
  for name in sorted({*saved, *this}):
    if saved.get(name) != this.get(name):
      raise CheckpointError(
        f'{source} is of a run with {name}={saved.get(name)!r}, this run has '
        f'{this.get(name)!r}; use the same or another directory'
      )


def _check_leaves(
  source: pathlib.Path,
  record: Mapping[str, Any],
  mesh: ReplicaMesh,
  like: TrainState,
) -> None:
  """Raise CheckpointError if the leaves of a checkpoint are not of `like`."""
  if record['num_replicas'] != mesh.num_replicas:
    raise CheckpointError(
      f'{source} has {record["num_replicas"]} replicas, this run has '
      f'{mesh.num_replicas}; pass resize=True to change their number'
    )
  shapes = record['leaves']
  wanted = checkpoint_leaves.signature(mesh, like)
  for name in sorted({*shapes, *wanted}):
    if shapes.get(name) != wanted.get(name):
      raise CheckpointError(
        f'{source} has {name}: {shapes.get(name, "nothing")}, this run has '
        f'{wanted.get(name, "nothing")}; it is of another algorithm or model'
      )

"""CHECKPOINTS of the whole train state, with all replicas.

Leaves are saved as `[N, ...]`, so that a run can resume with another number of
devices. The arrays are written to a side directory. A record of the run, the
leaves and the SHA-256 of every file is added. Then one rename puts the
directory into place, so that a directory named by a step is complete. Checksums
are verified before any array is read.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
import pathlib
from typing import Any

import numpy as np

from prsgd_jax import system_errors
from prsgd_jax.engine import (
  checkpoint_arrays,
  checkpoint_checks,
  checkpoint_files,
  checkpoint_leaves,
  checkpoint_writing,
  retention,
  together,
)
from prsgd_jax.engine.checkpoint_files import (
  CheckpointError,
  Path,
  latest_step,
  path_of,
  steps,
)
from prsgd_jax.engine.checkpoint_leaves import Leaves
from prsgd_jax.engine.checkpoint_writing import SaveError, Snapshot
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.retention import Retention, prune
from prsgd_jax.engine.train_state import TrainState

__all__ = (
  'CheckpointError',
  'Retention',
  'SaveError',
  'latest_step',
  'prune',
  'read_notes',
  'restore',
  'save',
  'save_in_background',
  'steps',
)

# One thread for all saves, because several processes must write them in one
# order, and a save may remove the files that an interrupted one left.
_writer = ThreadPoolExecutor(1, thread_name_prefix='checkpoints')


def save(
  directory: Path,
  mesh: ReplicaMesh,
  state: TrainState,
  description: Mapping[str, Any],
  *,
  notes: Mapping[str, Any] | None = None,
  keep: int | Retention | None = None,
) -> pathlib.Path:
  """Save the state in `directory/<step>`, completely or not at all.

  The files are on the disk when this returns.

  Args:
    directory: directory of the checkpoints of one run; created if missing.
    mesh: placement of the replicas.
    state: state to save; it stays usable.
    description: identity of the run, of JSON types; `restore` compares it.
    notes: further values of JSON types, for `read_notes`. Default: none.
    keep: the checkpoints to keep afterwards, as for `prune`. Default: all.

  Returns:
    The path of the checkpoint.

  Raises:
    ValueError: if `keep` has a number that is not an integer >= 1.
    CheckpointError: if a checkpoint of this step exists.
    SaveError: if the checkpoint cannot be written, such as on a full disk. Its
      partial files are removed, and older checkpoints are still whole.
  """
  rules = None if keep is None else retention.check(keep)
  snapshot = _snapshot(directory, mesh, state, description, notes)
  return _writer.submit(_write, snapshot, rules).result()


def save_in_background(
  directory: Path,
  mesh: ReplicaMesh,
  state: TrainState,
  description: Mapping[str, Any],
  *,
  notes: Mapping[str, Any] | None = None,
  keep: int | Retention | None = None,
) -> Future[pathlib.Path]:
  """Copy the state to the host, and save it in a thread.

  The state may be used up meanwhile. The save before is waited for first. Call
  `result()` of what is returned: it waits, and raises the SaveError of a failed
  save. The program does not end before its saves are written.

  Args:
    directory: directory of the checkpoints of one run; created if missing.
    mesh: placement of the replicas.
    state: state to save; it stays usable.
    description: identity of the run, of JSON types; `restore` compares it.
    notes: further values of JSON types, for `read_notes`. Default: none.
    keep: the checkpoints to keep afterwards, as for `prune`. Default: all.

  Returns:
    The future of the path of the checkpoint.

  Raises:
    ValueError: if `keep` has a number that is not an integer >= 1.
    CheckpointError: if a checkpoint of this step exists.
  """
  rules = None if keep is None else retention.check(keep)
  # Waited for, because each save in the queue would hold a copy of the state.
  _writer.submit(lambda: None).result()
  snapshot = _snapshot(directory, mesh, state, description, notes)
  # Copied, because on CPU these arrays may be views of the devices' buffers,
  # which the next steps may use.
  copies = {name: np.array(x) for name, x in snapshot.leaves.items()}
  return _writer.submit(_write, snapshot._replace(leaves=copies), rules)


def _write(snapshot: Snapshot, keep: int | Retention | None) -> pathlib.Path:
  path = checkpoint_writing.write(snapshot)
  if keep is not None:
    together.on_first(
      snapshot.mesh,
      f'{snapshot.name}, older ones',
      lambda: prune(path.parent, keep),
      CheckpointError,
    )
  return path


def _snapshot(
  directory: Path,
  mesh: ReplicaMesh,
  state: TrainState,
  description: Mapping[str, Any],
  notes: Mapping[str, Any] | None,
) -> Snapshot:
  """Return the state on the host, with its record."""
  leaves = checkpoint_leaves.to_host(mesh, state)
  step = int(leaves['step'])
  target = path_of(directory, step)

  def check_new() -> None:
    if target.exists():
      raise CheckpointError(
        f'{target} is there already and is not overwritten; use another '
        'directory'
      )

  together.on_first(mesh, f'checkpoint {step}', check_new, CheckpointError)
  record = {
    'description': checkpoint_checks.as_json(description),
    'num_replicas': mesh.num_replicas,
    'leaves': checkpoint_leaves.signature(mesh, state),
    'notes': None if notes is None else checkpoint_checks.as_json(notes),
  }
  return checkpoint_writing.snapshot(mesh, target, leaves, record)


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

  def choose() -> tuple[int, str]:
    source = find(directory, step)
    return int(source.name), checkpoint_files.read_record(source)['sha256']

  # By one process, because the others may see other files.
  chosen, seal = together.on_first(mesh, 'restore', choose, CheckpointError)
  source = path_of(directory, chosen)
  # A change of N is computed from all rows, on every process.
  wanted = None if resize else mesh.local_replicas

  def read() -> Leaves:
    record = checkpoint_checks.agreed_record(mesh, source, seal, wanted)
    checkpoint_checks.check_description(source, record, description)
    if resize is None or record['num_replicas'] == mesh.num_replicas:
      checkpoint_checks.check_leaves(source, record, mesh, like)
    leaves = read_leaves(source, record, wanted)
    if resize is None:
      return leaves
    try:
      return checkpoint_leaves.own_rows(mesh, resize(leaves))
    except ValueError as error:
      raise CheckpointError(f'{source} cannot be resized: {error}') from error

  leaves = together.everywhere(mesh, 'restore', read, CheckpointError)
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


def read_leaves(
  source: pathlib.Path,
  record: Mapping[str, Any],
  rows: range | None = None,
) -> Leaves:
  """Return name -> `[N, ...]` on the host, with the N of the checkpoint.

  Args:
    source: path of the checkpoint.
    record: its record, from `checkpoint_files.read_record`, which verifies the
      files.
    rows: consecutive replicas to read, `[rows, ...]`. Default: all.

  Raises:
    CheckpointError: if the checkpoint cannot be read, or is of another step
      than its name says.
  """
  try:
    leaves = checkpoint_arrays.read(source, record, rows=rows)
  except (OSError, ValueError, RuntimeError) as error:
    raise CheckpointError(
      f'{source} cannot be read ({system_errors.reason(error)})'
    ) from error
  step = int(leaves['step'])
  if source.name != str(step):
    raise CheckpointError(
      f'{source} holds step {step}: it was renamed; rename it back, or move it '
      'away'
    )
  return leaves

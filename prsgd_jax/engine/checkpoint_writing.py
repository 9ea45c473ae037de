"""CHECKPOINT WRITING: a snapshot on the host becomes a whole checkpoint.

Each process writes the rows of its replicas to a side directory. When all have
done so, process 0 adds the record with the SHA-256 of every file, and one
rename puts the directory into place. Every process then knows whether it is
there. Nothing here uses a device, so a thread may do it while a run continues.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import itertools
import pathlib
from typing import Any, NamedTuple, TypeVar

from prsgd_jax import system_errors
from prsgd_jax.engine import checkpoint_arrays, checkpoint_files, together
from prsgd_jax.engine.checkpoint_files import CheckpointError
from prsgd_jax.engine.checkpoint_leaves import Leaves
from prsgd_jax.engine.processes import ProcessError
from prsgd_jax.engine.replica_mesh import ReplicaMesh

T = TypeVar('T')
# File -> [SHA-256, bytes].
Files = dict[str, Sequence[Any]]

_SHARE = 'put the directory on a file system that all processes share'
# Every process makes the same snapshots, so the numbers agree.
_numbers = itertools.count()


class SaveError(CheckpointError):
  """A checkpoint cannot be written; older ones are still whole."""


class Snapshot(NamedTuple):
  """A checkpoint before it is written.

  Attributes:
    name: what the processes wait for, another for each snapshot.
    mesh: placement of the replicas.
    target: path of the checkpoint.
    leaves: rows of this process's replicas, or one value that all share.
    record: the record, without the files.
  """

  name: str
  mesh: ReplicaMesh
  target: pathlib.Path
  leaves: Leaves
  record: Mapping[str, Any]

  @property
  def staging(self) -> pathlib.Path:
    """The side directory."""
    return self.target.with_name(f'.{self.target.name}.partial')


def snapshot(
  mesh: ReplicaMesh,
  target: pathlib.Path,
  leaves: Leaves,
  record: Mapping[str, Any],
) -> Snapshot:
  """Return a snapshot to write; every process must make it."""
  name = f'save {next(_numbers)}, checkpoint {target.name}'
  parts = checkpoint_arrays.parts(mesh)
  named = {} if len(parts) == 1 else {checkpoint_arrays.PARTS: parts}
  return Snapshot(name, mesh, target, leaves, {**record, **named})


def write(draft: Snapshot) -> pathlib.Path:
  """Write a checkpoint, completely or not at all.

  Args:
    draft: its arrays and record.

  Returns:
    The path of the checkpoint.

  Raises:
    SaveError: if it cannot be written, on any process. Its partial files are
      removed, and older checkpoints are still whole.
  """
  mesh, name = draft.mesh, draft.name

  def step(
    do: Callable[..., Any], what: str, work: Callable[[Snapshot], T]
  ) -> T:
    return do(mesh, f'{name}, {what}', _guarded(draft, work), SaveError)

  try:
    step(together.on_first, 'directory', _begin)
    own = step(together.everywhere, 'arrays', _write_part)
    files = together.collect(mesh, f'{name}, files', own)
    step(together.on_first, 'record', lambda d: _finish(d, files))
  except (SaveError, ProcessError) as error:
    with contextlib.suppress(OSError):
      checkpoint_files.remove(draft.staging)  # makes room on a full disk
    if isinstance(error, ProcessError):
      raise _save_error(draft, error) from error
    raise
  return draft.target


def _guarded(draft: Snapshot, work: Callable[[Snapshot], T]) -> Callable[[], T]:
  """Return the work, with its errors as a SaveError."""

  def guarded() -> T:
    try:
      return work(draft)
    # All three, because tensorstore raises errors of the system as others.
    except (OSError, ValueError, RuntimeError) as error:
      raise _save_error(draft, error) from error

  return guarded


def _save_error(draft: Snapshot, error: Exception) -> SaveError:
  reason = system_errors.reason(error)
  return SaveError(f'{draft.target} cannot be written ({reason})')


def _begin(draft: Snapshot) -> None:
  # Because an interrupted save may have left one.
  checkpoint_files.remove(draft.staging)
  checkpoint_files.make(draft.staging)


def _write_part(draft: Snapshot) -> Files:
  """Write the rows of this process to the disk, and return its files."""
  if not draft.staging.is_dir():
    raise ValueError(
      f'process {draft.mesh.process} does not see the files of process 0; '
      f'{_SHARE}'
    )
  part = checkpoint_arrays.parts(draft.mesh)[draft.mesh.process]
  path = draft.staging / part.name
  checkpoint_arrays.write(path, draft.leaves)
  checkpoint_files.sync_all(path)
  return {
    f'{part.name}/{name}': (digest, (path / name).stat().st_size)
    for name, digest in checkpoint_files.digests(path).items()
  }


def _finish(draft: Snapshot, files: Sequence[Files]) -> None:
  """Add the record to the files of all processes, and rename the directory."""
  staging, target = draft.staging, draft.target
  for process, own in enumerate(files):
    for name, (_, size) in own.items():
      path = staging / name
      if not path.is_file() or path.stat().st_size != size:
        raise ValueError(
          f'process 0 does not see the files of process {process}; {_SHARE}'
        )
  digests = {name: x[0] for own in files for name, x in own.items()}
  checkpoint_files.write_record(staging, draft.record, digests)
  staging.rename(target)
  checkpoint_files.sync(target.parent)

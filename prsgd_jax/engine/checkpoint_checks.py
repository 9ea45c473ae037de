"""CHECKPOINT CHECKS: whether a checkpoint is of this run, and one for all.

A mismatch is one line with the saved value, the value of this run and a remedy.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from prsgd_jax.engine import (
  checkpoint_arrays,
  checkpoint_files,
  checkpoint_leaves,
  together,
)
from prsgd_jax.engine.checkpoint_files import CheckpointError
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState


def as_json(description: Mapping[str, Any]) -> dict[str, Any]:
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
  saved, this = record['description'], as_json(description)
  for name in sorted({*saved, *this}):
    if saved.get(name) != this.get(name):
      raise CheckpointError(
        f'{source} is of a run with {name}={saved.get(name)!r}, this run has '
        f'{this.get(name)!r}; use the same or another directory'
      )


def check_leaves(
  source: pathlib.Path,
  record: Mapping[str, Any],
  mesh: ReplicaMesh,
  like: TrainState,
) -> None:
  """Check that the leaves of a checkpoint are of the types of a state.

  Args:
    source: path of the checkpoint, for the message.
    record: its record.
    mesh: placement of the replicas.
    like: the state; only its types are read.

  Raises:
    CheckpointError: if it has another number of replicas, or other leaves.
  """
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


def agreed_record(
  mesh: ReplicaMesh, source: pathlib.Path, seal: str, rows: range | None
) -> dict[str, Any]:
  """Return the record of the checkpoint that process 0 verified.

  The other processes verify the parts that they read.

  Args:
    mesh: placement of the replicas.
    source: path of the checkpoint.
    seal: SHA-256 of its record in process 0.
    rows: replicas that this process reads; None for all.

  Raises:
    CheckpointError: if this process sees no such checkpoint, or another one.
  """
  if together.is_first(mesh):
    return checkpoint_files.read_seal(source)
  share = 'put the directory on a file system that all processes share'
  if not source.is_dir():
    raise CheckpointError(
      f'{source} is not there, but process 0 restores it; {share}'
    )
  record = checkpoint_files.read_seal(source)
  if record['sha256'] != seal:
    raise CheckpointError(
      f'{source} is another file for process 0, which restores it; {share}'
    )
  parts = checkpoint_arrays.parts_of(record, rows)
  return checkpoint_files.read_record(source, [part.name for part in parts])

"""CHECKPOINT ARRAYS: named host arrays in the files of a checkpoint, by orbax.

orbax rejects arrays of size 0. They are left out, and made from the shapes in
the record when they are read.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import json
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from prsgd_jax.engine.checkpoint_leaves import Leaves

_STATE = 'state'


def write(directory: pathlib.Path, leaves: Leaves) -> None:
  """Write arrays to the directory of a checkpoint.

  Args:
    directory: directory of the checkpoint; created if missing.
    leaves: arrays by name.

  Raises:
    OSError, ValueError, RuntimeError: if they cannot be written; orbax lets
      errors of tensorstore and threads through.
  """
  import orbax.checkpoint as ocp

  # Not the asynchronous checkpointer, because it leaves threads if it cannot
  # create its directory, and the process waits for them when it ends.
  handler = ocp.StandardCheckpointHandler()
  with _without_orbax_logs(), ocp.Checkpointer(handler) as checkpointer:
    saved = {name: x for name, x in leaves.items() if x.size}
    checkpointer.save(directory / _STATE, args=ocp.args.StandardSave(saved))


def read(
  directory: pathlib.Path,
  record: Mapping[str, Any],
  names: Collection[str] | None = None,
) -> Leaves:
  """Read the arrays of a checkpoint, which was verified before.

  Args:
    directory: directory of the checkpoint.
    record: its record.
    names: names to read. Default: all.

  Returns:
    Arrays by name, `[N, ...]` with the N of the checkpoint.
  """
  import orbax.checkpoint as ocp

  chosen = record['leaves'] if names is None else names
  empty = {n: _zeros(record['leaves'][n]) for n in chosen}
  stored = {n: x for n, x in empty.items() if x.size}
  in_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  args = ocp.args.PyTreeRestore(
    item=stored,
    restore_args=dict.fromkeys(stored, in_numpy),
    partial_restore=True,
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    found = checkpointer.restore(directory / _STATE, args=args)
  return {**empty, **found}


def _zeros(text: str) -> np.ndarray:
  """Return zeros of a dtype and shape, such as 'float32[8, 3]'."""
  dtype, _, shape = text.partition('[')
  sizes = json.loads(f'[{shape}')
  # Broadcast, because only the shape of most of them is used.
  return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), sizes)


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

"""CHECKPOINT ARRAYS: named host arrays in the files of a checkpoint.

A checkpoint of one process has one part, `state`. One of P processes has P
parts, each with the rows of one process, which wrote it without the others. A
part is a database of tensorstore, in the form that orbax uses. Not by orbax,
because it writes NumPy arrays in process 0 only, and waits for all processes
without a time limit. Arrays of size 0 are made from the shapes in the record.
"""

from collections.abc import Collection, Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prsgd_jax.engine.checkpoint_leaves import Leaves, is_shared
from prsgd_jax.engine.replica_mesh import ReplicaMesh

# Key of a record: the parts of a checkpoint of several processes.
PARTS = 'parts'


class Part(NamedTuple):
  """Files with the rows of one process.

  Attributes:
    name: directory in the checkpoint.
    start, stop: its replicas.
  """

  name: str
  start: int
  stop: int


def parts(mesh: ReplicaMesh) -> list[Part]:
  """Return the parts that the processes of a mesh write, in their order."""
  count = mesh.num_processes
  if count == 1:
    return [Part('state', 0, mesh.num_replicas)]
  size = mesh.num_replicas // count
  return [
    Part(f'state-{p}-of-{count}', p * size, (p + 1) * size)
    for p in range(count)
  ]


def parts_of(
  record: Mapping[str, Any], rows: range | None = None
) -> list[Part]:
  """Return the parts of a checkpoint that have some rows.

  Args:
    record: record of the checkpoint.
    rows: replicas wanted. Default: all.
  """
  found = record.get(PARTS, [('state', 0, record['num_replicas'])])
  listed = [Part(*part) for part in found]
  if rows is None:
    return listed
  return [p for p in listed if p.start < rows.stop and rows.start < p.stop]


def write(directory: pathlib.Path, leaves: Leaves) -> None:
  """Write the arrays of one part.

  Args:
    directory: directory of the part; it must not exist.
    leaves: arrays by name.

  Raises:
    OSError, ValueError, RuntimeError: if they cannot be written; tensorstore
      raises a ValueError on a full disk.
  """
  import tensorstore as ts

  directory.mkdir()
  context = ts.Context()  # one for all, because each would have its own files
  with ts.Transaction() as transaction:

    def create(name: str, x: np.ndarray) -> Any:
      return ts.open(
        _spec(directory, name),
        create=True,
        dtype=x.dtype,
        shape=x.shape,
        context=context,
        transaction=transaction,
      )

    stored = {name: x for name, x in leaves.items() if x.size}
    opened = {name: create(name, x) for name, x in stored.items()}
    written = [store.result().write(stored[n]) for n, store in opened.items()]
    for one in written:
      one.result()


def read(
  directory: pathlib.Path,
  record: Mapping[str, Any],
  names: Collection[str] | None = None,
  rows: range | None = None,
) -> Leaves:
  """Read the arrays of a checkpoint, which was verified before.

  Only the parts with the wanted rows are read.

  Args:
    directory: directory of the checkpoint.
    record: its record.
    names: names to read. Default: all.
    rows: consecutive replicas to read. Default: all.

  Returns:
    Arrays by name, `[rows, ...]`, or one value of a leaf that all share.

  Raises:
    OSError, ValueError, RuntimeError: if an array cannot be read.
  """
  rows = range(record['num_replicas']) if rows is None else rows
  chosen = record['leaves'] if names is None else names
  empty = {n: _zeros(record['leaves'][n]) for n in chosen}
  stored = [n for n, x in empty.items() if x.size]
  pieces = [
    _read_part(directory / part.name, stored, rows, part)
    for part in parts_of(record, rows)
  ]
  found = {
    name: pieces[0][name]
    if len(pieces) == 1 or is_shared(name)
    else np.concatenate([piece[name] for piece in pieces])
    for name in stored
  }
  none = {n: x[: len(rows)] for n, x in empty.items() if not x.size}
  return {**found, **none}


def _read_part(
  directory: pathlib.Path, names: Sequence[str], rows: range, part: Part
) -> Leaves:
  """Read the rows of arrays that a part has."""
  import tensorstore as ts

  first, last = max(rows.start, part.start), min(rows.stop, part.stop)
  own = slice(first - part.start, last - part.start)
  context = ts.Context()
  opened = {
    n: ts.open(_spec(directory, n), read=True, context=context) for n in names
  }
  reading = {
    name: (x.result() if is_shared(name) else x.result()[own]).read()
    for name, x in opened.items()
  }
  return {name: np.asarray(x.result()) for name, x in reading.items()}


def _spec(directory: pathlib.Path, name: str) -> dict[str, Any]:
  """Return tensorstore's description of an array, which is also orbax's."""
  base = {'driver': 'file', 'path': f'{directory}/'}
  return {
    'driver': 'zarr',
    'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'},
  }


def _zeros(text: str) -> np.ndarray:
  """Return zeros of a dtype and shape, such as 'float32[8, 3]'."""
  dtype, _, shape = text.partition('[')
  sizes = json.loads(f'[{shape}')
  # Broadcast, because only the shape of most of them is used.
  return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), sizes)

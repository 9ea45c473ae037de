"""The MODEL in a checkpoint, for a new run with another algorithm.

Only parameters and model state are read, so that the two runs may differ in
algorithm, optimizer and number of replicas. The parameters are the state's own,
even if the output of the algorithm differs from them, as with push-sum.
"""

import pathlib
from typing import Any

import jax

from prsgd_jax.base import ArrayTree
from prsgd_jax.engine import checkpoint_arrays, checkpoint_files
from prsgd_jax.engine.checkpoint_files import CheckpointError


def check(path: pathlib.Path, params: ArrayTree, model_state: ArrayTree) -> int:
  """Check that a checkpoint is whole and of the given model.

  Args:
    path: directory of the checkpoint.
    params: parameters of one replica, or their shapes.
    model_state: model state of one replica, or its shapes.

  Returns:
    The number of replicas in the checkpoint.

  Raises:
    CheckpointError: if the checkpoint is damaged or has other leaves or shapes.
  """
  record = checkpoint_files.read_record(path)
  n = record['num_replicas']
  prefixes = ('params', 'model_state')
  found = {
    name: text
    for name, text in record['leaves'].items()
    if name.partition('.')[0] in prefixes
  }
  wanted = {
    name: f'{x.dtype}{[n, *x.shape]}'
    for name, x in _named(params, model_state).items()
  }
  for name in sorted({*found, *wanted}):
    if found.get(name) != wanted.get(name):
      raise CheckpointError(
        f'{path} has {name}: {found.get(name, "nothing")}, this run has '
        f'{wanted.get(name, "nothing")}; it is of another model'
      )
  return n


def read(
  path: pathlib.Path, params: ArrayTree, model_state: ArrayTree
) -> tuple[ArrayTree, ArrayTree]:
  """Read the parameters and model state of all replicas, on the host.

  Args:
    path: directory of the checkpoint.
    params: parameters of one replica, or their shapes.
    model_state: model state of one replica, or its shapes.

  Returns:
    (params, model_state), leaves `[N, ...]` with the N of the checkpoint.

  Raises:
    CheckpointError: if the checkpoint is damaged or has other leaves or shapes.
  """
  check(path, params, model_state)
  names = _named(params, model_state)
  record = checkpoint_files.read_seal(path)
  leaves = checkpoint_arrays.read(path.absolute(), record, names)
  treedef = jax.tree.structure((params, model_state))
  return jax.tree.unflatten(treedef, [leaves[n] for n in names])


def _named(params: ArrayTree, model_state: ArrayTree) -> dict[str, Any]:
  """Return name in a checkpoint -> leaf, in the order of the tree."""
  named: dict[str, Any] = {}
  for prefix, tree in (('params', params), ('model_state', model_state)):
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
      inner = jax.tree_util.keystr(path, simple=True, separator='.')
      named[f'{prefix}.{inner}' if inner else prefix] = leaf
  return named

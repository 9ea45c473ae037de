"""The model in a checkpoint, for a new run with another algorithm.

Only parameters and model state are read, so that the two runs may differ in
their algorithm, optimizer and number of replicas. The parameters are those of
the state; an algorithm whose output differs from them (push-sum) is not asked.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from prsgd_jax.base import ArrayTree
from prsgd_jax.engine import checkpoint_files
from prsgd_jax.engine.checkpoint_files import CheckpointError


def check(path: pathlib.Path, params: ArrayTree, model_state: ArrayTree) -> int:
  """Looks whether a checkpoint is whole and of a model.

  Args:
    path: of the checkpoint.
    params: of one replica, or their shapes.
    model_state: of one replica, or its shapes.

  Returns:
    The number of replicas in it.

  Raises:
    CheckpointError: if it is damaged or has other leaves or shapes.
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
  """Reads the parameters and model state of all replicas, on the host.

  Args:
    path: of the checkpoint.
    params: of one replica, or their shapes.
    model_state: of one replica, or its shapes.

  Returns:
    (params, model_state) with leaves `[N, ...]`, with the checkpoint's N.

  Raises:
    CheckpointError: as `check`.
  """
  import orbax.checkpoint as ocp

  check(path, params, model_state)
  with ocp.StandardCheckpointer() as checkpointer:
    leaves = checkpointer.restore(path.absolute() / 'state')
  names = _named(params, model_state)
  treedef = jax.tree.structure((params, model_state))
  return jax.tree.unflatten(treedef, [np.asarray(leaves[n]) for n in names])


def _named(params: ArrayTree, model_state: ArrayTree) -> dict[str, Any]:
  """The leaves by their names in a checkpoint, in the order of the tree."""
  named: dict[str, Any] = {}
  for prefix, tree in (('params', params), ('model_state', model_state)):
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
      inner = jax.tree_util.keystr(path, simple=True, separator='.')
      named[f'{prefix}.{inner}' if inner else prefix] = leaf
  return named

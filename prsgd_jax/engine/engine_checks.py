"""CHECKS of the arguments of the engine, which name what is wrong with them."""

from typing import Any

import jax

from prsgd_jax.base import ArrayTree, ReplicaTransformation
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.tree_types import describe, is_array, path_name


def check_setting(who: str, mesh: Any, algorithm: Any) -> None:
  """Check the first two arguments of a factory of the engine.

  Args:
    who: name of the factory, for the message.
    mesh: should be a `ReplicaMesh`.
    algorithm: should be a `ReplicaTransformation`.

  Raises:
    ValueError: if they are not a mesh and an algorithm, in this order.
  """
  if not isinstance(mesh, ReplicaMesh) or not isinstance(
    algorithm, ReplicaTransformation
  ):
    raise ValueError(
      f'{who} expects (mesh, algorithm, ...), such as '
      '(pr.engine.ReplicaMesh(8), '
      'pr.k_avg(optax.sgd(0.1), period=4), ...), got '
      f'{describe((mesh, algorithm))}'
    )


def check_arrays(**trees: ArrayTree) -> None:
  """Raise ValueError if a leaf is not an array, or `params` has no leaf."""
  for name, tree in trees.items():
    check_numbers(name, tree, "; pass what a model's init returns")
  if not jax.tree.leaves(trees['params']):
    raise ValueError(
      f'params must have an array at least, got {describe(trees["params"])}'
    )


def check_numbers(name: str, tree: ArrayTree, hint: str = '') -> None:
  """Raise ValueError if a leaf is not an array of numbers or keys.

  Args:
    name: name of the argument, for the message.
    tree: should be a tree of arrays.
    hint: end of the message. Default: none.
  """
  for path, x in jax.tree.flatten_with_path(tree)[0]:
    if not is_array(x):
      raise ValueError(
        f'{name} must be a tree of arrays, got {describe(x)} in '
        f'{path_name(path) or name}{hint}'
      )

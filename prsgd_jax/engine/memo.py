"""MEMO: compiled steps and placed arrays, remembered while they are in use.

They are pure functions of what they were made from, so that remembering them
changes only the time that a call takes. Arrays are recognized by identity: to
compare their numbers would cost as much as to place them.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax

from prsgd_jax.base import ArrayTree, ReplicaTransformation
from prsgd_jax.data.values import Held, Recipe, Resident
from prsgd_jax.engine.batch_statistics import make_reestimate
from prsgd_jax.engine.evaluation import shard_examples
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState
from prsgd_jax.engine.training import (
  LossFn,
  make_resident_train_steps,
  make_train_steps,
)

# What is remembered of each kind, the newest ones.
PROGRAMS = 16
PLACEMENTS = 4

TrainSteps = Callable[..., tuple[TrainState, ArrayTree]]


class Memo(NamedTuple):
  """Steps and arrays of one mesh, algorithm and loss.

  Attributes:
    resident_steps: `recipe -> (state, data, num_steps) -> (state, metrics)`.
    streamed_steps: `() -> (state, batches) -> (state, metrics)`.
    place: arrays -> the same on every device, `[D, ...]`.
    place_examples: (arrays, batch_size) -> as `shard_examples` does.
    refresh: resident data -> the function of `make_reestimate`.
  """

  resident_steps: Callable[[Recipe], TrainSteps]
  streamed_steps: Callable[[], TrainSteps]
  place: Callable[[ArrayTree], ArrayTree]
  place_examples: Callable[[ArrayTree, int], Any]
  refresh: Callable[[Resident], Callable[[Any], Any]]


def make_memo(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, loss_fn: LossFn
) -> Memo:
  """Returns functions that remember the newest of their results.

  Args:
    mesh: where the replicas are.
    algorithm: of the steps.
    loss_fn: of the steps, and of `refresh`.
  """

  @functools.lru_cache(PROGRAMS)
  def resident_steps(recipe: Recipe) -> TrainSteps:
    batch_fn = recipe.make(mesh.num_replicas)
    return make_resident_train_steps(mesh, algorithm, loss_fn, batch_fn)

  @functools.lru_cache(1)
  def streamed_steps() -> TrainSteps:
    return make_train_steps(mesh, algorithm, loss_fn)

  @functools.lru_cache(PLACEMENTS)
  def replicated(*key: Any) -> ArrayTree:
    return mesh.replicate(_from_key(key))

  @functools.lru_cache(PLACEMENTS)
  def cut(batch_size: int, *key: Any) -> Any:
    return shard_examples(mesh, _from_key(key), batch_size)

  @functools.lru_cache(PLACEMENTS)
  def refresh(recipe: Recipe, *key: Any) -> Callable[[Any], Any]:
    placed = replicated(*key)
    return make_reestimate(
      mesh, loss_fn, recipe.make(mesh.num_replicas), placed
    )

  return Memo(
    resident_steps=resident_steps,
    streamed_steps=streamed_steps,
    place=lambda arrays: replicated(*_key(arrays)),
    place_examples=lambda arrays, size: cut(size, *_key(arrays)),
    refresh=lambda data: refresh(data.recipe, *_key(data.arrays)),
  )


def _key(tree: ArrayTree) -> tuple[Any, ...]:
  """A tree as what can be looked up: its structure, and the arrays held."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, *map(Held, leaves)


def _from_key(key: tuple[Any, ...]) -> ArrayTree:
  treedef, *leaves = key
  return jax.tree.unflatten(treedef, [x.value for x in leaves])

"""MEMO: caches of compiled steps and placed arrays.

They are pure functions of their arguments, so the caches change only the time
of a call. Arrays are recognized by identity and by a sample of their numbers,
because comparing all would cost as much as placing them.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.base import ArrayTree, ReplicaTransformation
from prsgd_jax.checks import check_positive_int
from prsgd_jax.data.held import Held
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Recipe, Resident
from prsgd_jax.engine.batch_statistics import make_reestimate
from prsgd_jax.engine.engine_checks import check_numbers
from prsgd_jax.engine.evaluation import shard_examples
from prsgd_jax.engine.prefetching import Flow, make_flow
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState
from prsgd_jax.engine.training import (
  LossFn,
  make_resident_train_steps,
  make_train_steps,
)

# The newest entries that each cache keeps.
PROGRAMS = 16
PLACEMENTS = 4
FLOWS = 2

# Numbers of an array that are compared.
SAMPLE = 4096

TrainSteps = Callable[..., tuple[TrainState, ArrayTree]]


class Memo(NamedTuple):
  """Steps and arrays of one mesh, algorithm and loss.

  Attributes:
    resident_steps: `recipe -> (state, data, num_steps) -> (state, metrics)`.
    streamed_steps: `transform -> (state, batches) -> (state, metrics)`.
    flow: pipeline -> its batches, which are being read.
    place: `arrays -> arrays` copied to every device, `[D, ...]`.
    place_examples: `(arrays, batch_size)` -> result of `shard_examples`.
    refresh: resident data -> result of `make_reestimate` on these data.
  """

  resident_steps: Callable[[Recipe], TrainSteps]
  streamed_steps: Callable[[Transform | None], TrainSteps]
  flow: Callable[[Pipeline], Flow]
  place: Callable[[ArrayTree], ArrayTree]
  place_examples: Callable[[ArrayTree, int], Any]
  refresh: Callable[[Resident], Callable[[Any], Any]]


def make_memo(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, loss_fn: LossFn
) -> Memo:
  """Return functions that cache the newest of their results.

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm of the steps.
    loss_fn: the loss of the steps, and of `refresh`.
  """

  @functools.lru_cache(PROGRAMS)
  def resident_steps(recipe: Recipe) -> TrainSteps:
    batch_fn = recipe.make(mesh.num_replicas)
    return make_resident_train_steps(mesh, algorithm, loss_fn, batch_fn)

  @functools.lru_cache(PROGRAMS)
  def streamed_steps(transform: Held) -> TrainSteps:
    return make_train_steps(mesh, algorithm, loss_fn, transform.value)

  @functools.lru_cache(FLOWS)
  def flow(pipeline: Pipeline) -> Flow:
    return make_flow(mesh, pipeline)

  @functools.lru_cache(PLACEMENTS)
  def replicated(*key: Any) -> ArrayTree:
    arrays = _from_key(key)
    check_numbers('data', arrays)
    return mesh.replicate(arrays)

  @functools.lru_cache(PLACEMENTS)
  def cut(batch_size: int, *key: Any) -> Any:
    return shard_examples(mesh, _from_key(key), batch_size)

  @functools.lru_cache(PROGRAMS)
  def reestimate(recipe: Recipe) -> Callable[[Any, Any], Any]:
    return make_reestimate(mesh, loss_fn, recipe.make(mesh.num_replicas))

  def refresh(data: Resident) -> Callable[[Any], Any]:
    placed = replicated(*_key(data.arrays))
    moved = reestimate(data.recipe)
    return lambda point: moved(point, placed)

  def place_examples(arrays: ArrayTree, batch_size: int) -> Any:
    # Checked here, because a key of the cache takes True for 1.
    batch_size = check_positive_int('batch_size', batch_size)
    return cut(batch_size, *_key(arrays))

  return Memo(
    resident_steps=resident_steps,
    streamed_steps=lambda transform: streamed_steps(Held(transform)),
    flow=flow,
    place=lambda arrays: replicated(*_key(arrays)),
    place_examples=place_examples,
    refresh=refresh,
  )


def _key(tree: ArrayTree) -> tuple[Any, ...]:
  """Return a hashable key: a structure, its arrays' ids, and their samples."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple(map(_sample, leaves)), *map(Held, leaves)


def _sample(x: Any) -> bytes:
  """Return some numbers of an array, which change if all are overwritten."""
  if not isinstance(x, np.ndarray):  # JAX's never change
    return b''
  # Odd, so that it does not meet one column of a table only.
  return x.flat[:: x.size // SAMPLE | 1].tobytes()


def _from_key(key: tuple[Any, ...]) -> ArrayTree:
  treedef, _, *leaves = key
  return jax.tree.unflatten(treedef, [x.value for x in leaves])

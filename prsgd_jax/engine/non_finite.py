"""NON-FINITE VALUES: which replica had the first NaN or infinity, and when.

After an average all replicas are NaN, so the state at the end does not say
where it came from. Here the steps run again, with a check of what each replica
puts into and gets out of its loss.
"""

from collections.abc import Callable
import copy
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Replica,
  ReplicaTransformation,
)
from prsgd_jax.checks import check_num_steps
from prsgd_jax.data.values import check_resident
from prsgd_jax.engine.memo import Memo, make_memo
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.run_state import State, by_step, check_own
from prsgd_jax.engine.training import LossFn
from prsgd_jax.mixing.payload import is_inexact

# Steps in one dispatch.
STEPS = 64
# Metrics of a watched algorithm, in the order in which a step computes them.
METRICS = {
  '.params': 'parameters',
  '.loss': 'loss',
  '.grads': 'gradient',
}


class NonFinite(NamedTuple):
  """The first value of a run that is not finite.

  Attributes:
    what: 'parameters', before the gradient of the step is taken; 'loss'; or
      'gradient'.
    step: the 0-based step.
    replicas: the replicas on which it is not finite, in order. Parameters that
      are not finite on all of them come from an average, or from a step that
      was too large everywhere.
  """

  what: str
  step: int
  replicas: tuple[int, ...]


def watched(algorithm: ReplicaTransformation) -> ReplicaTransformation:
  """Return the algorithm with metrics that say what is not finite.

  Args:
    algorithm: the algorithm. Its results do not change.
  """

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def watch(
      params: ArrayTree, loss: Array, grads: ArrayTree
    ) -> dict[str, Array]:
      return dict(zip(METRICS, map(_is_bad, (params, loss, grads))))

    return algorithm.update(replica, state, context._replace(watch=watch))

  return algorithm._replace(update=update)


def _is_bad(tree: ArrayTree) -> Array:
  """Return int32[V], 1 for each replica whose values are not all finite."""
  leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x)]
  each = [
    ~jnp.isfinite(x).reshape((x.shape[0], -1)).all(axis=1) for x in leaves
  ]
  return jnp.stack(each).any(axis=0).astype(jnp.int32)


def make_find_non_finite(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, loss_fn: LossFn
) -> Callable[[State, Any, int], NonFinite | None]:
  """Make the function that finds the first value that is not finite.

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm to run.
    loss_fn: the loss of one replica.

  Returns:
    `(state, data, num_steps) -> NonFinite`, on resident data; None if all
    values of these steps are finite. The state passed is kept.
  """

  @functools.cache
  def watching() -> Memo:
    # Made when asked for, because it compiles another program.
    return make_memo(mesh, watched(algorithm), loss_fn)

  def find_non_finite(
    state: State, data: Any, num_steps: int
  ) -> NonFinite | None:
    """Run steps again until a value is not finite."""
    check_own('find_non_finite', mesh, state)
    data = check_resident('find_non_finite', data)
    num_steps = check_num_steps(num_steps)
    memo = watching()
    train_steps = memo.resident_steps(data.recipe)
    # Copied, because a run uses up its state.
    own, begin, done = copy.deepcopy(state).on_devices, state.step, 0
    while done < num_steps:
      count = min(STEPS, num_steps - done)
      own, metrics = train_steps(own, memo.place(data.arrays), count)
      metrics = by_step(mesh, metrics)
      found = _first({name: np.asarray(metrics[name]) for name in METRICS})
      if found is not None:
        step, what, replicas = found
        return NonFinite(what, begin + done + step, replicas)
      done += count
    return None

  return find_non_finite


def _first(
  metrics: dict[str, np.ndarray],
) -> tuple[int, str, tuple[int, ...]] | None:
  """Return (step, what, replicas) of the first flag of [steps, N] that is 1."""
  flags = np.stack([*metrics.values()], axis=1)  # [steps, kinds, N]
  hits = np.argwhere(flags.any(axis=2))
  if not len(hits):
    return None
  step, kind = hits[0].tolist()
  replicas = tuple(np.flatnonzero(flags[step, kind]).tolist())
  return step, [*METRICS.values()][kind], replicas

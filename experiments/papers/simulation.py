"""Many small runs at once, of a loss that needs no data.

The toy problems of the papers are functions of the replica, with noise.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

import prsgd_jax as pr
from prsgd_jax.data import values
from prsgd_jax.engine import many_runs
from prsgd_jax.engine.training import StepKeys

# loss(params, step, replica, key) -> scalar, of one replica
LossFn = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def simulate(
  make: Callable[[jax.Array], pr.base.ReplicaTransformation],
  settings: Sequence[float],
  seeds: Sequence[int],
  *,
  loss_fn: LossFn,
  start: Any,
  num_replicas: int,
  num_steps: int,
  observe: Callable[[Any], Any],
  every: int = 1,
  per_replica: bool = False,
) -> Any:
  """Runs an algorithm for every setting and seed.

  Args:
    loss_fn: of one replica; the noise is made of `key`, which differs in each
      step.
    make, settings, seeds, start, num_replicas, num_steps, observe, every,
      per_replica: as of `many_runs.map_runs`.

  Returns:
    What was observed, leaves `[K, S, T / every, ...]`.

  Raises:
    ValueError: if `every` does not divide `num_steps`.
  """

  def own_loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    step, replica = batch
    return loss_fn(params, step, replica, key), (model_state, {})

  return many_runs.map_runs(
    make,
    settings,
    seeds,
    loss_fn=own_loss,
    data=values.drawn((), lambda data, step, replica, key: (step, replica)),
    start=start,
    num_replicas=num_replicas,
    num_steps=num_steps,
    observe=observe,
    every=every,
    per_replica=per_replica,
    keys_fn=_keys,
  )


def _step_and_replica(data: Any, step: Any, replica: Any, key: Any) -> Any:
  """What `loss_fn` is given in place of a batch."""
  del data, key
  return step, replica


def _keys(root: jax.Array, step: jax.Array, index: jax.Array) -> StepKeys:
  """The keys of the results that are kept, which the engine's would change."""
  shared_key, own = jax.random.split(jax.random.fold_in(root, step))
  keys = jax.vmap(functools.partial(jax.random.fold_in, own))(index)
  loss, stage = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return StepKeys(keys, stage, loss, keys, shared_key)

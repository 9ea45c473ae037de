"""Many small runs at once, with a loss that needs no data.

In the toy problems of the papers, the loss is a function of the replica and of
random noise.
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
  """Run an algorithm for every setting and seed.

  Args:
    make, settings, seeds, start, num_replicas, num_steps, observe, every,
      per_replica: as in `many_runs.map_runs`.
    loss_fn: loss of one replica; it makes its noise from `key`, which differs
      in each step.

  Returns:
    The results of `observe`, leaves `[K, S, T / every, ...]`.

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


def _keys(root: jax.Array, step: jax.Array, index: jax.Array) -> StepKeys:
  """Return the keys of the kept results; the engine's would change these."""
  shared_key, own = jax.random.split(jax.random.fold_in(root, step))
  keys = jax.vmap(functools.partial(jax.random.fold_in, own))(index)
  loss, stage = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return StepKeys(keys, stage, loss, keys, shared_key)

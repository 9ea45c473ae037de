"""ITERATE AVERAGES: a mean over time to evaluate, beside the training."""

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
from prsgd_jax.transforms.common import cast_like, widen


def average_iterates(start_step: int) -> ReplicaTransformation:
  """The running mean over steps of what a replica's parameters are here.

  With n = step - start_step + 1 iterates, m <- m + (x - m) / n; before the
  first of them m is x. The replica is left alone: the mean is its `output`,
  what is evaluated. It is kept in float32 or wider. Commonly the last stage of
  a chain, so that it sees the parameters as they are at the end of a step.

  Args:
    start_step: s, the first 0-based step whose parameters count.

  Raises:
    ValueError: if `start_step` is not an integer >= 0.
  """
  is_int = isinstance(start_step, int | np.integer)
  if not is_int or isinstance(start_step, bool) or start_step < 0:
    raise ValueError(f'start_step must be an integer >= 0, got {start_step!r}')

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    return replica, widen(replica.params)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    n = context.step - start_step + 1

    def step(m: Array, x: Array) -> Array:
      mean = m + (x - m) / jnp.maximum(n, 1).astype(m.dtype)
      return jnp.where(n > 1, mean, x)

    return replica, jax.tree.map(step, state, widen(replica.params))

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return replica._replace(params=cast_like(state, replica.params))

  return ReplicaTransformation(update, init, output=output)

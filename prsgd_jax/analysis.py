"""What is measured of the replicas along a run."""

import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax import collectives
from prsgd_jax.base import AXIS_NAME, Array, ArrayTree
from prsgd_jax.mixing import is_inexact, wire_dtype


def consensus_distance(params: ArrayTree) -> Array:
  """(1/N) sum_i |x_i - xbar|^2 over all replicas, inside a mapped function.

  Args:
    params: a block, leaves `[V, ...]`.

  Returns:
    A scalar, the same on every device.
  """
  total = jnp.zeros((), jnp.float32)
  for x in jax.tree.leaves(params):
    if is_inexact(x):
      x = x.astype(wire_dtype(x))
      drift = x - collectives.replica_mean(x)
      total += jnp.square(jnp.abs(drift)).sum() / x.shape[0]
  return lax.pmean(total, AXIS_NAME)

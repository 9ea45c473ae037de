"""Barriers to XLA's fusion of operations."""

import jax
from jax import lax

from prsgd_jax.base import Array


def materialize(x: Array) -> Array:
  """Return `x`, which XLA computes as an array on CPU and fuses no further.

  A convolution reads copies of its input in other orders of axes, one of them
  for the gradient of the kernel. XLA computes all elementwise operations that
  lead to the input again for each copy, pixel by pixel out of order. A copy of
  an array is faster. XLA heeds the barrier after `pr.engine.tune_cpu` only.

  Args:
    x: an array of any shape.

  Example:
    >>> import jax.numpy as jnp
    >>> materialize(jnp.ones(2)).tolist()
    [1.0, 1.0]
  """
  return lax.optimization_barrier(x) if jax.default_backend() == 'cpu' else x

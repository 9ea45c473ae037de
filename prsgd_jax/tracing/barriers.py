"""Barriers to XLA's fusion and order of operations, on CPU."""

from typing import Any

import jax
from jax import lax


def materialize(arrays: Any) -> Any:
  """Return arrays of which none is used before XLA has computed all of them.

  XLA heeds this on CPU after `pr.engine.tune_cpu` only. It then fuses no
  operation before the barrier with one behind it.

  Args:
    arrays: a tree of arrays.

  Example:
    >>> import jax.numpy as jnp
    >>> materialize(jnp.ones(2)).tolist()
    [1.0, 1.0]
  """
  if jax.default_backend() != 'cpu':
    return arrays
  return lax.optimization_barrier(arrays)

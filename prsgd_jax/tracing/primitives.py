"""Primitives of a traced program, by which the engine chooses how to run it."""

from typing import Any

import jax.extend.core


def has_convolution(jaxpr: Any) -> bool:
  """Return whether a program runs one of XLA's convolutions.

  Args:
    jaxpr: the traced program.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> has_convolution(jax.make_jaxpr(jnp.sin)(1.0).jaxpr)
    False
  """
  return 'conv_general_dilated' in _names(jaxpr)


def _names(jaxpr: Any) -> set[str]:
  """Return the names of all primitives, nested ones included."""
  found = set()
  for eqn in jaxpr.eqns:
    found.add(eqn.primitive.name)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      found |= _names(inner)
  return found

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


def written_bytes(jaxpr: Any) -> int:
  """Return the bytes that the operations of a program write, without fusion.

  Args:
    jaxpr: the traced program. A scan counts once for each of its steps, and
      another loop once.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> written_bytes(jax.make_jaxpr(jnp.sin)(1.0).jaxpr)
    4
  """
  total = 0
  for eqn in jaxpr.eqns:
    inner = [*jax.extend.core.jaxprs_in_params(eqn.params)]
    steps = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    if inner:
      total += steps * sum(map(written_bytes, inner))
    else:
      total += sum(array_bytes(x.aval) for x in eqn.outvars)
  return total


def array_bytes(aval: Any) -> int:
  """Return the bytes of an array of this type, 0 for typed keys.

  Args:
    aval: type of an array, with shape and dtype.
  """
  return getattr(aval, 'size', 0) * getattr(aval.dtype, 'itemsize', 0)


def _names(jaxpr: Any) -> set[str]:
  """Return the names of all primitives, nested ones included."""
  found = set()
  for eqn in jaxpr.eqns:
    found.add(eqn.primitive.name)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      found |= _names(inner)
  return found

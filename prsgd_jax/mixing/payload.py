"""The part of a tree that is sent: its floating leaves, in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree

# Anything with a dtype: an array on a device or the host, or only a shape.
AnyArray = Array | np.ndarray | jax.ShapeDtypeStruct


def mix_inexact(
  mix: Callable[[ArrayTree], ArrayTree], tree: ArrayTree
) -> ArrayTree:
  """Apply `mix` to the floating leaves only, in float32 or wider.

  Counters and other integers are not mixed. Half precision is mixed in float32
  and cast back, because otherwise a mean would depend on the placement of the
  replicas on devices.
  """
  leaves, treedef = jax.tree.flatten(tree)
  floats = [i for i, x in enumerate(leaves) if is_inexact(x)]
  mixed = mix([leaves[i].astype(wire_dtype(leaves[i])) for i in floats])
  for i, new in zip(floats, mixed, strict=True):
    leaves[i] = new.astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, leaves)


def payload_bytes(shapes: ArrayTree) -> int:
  """Return the bytes of the leaves that `mix_inexact` mixes, as sent."""
  return sum(
    x.size * wire_dtype(x).itemsize
    for x in jax.tree.leaves(shapes)
    if is_inexact(x)
  )


def widen(tree: ArrayTree) -> ArrayTree:
  """Return the tree with its floating leaves in float32 or wider."""
  return jax.tree.map(
    lambda x: x.astype(wire_dtype(x)) if is_inexact(x) else x, tree
  )


def cast_like(tree: ArrayTree, other: ArrayTree) -> ArrayTree:
  """Return the tree with its leaves in the dtypes of another tree's."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, other
  )


def is_inexact(x: AnyArray) -> bool:
  return jnp.issubdtype(x.dtype, jnp.inexact)


def wire_dtype(x: AnyArray) -> np.dtype:
  # Cast explicitly, because JAX may be configured not to promote types.
  wide = is_inexact(x) and x.dtype.itemsize >= 4
  return np.dtype(x.dtype if wide else np.float32)

"""What of a tree is combined and sent: its floats, in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree

# What has a dtype: on a device, on the host, or described only.
AnyArray = Array | np.ndarray | jax.ShapeDtypeStruct


def mix_inexact(
  mix: Callable[[ArrayTree], ArrayTree], tree: ArrayTree
) -> ArrayTree:
  """Applies `mix` to the floating leaves alone, in float32 or wider.

  Counters and other integers stay each replica's own; half precision is
  combined in float32 and cast back, so that a mean does not depend on how the
  replicas lie on the devices.
  """
  leaves, treedef = jax.tree.flatten(tree)
  floats = [i for i, x in enumerate(leaves) if is_inexact(x)]
  mixed = mix([leaves[i].astype(wire_dtype(leaves[i])) for i in floats])
  for i, new in zip(floats, mixed, strict=True):
    leaves[i] = new.astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, leaves)


def payload_bytes(shapes: ArrayTree) -> int:
  """Bytes of the leaves that `mix_inexact` combines, as they are sent."""
  return sum(
    x.size * wire_dtype(x).itemsize
    for x in jax.tree.leaves(shapes)
    if is_inexact(x)
  )


def widen(tree: ArrayTree) -> ArrayTree:
  """Returns the tree with its floating leaves in float32 or wider."""
  return jax.tree.map(
    lambda x: x.astype(wire_dtype(x)) if is_inexact(x) else x, tree
  )


def cast_like(tree: ArrayTree, other: ArrayTree) -> ArrayTree:
  """Returns the tree with its leaves in the dtypes of another tree's."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, other
  )


def is_inexact(x: AnyArray) -> bool:
  return jnp.issubdtype(x.dtype, jnp.inexact)


def wire_dtype(x: AnyArray) -> np.dtype:
  # By hand, because JAX may be set not to promote types.
  wide = is_inexact(x) and x.dtype.itemsize >= 4
  return np.dtype(x.dtype if wide else np.float32)

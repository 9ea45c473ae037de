"""KEYS: random keys inside the states of optimizers and models.

A noisy optimizer, or a flax nnx model with dropout, keeps a key in its state
and splits it at every step. All replicas start from one copy of that state, so
they would draw equal numbers, and repeat them after each reset. Here the
engine's key is the only source of randomness, as its step is the only clock.
Before such a state is used, its keys are replaced by keys derived from the
engine's key.

A key is a typed key, or a raw one as in old code: a leaf uint32[..., 2] or
uint32[..., 4] whose name contains key, rng or seed, such as `rng_key`.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Defined here, because `base` imports only `names`.
Array = jax.Array
ArrayTree = Any

# Words in the name of a raw key, and the sizes of its data.
WORDS = {'key', 'keys', 'rng', 'rngs', 'seed', 'seeds'}
SIZES = (2, 4)


def is_typed(x: Any) -> bool:
  """Return whether a leaf is a typed key, or an array of them."""
  dtype = getattr(x, 'dtype', None)
  return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def to_data(tree: ArrayTree) -> ArrayTree:
  """Return the tree with its typed keys as their uint32 data."""
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if is_typed(x) else x, tree
  )


def from_data(tree: ArrayTree, like: ArrayTree) -> ArrayTree:
  """Return the tree with key data converted back where `like` has keys."""

  def wrap(x: Array, known: Any) -> Array:
    if not is_typed(known):
      return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(known))

  return jax.tree.map(wrap, tree, like)


def renew(tree: ArrayTree, keys: Array) -> ArrayTree:
  """Replace the keys in a tree.

  Args:
    tree: the state of a block, leaves `[V, ...]`.
    keys: key[V], one per replica, from which a different new key is derived for
      each key of the tree.

  Raises:
    ValueError: if the tree has keys, but `keys` is None.
  """
  leaves, treedef = jax.tree.flatten_with_path(tree)
  renewed, number = [], 0
  for path, x in leaves:
    if is_typed(x) or _is_raw(path, x):
      if keys is None:
        raise ValueError(
          f'{jax.tree_util.keystr(path)} of an optimizer is a random key, but '
          "its stage reads no key; add 'key' and 'shared_key' to the reads of "
          'its names'
        )
      x = _drawn(x, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
      number += 1
    renewed.append(x)
  return jax.tree.unflatten(treedef, renewed)


def _drawn(x: Array, keys: Array) -> Array:
  """Return random keys of the type and shape of `x`."""
  shape = jax.eval_shape(to_data, x).shape[1:]
  bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
  return from_data(bits, x)


def _is_raw(path: tuple, x: Any) -> bool:
  if x.dtype != jnp.uint32 or x.shape[1:][-1:] not in [(n,) for n in SIZES]:
    return False
  last = jax.tree_util.keystr(path[-1:], simple=True)
  return bool(WORDS & set(last.lower().split('_')))

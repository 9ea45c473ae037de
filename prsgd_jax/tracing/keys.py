"""KEYS: random keys inside the states of optimizers and of models.

A noisy optimizer, or a model with dropout of flax nnx, keeps a key in its state
and splits it at every step. All replicas start from one copy of that state, so
they would draw the same numbers, and again after each reset. Here the engine's
key is the only source of randomness, as its step is the only clock: before such
a state is used, its keys are replaced by keys made of the engine's.

A key is a typed one, or a leaf uint32[..., 2] or uint32[..., 4] under a name
with the word key, rng or seed, such as `rng_key`, as old code keeps it.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Not from `base`, which needs `names` only.
Array = jax.Array
ArrayTree = Any

# The words by which a raw key is known, and the sizes of its data.
WORDS = {'key', 'keys', 'rng', 'rngs', 'seed', 'seeds'}
SIZES = (2, 4)


def is_typed(x: Any) -> bool:
  """Returns whether a leaf is a typed key, or an array of them."""
  dtype = getattr(x, 'dtype', None)
  return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def to_data(tree: ArrayTree) -> ArrayTree:
  """Returns the tree with its typed keys as their uint32 data."""
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if is_typed(x) else x, tree
  )


def from_data(tree: ArrayTree, like: ArrayTree) -> ArrayTree:
  """Returns the tree with data made typed keys where `like` has them."""

  def wrap(x: Array, known: Any) -> Array:
    if not is_typed(known):
      return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(known))

  return jax.tree.map(wrap, tree, like)


def renew(tree: ArrayTree, keys: Array) -> ArrayTree:
  """Replaces the keys in a tree.

  Args:
    tree: of a block, every leaf `[V, ...]`.
    keys: key[V], of which each replica's new keys are made, a different one for
      each key of the tree.

  Raises:
    ValueError: if there are keys to replace, but `keys` is None.
  """
  leaves, treedef = jax.tree.flatten_with_path(tree)
  renewed, number = [], 0
  for path, x in leaves:
    if is_typed(x) or _is_raw(path, x):
      if keys is None:
        raise ValueError(
          f'{jax.tree_util.keystr(path)} of an optimizer is a random key, but '
          "the stage around it draws nothing; add 'key' and 'shared_key' to "
          'the reads of its names'
        )
      x = _drawn(x, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
      number += 1
    renewed.append(x)
  return jax.tree.unflatten(treedef, renewed)


def _drawn(x: Array, keys: Array) -> Array:
  """Keys of the type and shape of `x`, whose data are random bits."""
  shape = jax.eval_shape(to_data, x).shape[1:]
  bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
  return from_data(bits, x)


def _is_raw(path: tuple, x: Any) -> bool:
  if x.dtype != jnp.uint32 or x.shape[1:][-1:] not in [(n,) for n in SIZES]:
    return False
  last = jax.tree_util.keystr(path[-1:], simple=True)
  return bool(WORDS & set(last.lower().split('_')))

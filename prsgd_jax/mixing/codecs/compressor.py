"""What a compressor is, and what the compressors share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.mixing.payload import wire_dtype


class Compressor(NamedTuple):
  """Q, in two halves: what is sent, and what the receivers make of it.

  Both are deterministic: what is drawn by chance comes from the sender's key.

  Attributes:
    encode: `(key, tree) -> codes`, a tree of real floating leaves into one of
      small arrays.
    decode: `(codes, shapes) -> tree`, where `shapes` has the shapes and dtypes
      of what was encoded; leaves are float32, or wider where the tree's are.
  """

  encode: Callable[[Array, ArrayTree], ArrayTree]
  decode: Callable[[ArrayTree, ArrayTree], ArrayTree]


class PackedCode(NamedTuple):
  """Small whole numbers, and the floats that give them a scale.

  Attributes:
    planes: uint8[bits, ceil(n / 8)]. Row b has bit b of all entries, so n of
      them take just n bits.
    scale: a float, or a table of them.
  """

  planes: Array
  scale: Array


def coded_bytes(compressor: Compressor, shapes: ArrayTree) -> int:
  """Bytes of the codes of a tree of the given shapes and dtypes."""
  key = jax.random.key(0, impl='threefry2x32')
  codes = jax.eval_shape(lambda tree: compressor.encode(key, tree), shapes)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(codes))


def by_leaf(
  encode_leaf: Callable[[Array, Array], ArrayTree],
  decode_leaf: Callable[[Any, jax.ShapeDtypeStruct], Array],
) -> Compressor:
  """Returns a compressor of trees from one of arrays.

  Args:
    encode_leaf: `(key, x) -> code`, where x is float32 or wider and every leaf
      has its own key.
    decode_leaf: `(code, like) -> x`, where `like` has the shape and dtype of
      what was encoded. The result may have any shape of that size.
  """

  def encode(key: Array, tree: ArrayTree) -> ArrayTree:
    codes = []
    for i, x in enumerate(map(jnp.asarray, jax.tree.leaves(tree))):
      _check_real(x)
      x = x.astype(wire_dtype(x))
      codes.append(encode_leaf(jax.random.fold_in(key, i), x))
    return codes

  def decode(codes: ArrayTree, shapes: ArrayTree) -> ArrayTree:
    leaves, treedef = jax.tree.flatten(shapes)
    tree = []
    for code, x in zip(codes, leaves, strict=True):
      like = jax.ShapeDtypeStruct(x.shape, wire_dtype(x))
      leaf = decode_leaf(code, like)
      tree.append(leaf.reshape(like.shape).astype(like.dtype))
    return jax.tree.unflatten(treedef, tree)

  return Compressor(encode, decode)


def by_vector(
  encode_vector: Callable[[Array, Array], ArrayTree],
  decode_vector: Callable[[Any, jax.ShapeDtypeStruct], Array],
) -> Compressor:
  """Returns a compressor of trees from one of vectors; see `by_leaf`."""

  def encode_leaf(key: Array, x: Array) -> ArrayTree:
    return encode_vector(key, x.ravel())

  def decode_leaf(code: Any, like: jax.ShapeDtypeStruct) -> Array:
    return decode_vector(code, jax.ShapeDtypeStruct((like.size,), like.dtype))

  return by_leaf(encode_leaf, decode_leaf)


def pack(numbers: Array, bits: int) -> Array:
  """Whole numbers [n] below 2^bits -> uint8[bits, ceil(n / 8)]."""
  shifts = jnp.arange(bits, dtype=jnp.uint32)
  planes = numbers.astype(jnp.uint32)[None] >> shifts[:, None] & 1
  return jnp.packbits(planes.astype(jnp.uint8), axis=-1)


def unpack(planes: Array, n: int) -> Array:
  """The inverse of `pack`, uint32[n]."""
  shifts = jnp.arange(planes.shape[0], dtype=jnp.uint32)
  ones = jnp.unpackbits(planes, axis=-1, count=n).astype(jnp.uint32)
  return (ones << shifts[:, None]).sum(axis=0, dtype=jnp.uint32)


def check_compressor(compressor: Any) -> None:
  """Raises ValueError unless it is a compressor."""
  if not isinstance(compressor, Compressor):
    raise ValueError(
      f'compressor expects one such as pr.codecs.top_k(0.1), got {compressor!r}'
    )


def _check_real(x: Array) -> None:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'a compressor takes trees of real floating leaves, got {x.dtype}'
    )

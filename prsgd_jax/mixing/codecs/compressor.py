"""The type of a compressor, and the helpers that all compressors share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.mixing.payload import wire_dtype


class Compressor(NamedTuple):
  """Compressor Q: `encode` at the sender, `decode` at the receivers.

  Both are deterministic, because all random numbers come from the sender's key.

  Attributes:
    encode: `(key, tree) -> codes`, from real floating leaves to small arrays.
    decode: `(codes, shapes) -> tree`. `shapes` has the shapes and dtypes of the
      encoded tree. Leaves are float32, or wider if the encoded leaves are.
  """

  encode: Callable[[Array, ArrayTree], ArrayTree]
  decode: Callable[[ArrayTree, ArrayTree], ArrayTree]


class PackedCode(NamedTuple):
  """Small integers packed into bits, with their scale.

  Attributes:
    planes: uint8[bits, ceil(n / 8)]. Row b holds bit b of all n entries.
    scale: the scale as one float, or as a table of floats.
  """

  planes: Array
  scale: Array


def coded_bytes(compressor: Compressor, shapes: ArrayTree) -> int:
  """Return the bytes of the codes of a tree.

  Args:
    compressor: the compressor.
    shapes: a tree of arrays, or of `jax.ShapeDtypeStruct`.

  Example:
    >>> import jax.numpy as jnp, prsgd_jax as pr
    >>> coded_bytes(pr.codecs.signs(), jnp.zeros(80))  # 80 bits and a float
    14
  """
  key = jax.random.key(0, impl='threefry2x32')
  codes = jax.eval_shape(lambda tree: compressor.encode(key, tree), shapes)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(codes))


def by_leaf(
  encode_leaf: Callable[[Array, Array], ArrayTree],
  decode_leaf: Callable[[Any, jax.ShapeDtypeStruct], Array],
) -> Compressor:
  """Return a compressor of trees, made from a compressor of arrays.

  Args:
    encode_leaf: `(key, x) -> code`. x is float32 or wider; every leaf gets a
      different key.
    decode_leaf: `(code, like) -> x`. `like` has the shape and dtype of the
      encoded leaf. The result may have any shape of equal size.
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
  """Return a compressor of trees, made from a compressor of vectors."""

  def encode_leaf(key: Array, x: Array) -> ArrayTree:
    return encode_vector(key, x.ravel())

  def decode_leaf(code: Any, like: jax.ShapeDtypeStruct) -> Array:
    return decode_vector(code, jax.ShapeDtypeStruct((like.size,), like.dtype))

  return by_leaf(encode_leaf, decode_leaf)


def pack(numbers: Array, bits: int) -> Array:
  """Pack integers [n] below 2^bits into uint8[bits, ceil(n / 8)]."""
  shifts = jnp.arange(bits, dtype=jnp.uint32)
  planes = numbers.astype(jnp.uint32)[None] >> shifts[:, None] & 1
  return jnp.packbits(planes.astype(jnp.uint8), axis=-1)


def unpack(planes: Array, n: int) -> Array:
  """Return the packed integers, uint32[n]; the inverse of `pack`."""
  shifts = jnp.arange(planes.shape[0], dtype=jnp.uint32)
  ones = jnp.unpackbits(planes, axis=-1, count=n).astype(jnp.uint32)
  return (ones << shifts[:, None]).sum(axis=0, dtype=jnp.uint32)


def check_compressor(compressor: Any) -> None:
  """Raise ValueError unless the argument is a compressor."""
  if not isinstance(compressor, Compressor):
    raise ValueError(
      f'expected a compressor such as pr.codecs.top_k(0.1), got {compressor!r}'
    )


def _check_real(x: Array) -> None:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'a compressor expects trees of real floating leaves, got {x.dtype}'
    )

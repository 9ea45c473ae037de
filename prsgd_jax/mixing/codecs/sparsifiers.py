"""Sparsifiers: a few entries travel, with their places."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.checks import check_fraction, check_positive_int
from prsgd_jax.mixing.chunks import grid, join, split
from prsgd_jax.mixing.codecs.compressor import (
  Compressor,
  by_leaf,
  by_vector,
  check_compressor,
  pack,
  unpack,
)


class SparseCode(NamedTuple):
  """The entries kept.

  Attributes:
    values: [k], or their codes.
    places: uint16[k], uint32[k], or packed to the bits that they need.
  """

  values: ArrayTree
  places: Array


class SeededCode(NamedTuple):
  """The entries kept, values [k], and what their places are drawn from again.

  Attributes:
    seed: uint32[2].
  """

  values: Array
  seed: Array


def top_k(fraction: float, values: Compressor | None = None) -> Compressor:
  """The k entries of largest |v_i|, the others 0.

  k is `fraction` of a leaf's n, rounded, and at least 1; of equal entries the
  first are taken. |Q(v) - v|^2 <= (1 - k / n)|v|^2 if the entries are kept as
  they are. An entry kept costs its value and its place, two bytes in leaves of
  up to 65536 entries, else four.

  Args:
    fraction: the share of entries kept, in (0, 1].
    values: a compressor of the entries kept, such as `signs()`; they are kept
      as they are by default.

  Raises:
    ValueError: if an argument is not what it should be.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([1.0, -4.0, 0.5, 2.0])
    >>> q = top_k(0.5)
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [0.0, -4.0, 0.0, 2.0]

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), definition 2.2.
  """
  fraction = check_fraction('fraction', fraction)
  inner = _compressor_of_values(values)

  def encode(key: Array, v: Array) -> SparseCode:
    _, places = lax.top_k(jnp.abs(v), num_kept(fraction, v.size))
    small = jnp.uint16 if v.size <= 2**16 else jnp.uint32
    return SparseCode(inner.encode(key, v[places]), places.astype(small))

  def decode(code: SparseCode, like: jax.ShapeDtypeStruct) -> Array:
    kept = jax.ShapeDtypeStruct(code.places.shape, like.dtype)
    return _scatter(inner.decode(code.values, kept), code.places, like.size)

  return by_vector(encode, decode)


def chunked_top_k(
  num_kept: int = 64, *, chunk: int = 64, values: Compressor | None = None
) -> Compressor:
  """The k entries of largest |v_i| in each chunk of a leaf, the others 0.

  Leaves are cut into chunks of up to 64 x 64 = 4096 entries, see `chunks`. A
  place takes the bits that a chunk needs, 12 for 4096 entries. So a leaf of any
  size is coded at one cost per chunk, and all of its parts send something.

  Args:
    num_kept: k of a chunk, an integer >= 1; smaller chunks are kept whole. 64
      by default.
    chunk: the largest side of a chunk, an integer >= 1; 64 by default.
    values: a compressor of all entries kept in a leaf, such as `bin_means()`;
      they are kept as they are by default.

  Raises:
    ValueError: if an argument is not what it should be.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([1.0, -4.0, 0.5, 0.1])
    >>> q = chunked_top_k(1, chunk=2)
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [0.0, -4.0, 0.5, 0.0]

  Reference:
    The authors' code of SparseLoCo (arXiv 2508.15706), tplr-ai/templar,
    src/tplr/compress.py.
  """
  num_kept = check_positive_int('num_kept', num_kept)
  chunk = check_positive_int('chunk', chunk)
  inner = _compressor_of_values(values)

  def encode(key: Array, x: Array) -> SparseCode:
    number, h, w = grid(x.shape, chunk)
    size = h * w
    rows = split(x, chunk).reshape((number, size))
    _, places = lax.top_k(jnp.abs(rows), min(num_kept, size))
    kept = jnp.take_along_axis(rows, places, axis=1)
    bits = max(1, (size - 1).bit_length())
    return SparseCode(
      inner.encode(key, kept.ravel()), pack(places.ravel(), bits)
    )

  def decode(code: SparseCode, like: jax.ShapeDtypeStruct) -> Array:
    number, h, w = grid(like.shape, chunk)
    k = min(num_kept, h * w)
    kept = jax.ShapeDtypeStruct((number * k,), like.dtype)
    kept_values = inner.decode(code.values, kept).reshape((number, k))
    places = unpack(code.places, number * k).reshape((number, k))
    scatter = jax.vmap(lambda v, p: _scatter(v, p, h * w))
    return join(
      scatter(kept_values, places).reshape((number, h, w)), like.shape
    )

  return by_leaf(encode, decode)


def random_k(fraction: float) -> Compressor:
  """k entries drawn by chance as they are, the others 0.

  k as in `top_k`. E|Q(v) - v|^2 = (1 - k / n)|v|^2; n / k times it would be
  unbiased. The places are not sent but the eight bytes they are drawn from, by
  leaf: the receiver draws them again.

  Args:
    fraction: the share of entries kept, in (0, 1].

  Raises:
    ValueError: if `fraction` is not in (0, 1].

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), definition 2.2.
  """
  fraction = check_fraction('fraction', fraction)

  def encode(key: Array, v: Array) -> SeededCode:
    seed = jax.random.bits(key, (2,), jnp.uint32)
    places = drawn_places(seed, v.size, num_kept(fraction, v.size))
    return SeededCode(v[places], seed)

  def decode(code: SeededCode, like: jax.ShapeDtypeStruct) -> Array:
    places = drawn_places(code.seed, like.size, len(code.values))
    return _scatter(code.values, places, like.size)

  return by_vector(encode, decode)


def drawn_places(seed: Array, n: int, k: int) -> Array:
  """k different places among n, int32[k], from uint32[2]."""
  key = jax.random.wrap_key_data(seed, impl='threefry2x32')
  return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[:k]


def num_kept(fraction: float, n: int) -> int:
  """k of `fraction` of n entries: rounded, and at least 1 if there are any."""
  return min(n, max(1, round(fraction * n)))


def _compressor_of_values(given: Any) -> Compressor:
  if given is None:
    return Compressor(lambda key, v: v, lambda code, shapes: code)
  check_compressor(given)
  return given


def _scatter(values: Array, places: Array, n: int) -> Array:
  return jnp.zeros(n, values.dtype).at[places.astype(jnp.int32)].set(values)

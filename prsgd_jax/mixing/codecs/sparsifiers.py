"""Sparsifiers: compressors that send a few entries and their positions."""

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
  """Code of the kept entries.

  Attributes:
    values: [k], the kept entries, or their codes.
    places: their positions, uint16[k], uint32[k], or packed into bits.
  """

  values: ArrayTree
  places: Array


class SeededCode(NamedTuple):
  """Code of entries at random positions.

  Attributes:
    values: [k], the kept entries.
    seed: uint32[2], from which the receiver draws the positions again.
  """

  values: Array
  seed: Array


def top_k(fraction: float, values: Compressor | None = None) -> Compressor:
  """Return the compressor that keeps the k entries of largest |v_i|.

  All other entries become 0. k is `fraction` of the n entries of a leaf,
  rounded, and at least 1. Among equal entries the first are kept. If the kept
  values are not compressed, |Q(v) - v|^2 <= (1 - k / n)|v|^2. A kept entry
  costs its value and its position: two bytes in leaves of up to 65536 entries,
  otherwise four.

  Args:
    fraction: the fraction of entries to keep, in (0, 1].
    values: a compressor of the kept values, such as `signs()`. Default: none,
      they are sent as floats.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

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
  """Return the compressor that keeps the k largest |v_i| of each chunk.

  All other entries become 0. Leaves are cut into chunks of up to
  64 x 64 = 4096 entries, see `chunks`. A position takes only the bits that the
  chunk size requires, 12 for 4096 entries. So the cost per chunk does not
  depend on the size of the leaf, and every part of a leaf sends something.

  Args:
    num_kept: k, entries to keep in a chunk, >= 1. Smaller chunks are kept
      whole. Default: 64.
    chunk: the largest side of a chunk, an integer >= 1. Default: 64.
    values: a compressor of all kept values of a leaf, such as `bin_means()`.
      Default: none, they are sent as floats.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

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
  """Return the compressor that keeps k random entries.

  All other entries become 0. k is `fraction` of the n entries of a leaf,
  rounded, and at least 1. E|Q(v) - v|^2 = (1 - k / n)|v|^2; multiplied by
  n / k, Q would be unbiased. Each leaf sends a seed of eight bytes in place of
  the positions, which the receiver draws again.

  Args:
    fraction: the fraction of entries to keep, in (0, 1].

  Raises:
    ValueError: if `fraction` is not in (0, 1].

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.arange(1.0, 9.0)
    >>> q = random_k(0.25)
    >>> sent = q.decode(q.encode(jax.random.key(0), v), v)
    >>> int((sent != 0).sum())
    2

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
  """Return k distinct random positions among n, int32[k], from uint32[2]."""
  key = jax.random.wrap_key_data(seed, impl='threefry2x32')
  return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[:k]


def num_kept(fraction: float, n: int) -> int:
  """Return k: `fraction` of n entries, rounded, and at least 1 if n > 0.

  Example:
    >>> num_kept(0.1, 25), num_kept(0.1, 3), num_kept(0.1, 0)
    (2, 1, 0)
  """
  return min(n, max(1, round(fraction * n)))


def _compressor_of_values(given: Any) -> Compressor:
  if given is None:
    return Compressor(lambda key, v: v, lambda code, shapes: code)
  check_compressor(given)
  return given


def _scatter(values: Array, places: Array, n: int) -> Array:
  return jnp.zeros(n, values.dtype).at[places.astype(jnp.int32)].set(values)

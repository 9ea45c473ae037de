"""HOW SMALL: compressors of what one replica sends, Q(v).

A compressor turns a tree into codes, a tree of the arrays that travel, and the
codes into a tree again. It sees one replica's tree (`base.over_block` maps it)
and works leaf by leaf: a norm, a scale or a share of entries is that of a leaf,
a "layer" or "bucket" of the papers. Codes are as small as they are counted:
levels and signs are packed to the bits that they need.

Unbiased, E Q(v) = v: `stochastic_levels` and `ternary`. Contractions,
E|Q(v) - v|^2 <= (1 - delta)|v|^2, for error feedback and CHOCO: `top_k`,
`random_k` and `signs`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax.base import (
  Array,
  ArrayTree,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.payload import wire_dtype

MAX_LEVELS = 2**15 - 1  # 16 bits with the sign


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
  """Small whole numbers times a scale: uint8[bits, ceil(n / 8)], and a float.

  Row b has bit b of all entries, so that n of them take just n bits.
  """

  planes: Array
  scale: Array


class SparseCode(NamedTuple):
  """The entries kept: values [k], and their places uint16[k] or uint32[k]."""

  values: Array
  places: Array


class SeededCode(NamedTuple):
  """The entries kept, values [k], and what their places are drawn from again.

  Attributes:
    seed: uint32[2].
  """

  values: Array
  seed: Array


def coded_bytes(compressor: Compressor, shapes: ArrayTree) -> int:
  """Bytes of the codes of a tree of the given shapes and dtypes."""
  key = jax.random.key(0, impl='threefry2x32')
  codes = jax.eval_shape(lambda tree: compressor.encode(key, tree), shapes)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(codes))


def uncompressed() -> Compressor:
  """Q(v) = v, in float32 or wider."""
  return _by_leaf(lambda key, v: v, lambda code, n: code)


def stochastic_levels(levels: int) -> Compressor:
  """QSGD's quantizer: Q(v)_i = |v| sgn(v_i) xi_i, xi_i in {0, 1/s, ..., 1}.

  With l = floor(s |v_i| / |v|), xi_i is (l + 1) / s with probability
  s |v_i| / |v| - l, else l / s. Unbiased; of an n-vector, E|Q(v) - v|^2 <=
  min(n / s^2, sqrt(n) / s) |v|^2. An entry takes ceil(log2(2 s + 1)) bits; the
  paper goes on to code them at variable lengths, which arrays have not.

  Args:
    levels: s, positive levels.

  Raises:
    ValueError: if `levels` is not an integer in [1, 32767].

  Reference:
    Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, QSGD: communication-efficient
    SGD via gradient quantization and encoding (arXiv 1610.02132), section 3.1.
  """
  levels = check_positive_int('levels', levels)
  if levels > MAX_LEVELS:
    raise ValueError(
      f'levels must be <= {MAX_LEVELS}, got {levels}; use pr.uncompressed()'
    )
  return _levels_of(levels, jnp.linalg.norm)


def ternary() -> Compressor:
  """TernGrad's quantizer: Q(v)_i = s sgn(v_i) b_i, P(b_i = 1) = |v_i| / s.

  s = max|v|. Unbiased, two bits an entry. It is `stochastic_levels(1)` with the
  largest entry for the norm, without the paper's clipping and sharing of s.

  Reference:
    Wen, Xu, Yan, Wu, Wang, Chen, Li 2017, TernGrad: ternary gradients to reduce
    communication in distributed deep learning (arXiv 1705.07878), equation 3.
  """
  return _levels_of(1, lambda v: jnp.abs(v).max(initial=0))


def _levels_of(levels: int, norm: Callable[[Array], Array]) -> Compressor:
  """Stochastic rounding of v / norm(v) to multiples of 1 / levels."""
  bits = (2 * levels).bit_length()

  def encode(key: Array, v: Array) -> PackedCode:
    scale = norm(v)
    share = levels * (jnp.abs(v) / jnp.where(scale > 0, scale, 1))
    below = jnp.floor(share)
    up = jax.random.uniform(key, v.shape, v.dtype) < share - below
    # A lone entry over its own norm can be 1 and a bit.
    level = jnp.minimum(below + up, levels).astype(jnp.int32)
    signed = jnp.where(v < 0, levels - level, levels + level)
    return PackedCode(pack(signed, bits), scale)

  def decode(code: PackedCode, n: int) -> Array:
    level = unpack(code.planes, n).astype(code.scale.dtype) - levels
    return code.scale * (level / levels)

  return _by_leaf(encode, decode)


def signs() -> Compressor:
  """Scaled signs: Q(v) = mean|v| sgn(v), one bit an entry, sgn(0) = 1.

  |Q(v) - v|^2 = |v|^2 - (sum|v_i|)^2 / n: a contraction, not unbiased.

  Reference:
    Karimireddy, Rebjock, Stich, Jaggi 2019, Error feedback fixes signSGD and
    other gradient compression schemes (arXiv 1901.09847), section 4.
  """

  def encode(key: Array, v: Array) -> PackedCode:
    del key
    scale = jnp.abs(v).mean() if v.size else jnp.zeros((), v.dtype)
    return PackedCode(pack(v >= 0, 1), scale)

  def decode(code: PackedCode, n: int) -> Array:
    positive = unpack(code.planes, n) > 0
    return jnp.where(positive, code.scale, -code.scale)

  return _by_leaf(encode, decode)


def bare_signs() -> Compressor:
  """Q(v) = sgn(v) without a scale, one bit an entry, sgn(0) = 1."""

  def decode(planes: Array, n: int) -> Array:
    return jnp.where(unpack(planes, n) > 0, 1.0, -1.0)

  return _by_leaf(lambda key, v: pack(v >= 0, 1), decode)


def top_k(fraction: float) -> Compressor:
  """The k entries of largest |v_i| as they are, the others 0.

  k is `fraction` of a leaf's n, rounded, and at least 1; of equal entries the
  first are taken. |Q(v) - v|^2 <= (1 - k / n)|v|^2. An entry kept costs its
  value and its place, two bytes in leaves of up to 65536 entries, else four.

  Raises:
    ValueError: if `fraction` is not in (0, 1].

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), definition 2.2.
  """
  check_fraction(fraction)

  def encode(key: Array, v: Array) -> SparseCode:
    del key
    _, places = lax.top_k(jnp.abs(v), _num_kept(fraction, v.size))
    small = jnp.uint16 if v.size <= 2**16 else jnp.uint32
    return SparseCode(v[places], places.astype(small))

  def decode(code: SparseCode, n: int) -> Array:
    return _scatter(code.values, code.places, n)

  return _by_leaf(encode, decode)


def random_k(fraction: float) -> Compressor:
  """k entries drawn by chance as they are, the others 0.

  k as in `top_k`. E|Q(v) - v|^2 = (1 - k / n)|v|^2; n / k times it would be
  unbiased. The places are not sent but the eight bytes they are drawn from, by
  leaf: the receiver draws them again.

  Raises:
    ValueError: if `fraction` is not in (0, 1].

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), definition 2.2.
  """
  check_fraction(fraction)

  def encode(key: Array, v: Array) -> SeededCode:
    seed = jax.random.bits(key, (2,), jnp.uint32)
    places = drawn_places(seed, v.size, _num_kept(fraction, v.size))
    return SeededCode(v[places], seed)

  def decode(code: SeededCode, n: int) -> Array:
    return _scatter(
      code.values, drawn_places(code.seed, n, len(code.values)), n
    )

  return _by_leaf(encode, decode)


def drawn_places(seed: Array, n: int, k: int) -> Array:
  """k different places among n, int32[k], from uint32[2]."""
  key = jax.random.wrap_key_data(seed, impl='threefry2x32')
  return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[:k]


def pack(numbers: Array, bits: int) -> Array:
  """Whole numbers [n] below 2^bits -> uint8[bits, ceil(n / 8)]."""
  shifts = jnp.arange(bits, dtype=jnp.uint32)
  planes = numbers.astype(jnp.uint32) >> shifts[:, None] & 1
  return jnp.packbits(planes.astype(jnp.uint8), axis=-1)


def unpack(planes: Array, n: int) -> Array:
  """The inverse of `pack`, uint32[n]."""
  shifts = jnp.arange(planes.shape[0], dtype=jnp.uint32)
  ones = jnp.unpackbits(planes, axis=-1, count=n).astype(jnp.uint32)
  return (ones << shifts[:, None]).sum(axis=0, dtype=jnp.uint32)


def check_compressor(compressor: Any) -> None:
  if not isinstance(compressor, Compressor):
    raise ValueError(
      f'compressor expects one such as pr.top_k(0.1), got {compressor!r}'
    )


def check_fraction(fraction: float) -> None:
  if not 0 < fraction <= 1:
    raise ValueError(f'fraction must be in (0, 1], got {fraction!r}')


def _num_kept(fraction: float, n: int) -> int:
  return min(n, max(1, round(fraction * n)))


def _scatter(values: Array, places: Array, n: int) -> Array:
  return jnp.zeros(n, values.dtype).at[places.astype(jnp.int32)].set(values)


def _by_leaf(
  encode_vector: Callable[[Array, Array], ArrayTree],
  decode_vector: Callable[[Any, int], Array],
) -> Compressor:
  """A compressor of trees from one of vectors; each leaf has its own key."""

  def encode(key: Array, tree: ArrayTree) -> ArrayTree:
    codes = []
    for i, x in enumerate(map(jnp.asarray, jax.tree.leaves(tree))):
      _check_real(x)
      vector = x.astype(wire_dtype(x)).ravel()
      codes.append(encode_vector(jax.random.fold_in(key, i), vector))
    return codes

  def decode(codes: ArrayTree, shapes: ArrayTree) -> ArrayTree:
    leaves, treedef = jax.tree.flatten(shapes)
    tree = [
      decode_vector(code, x.size).reshape(x.shape).astype(wire_dtype(x))
      for code, x in zip(codes, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, tree)

  return Compressor(encode, decode)


def _check_real(x: Array) -> None:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'a compressor takes trees of real floating leaves, got {x.dtype}'
    )

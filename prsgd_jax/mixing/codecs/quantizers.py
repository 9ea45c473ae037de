"""Quantizers: compressors that send every entry in few bits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.checks import check_number, check_positive_int, check_step
from prsgd_jax.mixing.codecs.compressor import (
  Compressor,
  PackedCode,
  by_vector,
  pack,
  unpack,
)

MAX_LEVELS = 2**15 - 1  # 16 bits with the sign


def uncompressed() -> Compressor:
  """Return the identity, Q(v) = v, in float32 or wider.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([1.5, -2.0])
    >>> q = uncompressed()
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [1.5, -2.0]
  """
  return by_vector(lambda key, v: v, lambda code, like: code)


def stochastic_levels(levels: int) -> Compressor:
  """Return QSGD's quantizer, which rounds at random to s levels.

    Q(v)_i = |v| sgn(v_i) xi_i,  xi_i in {0, 1/s, ..., 1}

  With l = floor(s |v_i| / |v|), xi_i is (l + 1) / s with probability
  s |v_i| / |v| - l, else l / s. Q is unbiased. For an n-vector,
  E|Q(v) - v|^2 <= min(n / s^2, sqrt(n) / s) |v|^2. An entry takes
  ceil(log2(2 s + 1)) bits.

  Args:
    levels: s, the number of positive levels, in 1 .. 32767.

  Raises:
    ValueError: if `levels` is not an integer in 1 .. 32767.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([3.0, -4.0])  # |v| = 5: multiples of 1 with s = 5
    >>> q = stochastic_levels(5)
    >>> decoded = q.decode(q.encode(jax.random.key(0), v), v)
    >>> [round(float(x), 3) for x in decoded]
    [3.0, -4.0]

  Differences from the paper:
    The paper adds variable-length coding, which fixed-size arrays do not allow.

  Reference:
    Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, QSGD: communication-efficient
    SGD via gradient quantization and encoding (arXiv 1610.02132), section 3.1.
  """
  levels = check_positive_int('levels', levels)
  if levels > MAX_LEVELS:
    raise ValueError(
      f'levels must be <= {MAX_LEVELS}, got {levels}; use '
      'pr.codecs.uncompressed()'
    )
  return _levels_of(levels, jnp.linalg.norm)


def ternary() -> Compressor:
  """Return TernGrad's quantizer, which rounds at random to -s, 0 or s.

    Q(v)_i = s sgn(v_i) b_i,  P(b_i = 1) = |v_i| / s,  s = max|v|

  Q is unbiased and takes two bits per entry. It is `stochastic_levels(1)` with
  the largest entry in place of the norm.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([2.0, 0.0, -2.0])
    >>> q = ternary()
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [2.0, 0.0, -2.0]

  Differences from the paper:
    The gradient is not clipped, and replicas do not share s.

  Reference:
    Wen, Xu, Yan, Wu, Wang, Chen, Li 2017, TernGrad: ternary gradients to reduce
    communication in distributed deep learning (arXiv 1705.07878), equation 3.
  """
  return _levels_of(1, lambda v: jnp.abs(v).max(initial=0))


def _levels_of(levels: int, norm: Callable[[Array], Array]) -> Compressor:
  """Return the quantizer that rounds v / norm(v) to multiples of 1 / levels."""
  bits = (2 * levels).bit_length()

  def encode(key: Array, v: Array) -> PackedCode:
    scale = norm(v)
    share = levels * (jnp.abs(v) / jnp.where(scale > 0, scale, 1))
    below = jnp.floor(share)
    up = jax.random.uniform(key, v.shape, v.dtype) < share - below
    # Clipped, because rounding errors may make an entry exceed the norm.
    level = jnp.minimum(below + up.astype(v.dtype), levels).astype(jnp.int32)
    signed = jnp.where(v < 0, levels - level, levels + level)
    return PackedCode(pack(signed, bits), scale)

  def decode(code: PackedCode, like: jax.ShapeDtypeStruct) -> Array:
    level = unpack(code.planes, like.size).astype(code.scale.dtype) - levels
    return code.scale * (level / levels)

  return by_vector(encode, decode)


def signs() -> Compressor:
  """Return scaled signs, Q(v) = mean|v| sgn(v) with sgn(0) = 1.

  An entry takes one bit. Q is a contraction, |Q(v) - v|^2 =
  |v|^2 - (sum|v_i|)^2 / n, and not unbiased.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([1.0, -3.0])
    >>> q = signs()
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [2.0, -2.0]

  Reference:
    Karimireddy, Rebjock, Stich, Jaggi 2019, Error feedback fixes signSGD and
    other gradient compression schemes (arXiv 1901.09847), section 4.
  """

  def encode(key: Array, v: Array) -> PackedCode:
    del key
    scale = jnp.abs(v).mean() if v.size else jnp.zeros((), v.dtype)
    return PackedCode(pack(v >= 0, 1), scale)

  def decode(code: PackedCode, like: jax.ShapeDtypeStruct) -> Array:
    positive = unpack(code.planes, like.size) > 0
    return jnp.where(positive, code.scale, -code.scale)

  return by_vector(encode, decode)


def bare_signs() -> Compressor:
  """Return signs without a scale, Q(v) = sgn(v) with sgn(0) = 1.

  An entry takes one bit.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([0.5, -3.0])
    >>> q = bare_signs()
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [1.0, -1.0]
  """

  def decode(planes: Array, like: jax.ShapeDtypeStruct) -> Array:
    return jnp.where(unpack(planes, like.size) > 0, 1.0, -1.0)

  return by_vector(lambda key, v: pack(v >= 0, 1), decode)


def e3m0() -> Compressor:
  """Return 4-bit floats with a sign and three exponent bits.

  Q(v)_i is the nearest of 0 and +-s 2^-e, e = 0 .. 6, with s = max|v| of a
  leaf. It is `small_float(3, 0)`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([8.0, -3.1, 0.3, 0.05])
    >>> codes = e3m0().encode(jax.random.key(0), v)
    >>> e3m0().decode(codes, v).tolist()
    [8.0, -4.0, 0.25, 0.0]

  Reference:
    Douillard et al. 2025, Streaming DiLoCo with overlapping communication
    (arXiv 2501.18512), which sends outer gradients as E3M0 and adds them in
    float32. Not verified in the paper: rounding, scale, and the code of zero.
  """
  return small_float(3, 0)


def small_float(exponent_bits: int, mantissa_bits: int) -> Compressor:
  """Return floats of a few bits, with one scale per leaf.

    Q(v)_i = s sgn(v_i) r(|v_i| / s),  s = max|v|

  r rounds to the nearest number that the bits can express; ties round up. As in
  IEEE 754, the smallest exponent has no leading one, so that zero can be
  expressed. Infinity does not exist, and the largest number is 1. With E and M
  bits the numbers are 2^e (1 + m / 2^M) and 2^e' m / 2^M, multiplied by one
  constant. An entry takes 1 + E + M bits.

  Args:
    exponent_bits: E, bits of the exponent, >= 1.
    mantissa_bits: M, bits of the mantissa, >= 0. E + M is at most 7.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([6.0, 5.2, -0.9])
    >>> q = small_float(2, 1)
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [6.0, 6.0, -1.0]
  """
  check_positive_int('exponent_bits', exponent_bits)
  check_step('mantissa_bits', mantissa_bits)
  if exponent_bits + mantissa_bits > 7:
    raise ValueError(
      'exponent_bits + mantissa_bits must be <= 7, so that a number fits into '
      f'a byte, got {exponent_bits} + {mantissa_bits}'
    )
  table = _magnitudes(exponent_bits, mantissa_bits)
  middles = (table[1:] + table[:-1]) / 2
  bits = exponent_bits + mantissa_bits

  def encode(key: Array, v: Array) -> PackedCode:
    del key
    scale = jnp.abs(v).max(initial=0)
    share = jnp.abs(v) / jnp.where(scale > 0, scale, 1)
    size = jnp.searchsorted(jnp.asarray(middles, v.dtype), share, side='right')
    negative = (v < 0).astype(size.dtype)
    return PackedCode(pack(size + negative * 2**bits, bits + 1), scale)

  def decode(code: PackedCode, like: jax.ShapeDtypeStruct) -> Array:
    number = unpack(code.planes, like.size)
    size = jnp.asarray(table, like.dtype)[number % 2**bits]
    return code.scale * jnp.where(number < 2**bits, size, -size)

  return by_vector(encode, decode)


def _magnitudes(exponent_bits: int, mantissa_bits: int) -> np.ndarray:
  """Return the numbers >= 0 that the bits express, ascending up to 1."""
  exponent, mantissa = np.divmod(
    np.arange(2 ** (exponent_bits + mantissa_bits)), 2**mantissa_bits
  )
  part = mantissa / 2**mantissa_bits
  normal = np.exp2(exponent) * (1 + part)
  table = np.where(exponent > 0, normal, 2 * part)
  return table / table[-1]


def bin_means(bins: int = 4, *, sigmas: float = 6.0) -> Compressor:
  """Return the quantizer that replaces each entry by the mean of its bin.

    b_i = clip(round((v_i - mean v) / w) + bins // 2, 0, bins - 1)
    Q(v)_i = mean of all v_j with b_j = b_i,  w = sigmas std(v) / bins

  std divides by n - 1. An entry takes ceil(log2(bins)) bits, and a leaf also
  sends the means of its bins. Use it for the values that `chunked_top_k` keeps,
  which are far from zero. With an even number of bins, zero is in the middle of
  a bin, so that small values of both signs become one number.

  Args:
    bins: the number of bins, an integer in 2 .. 256. Default: 4.
    sigmas: the width of all bins together, in standard deviations, > 0. The
      outer bins extend to infinity. Default: 6.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> v = jnp.array([-8.0, -7.0, 7.0, 8.0])
    >>> q = bin_means()
    >>> q.decode(q.encode(jax.random.key(0), v), v).tolist()
    [-7.5, -7.5, 7.5, 7.5]

  Reference:
    The authors' code of SparseLoCo (arXiv 2508.15706), tplr-ai/templar,
    src/tplr/compress.py. There a bin takes a byte in memory.
  """
  bins = check_positive_int('bins', bins)
  if not 2 <= bins <= 256:
    raise ValueError(f'bins must be in [2, 256], got {bins}')
  sigmas = check_number('sigmas', sigmas, lambda x: x > 0, '> 0')

  def encode(key: Array, v: Array) -> PackedCode:
    del key
    centered = v - v.sum() / max(v.size, 1)
    std = jnp.sqrt(jnp.square(centered).sum() / max(v.size - 1, 1))
    width = jnp.where(std > 0, sigmas * std / bins, 1)
    bin_of = jnp.round(centered / width) + bins // 2
    bin_of = jnp.clip(bin_of, 0, bins - 1).astype(jnp.int32)
    total = jnp.zeros(bins, v.dtype).at[bin_of].add(v)
    count = jnp.zeros(bins, v.dtype).at[bin_of].add(1)
    means = total / jnp.maximum(count, 1)
    # Propagate NaN through the means, because integers cannot be NaN.
    means = jnp.where(jnp.isfinite(std), means, jnp.nan)
    return PackedCode(pack(bin_of, (bins - 1).bit_length()), means)

  def decode(code: PackedCode, like: jax.ShapeDtypeStruct) -> Array:
    return code.scale[unpack(code.planes, like.size)]

  return by_vector(encode, decode)

"""HOW SMALL: compressors of what one replica sends, Q(v).

A compressor turns a tree into codes, a tree of the arrays that travel, and the
codes into a tree again. It sees one replica's tree (`base.over_block` maps it)
and works leaf by leaf: a norm, a scale or a share of entries is that of a leaf,
a "layer" or "bucket" of the papers. Codes are as small as they are counted:
levels, signs and small floats are packed to the bits that they need.

Unbiased, E Q(v) = v: `stochastic_levels` and `ternary`. Contractions,
E|Q(v) - v|^2 <= (1 - delta)|v|^2, for error feedback and CHOCO: `top_k`,
`chunked_top_k`, `random_k`, `signs`, `bin_means` and `small_float`.
"""

from prsgd_jax.compression.compressor import (
  Compressor,
  PackedCode,
  check_compressor,
  coded_bytes,
  pack,
  unpack,
)
from prsgd_jax.compression.quantizers import (
  bare_signs,
  bin_means,
  e3m0,
  signs,
  small_float,
  stochastic_levels,
  ternary,
  uncompressed,
)
from prsgd_jax.compression.sparsifiers import (
  chunked_top_k,
  drawn_places,
  num_kept,
  random_k,
  top_k,
)

__all__ = (
  'Compressor',
  'PackedCode',
  'bare_signs',
  'bin_means',
  'check_compressor',
  'chunked_top_k',
  'coded_bytes',
  'drawn_places',
  'e3m0',
  'num_kept',
  'pack',
  'random_k',
  'signs',
  'small_float',
  'stochastic_levels',
  'ternary',
  'top_k',
  'uncompressed',
  'unpack',
)

"""HOW SMALL: compressors Q(v) of the values that a replica sends.

A compressor encodes a tree into codes, the arrays that are sent, and decodes
them into a tree. It works on one replica (`base.over_block` maps it) and leaf
by leaf: a norm, a scale or a fraction of entries refers to one leaf, which
papers call a "layer" or "bucket". Codes are as small as the ledger counts them,
because levels, signs and small floats are packed into bits.

Unbiased, E Q(v) = v: `stochastic_levels` and `ternary`. Contractions,
E|Q(v) - v|^2 <= (1 - delta)|v|^2, for error feedback and CHOCO: `top_k`,
`chunked_top_k`, `random_k`, `signs`, `bin_means` and `small_float`.
"""

from prsgd_jax.mixing.codecs.compressor import (
  Compressor,
  coded_bytes,
)
from prsgd_jax.mixing.codecs.compressor import (
  PackedCode as PackedCode,
)
from prsgd_jax.mixing.codecs.compressor import (
  check_compressor as check_compressor,
)
from prsgd_jax.mixing.codecs.compressor import (
  pack as pack,
)
from prsgd_jax.mixing.codecs.compressor import (
  unpack as unpack,
)
from prsgd_jax.mixing.codecs.memory import (
  Codec,
  among_senders,
  difference,
  feedback,
  frequencies,
)
from prsgd_jax.mixing.codecs.memory import (
  as_codec as as_codec,
)
from prsgd_jax.mixing.codecs.quantizers import (
  bare_signs as bare_signs,
)
from prsgd_jax.mixing.codecs.quantizers import (
  bin_means,
  e3m0,
  signs,
  small_float,
  stochastic_levels,
  ternary,
  uncompressed,
)
from prsgd_jax.mixing.codecs.sparsifiers import (
  chunked_top_k,
  random_k,
  top_k,
)
from prsgd_jax.mixing.codecs.sparsifiers import (
  drawn_places as drawn_places,
)
from prsgd_jax.mixing.codecs.sparsifiers import (
  num_kept as num_kept,
)

__all__ = (
  'Codec',
  'Compressor',
  'among_senders',
  'bin_means',
  'chunked_top_k',
  'coded_bytes',
  'difference',
  'e3m0',
  'feedback',
  'frequencies',
  'random_k',
  'signs',
  'small_float',
  'stochastic_levels',
  'ternary',
  'top_k',
  'uncompressed',
)

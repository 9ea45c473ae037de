"""WITH WHOM and in how many bytes: x_i <- sum_j W_ij x_j.

`mixings` has what a mixing is and the plain ones, `graphs` those along the
edges of a graph, `codecs` what is sent in place of a value. `matrices` has
their matrices W in NumPy, `collectives` the primitives that they run on.
"""

from prsgd_jax.mixing.analysis import (
  consensus_distance,
  spectral_gap,
)
from prsgd_jax.mixing.mixings import (
  Message,
  Mixing,
  dense,
  group_mean,
  mean,
  traffic,
  weighted_mean,
)

__all__ = (
  'Message',
  'Mixing',
  'consensus_distance',
  'dense',
  'group_mean',
  'mean',
  'spectral_gap',
  'traffic',
  'weighted_mean',
)

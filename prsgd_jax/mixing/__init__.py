"""WITH WHOM replicas mix, and in how many bytes: x_i <- sum_j W_ij x_j.

`mixings` defines a mixing and the plain ones. `graphs` are mixings along the
edges of a graph. `codecs` compress the values that replicas send. `matrices`
holds the matrices W in NumPy. `collectives` are the primitives on devices.
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

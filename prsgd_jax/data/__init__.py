"""Who gets which examples, and the data sets that need no other library."""

from prsgd_jax.data.datasets import (
  Dataset,
  load_dataset,
)
from prsgd_jax.data.values import drawn, from_shards

__all__ = (
  'Dataset',
  'drawn',
  'from_shards',
  'load_dataset',
)

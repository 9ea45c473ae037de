"""DATA: which examples each replica gets, and the data sets to take them from.

`values` describes the data of a run (shared, sharded, skewed, streamed), which
`pr.trainer` accepts. `samplers` computes the rows of a batch on the
device. `augmentation` changes images there. `datasets` loads arrays by name.
"""

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

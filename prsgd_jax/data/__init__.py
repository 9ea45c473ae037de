"""DATA: which examples each replica gets, and the data sets to take them from.

`values` describes the data of a run (shared, sharded, skewed, streamed), which
`pr.trainer` accepts. `pipelines` describes data that does not fit in memory,
which `reading` reads from `sources` in one of the `orders`. `samplers` computes
the rows of a batch on the device, `gathering` reads them, and `augmentation`
changes images there.
`datasets` loads arrays by name.
"""

from prsgd_jax.data.datasets import (
  Dataset,
  load_dataset,
)
from prsgd_jax.data.samplers import dirichlet_shards
from prsgd_jax.data.sources import DataError
from prsgd_jax.data.values import drawn, from_shards

__all__ = (
  'DataError',
  'Dataset',
  'dirichlet_shards',
  'drawn',
  'from_shards',
  'load_dataset',
)

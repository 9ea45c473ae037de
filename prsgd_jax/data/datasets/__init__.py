"""Data sets in memory or streamed, read through TFDS without tensorflow.

`loading` has `load_dataset`. `storage` finds and reads prepared directories;
`records` reads their examples one by one, and `pixels` their statistics.
`preparing`, `archives` and `stock_builders` make them: they download archives,
unpack them, and write what TFDS itself would write. `texts` and
`optical_digits` are shipped in the package.
"""

from prsgd_jax.data.datasets.loading import (
  DATASETS,
  Dataset,
  DatasetError,
  load_dataset,
)

__all__ = ('DATASETS', 'Dataset', 'DatasetError', 'load_dataset')

"""Datasets as arrays in memory, read through TFDS without tensorflow."""

from prsgd_jax.data.datasets.loading import (
  DATASETS,
  Dataset,
  DatasetError,
  load_dataset,
)

__all__ = ('DATASETS', 'Dataset', 'DatasetError', 'load_dataset')

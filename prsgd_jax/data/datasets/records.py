"""RECORDS: the examples of a prepared TFDS directory, read one by one."""

from collections.abc import Sequence
import functools
import pathlib
from typing import Any

import numpy as np

from prsgd_jax.data.datasets import storage


class Records:
  """A split of labeled images as a source of examples.

  An example is `{'image': uint8[h, w, c], 'label': int32}`. Only a copy of the
  path is sent to a process that reads.

  Args:
    directory: `<data_dir>/<name>/<version>`, of the file format array_record.
    split: name of the split.
    num_examples: number of its examples.
  """

  def __init__(self, directory: pathlib.Path, split: str, num_examples: int):
    self.directory = directory
    self.split = split
    self.num_examples = num_examples

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, row: int) -> dict[str, Any]:
    return self.__getitems__([row])[0]

  def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Read examples at once, which takes half the time of a loop."""
    return [
      {'image': example['image'], 'label': np.int32(example['label'])}
      for example in self._source.__getitems__(rows)
    ]

  @functools.cached_property
  def _source(self) -> Any:
    with storage.without_tfds_logs():
      return storage.open_builder(self.directory).as_data_source(self.split)

  def __getstate__(self) -> dict[str, Any]:
    """Return the state without the open files."""
    return {n: x for n, x in self.__dict__.items() if n != '_source'}

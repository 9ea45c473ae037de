"""OPTICAL DIGITS: a TFDS data set that needs neither network nor tensorflow.

The package holds the test set of the UCI optical recognition of handwritten
digits, compressed: 1797 images, 8x8. It is licensed under CC BY 4.0.
"""

import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from prsgd_jax.data.datasets import storage

# A line for each image: 64 pixels in 0..16, and the label.
_FILE = 'optical_digits.csv.gz'
_SHA256 = '6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8'

_NUM_TEST = 360
_SPLIT_SEED = 0

_DESCRIPTION = """\
Handwritten digits, reduced to 8x8 images of values 0..16: the 1797 images of
the UCI test set. The splits (train: 1437, test: 360)
are a random permutation with a fixed seed. They are not by writer: the same
hands wrote both, so scores do not compare with those on UCI's own splits."""

_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49}
}"""


@functools.cache
def digits_splits() -> dict[str, storage.Split]:
  """Return the splits by name.

  Returns:
    `train` and `test`, each `{'image': uint8[n, 8, 8, 1] in 0..16, 'label':
    int32[n]}`, with n = 1437 and n = 360.

  Raises:
    DatasetError: The file of the package is missing or damaged.
  """
  lines = storage.read_embedded(_FILE, _SHA256).decode().splitlines()
  rows = np.array([line.split(',') for line in lines], np.uint8)
  image = rows[:, :-1].reshape(-1, 8, 8, 1)
  label = rows[:, -1].astype(np.int32)
  # By RandomState, because NumPy may change the stream of default_rng.
  order = np.random.RandomState(_SPLIT_SEED).permutation(len(label))
  test, train = np.split(order, [_NUM_TEST])
  return {
    'train': {'image': image[train], 'label': label[train]},
    'test': {'image': image[test], 'label': label[test]},
  }


class OpticalDigits(tfds.core.GeneratorBasedBuilder):
  """UCI optical digits: uint8[8, 8, 1] in 0..16, ten classes.

  Example:

    preparing.prepare(OpticalDigits, data_dir)
    tfds.data_source('optical_digits', split='train', data_dir=data_dir)

  Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits,
  UCI Machine Learning Repository, 1998.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The 1797 images of UCI.'}  # noqa: RUF012

  def _info(self) -> Any:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          # Not an Image, because PNG is larger than 64 bytes.
          'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://doi.org/10.24432/C50P49',
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {
      name: self._generate_examples(split)
      for name, split in digits_splits().items()
    }

  def _generate_examples(self, split: storage.Split) -> Any:
    for i, (image, label) in enumerate(zip(split['image'], split['label'])):
      yield i, {'image': image, 'label': int(label)}

"""CIFAR-10 averaged down to 16 x 16 pixels, with a crop in proportion.

A step on these images takes a quarter of the time. A packed file of them can be
carried to machines for which the whole data set is too large.
"""

import os
import pathlib
import zipfile

import jax
import numpy as np

from experiments.running.execution import experiment
from experiments.running.execution.parts import Parts
from experiments.running.records import writing
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import Dataset, load_dataset

# Half of the paper's 4 pixels, because the images have half the width.
CROP_PADDING = 2
PACKED = 'cifar10_16.npz'


def load(data_dir: str | None) -> Dataset:
  """Return CIFAR-10 with images uint8[n, 16, 16, 3].

  Args:
    data_dir: directory of the prepared data sets, or of the packed file.
  """
  if (path := packed(data_dir)) is not None:
    return _unpack(path)
  whole = load_dataset('cifar10', data_dir)
  return whole._replace(train=_halved(whole.train), test=_halved(whole.test))


def packed(data_dir: str | None) -> pathlib.Path | None:
  """Return the packed file in a directory, None if there is none."""
  if data_dir is None:
    return None
  path = pathlib.Path(data_dir) / PACKED
  return path if path.exists() else None


def pack(data_dir: str | None, path: pathlib.Path) -> None:
  """Write the small images to a packed file.

  Args:
    data_dir: directory of the prepared data sets.
    path: file to write, named `PACKED` to be found.
  """
  dataset = load(data_dir)
  splits = {'train': dataset.train, 'test': dataset.test}
  with writing.whole(path) as staging, open(staging, 'wb') as file:
    np.savez_compressed(
      file,
      allow_pickle=False,
      **{
        f'{split}_{name}': values
        for split, arrays in splits.items()
        for name, values in arrays.items()
      },
    )


def _unpack(path: pathlib.Path) -> Dataset:
  """Read a packed file.

  Raises:
    ValueError: if it is damaged.
  """
  try:
    with np.load(path) as found:
      train, test = (
        {name: found[f'{split}_{name}'] for name in ('image', 'label')}
        for split in ('train', 'test')
      )
  except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{os.fspath(path)} is damaged ({error}); pack it again by '
      'gpu_benchmark.py --pack'
    ) from error
  return Dataset('cifar10', train, test, num_classes=10)


def _halved(split: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {**split, 'image': halve(split['image'])}


def halve(images: np.ndarray) -> np.ndarray:
  """Return the means of squares of 2 x 2 pixels, rounded.

  Args:
    images: uint8[n, height, width, channels], of even height and width.

  Example:
    >>> halve(np.array([[[[1], [2]], [[3], [4]]]], np.uint8)).tolist()
    [[[[2]]]]
  """
  n, height, width, channels = images.shape
  squares = images.reshape(n, height // 2, 2, width // 2, 2, channels)
  means = squares.astype(np.float32).mean(axis=(2, 4))
  return np.rint(means).astype(np.uint8)


def crop_in_proportion(parts: Parts, dataset: Dataset) -> Parts:
  """Return the parts of a run whose random crops pad by 2 pixels.

  Args:
    parts: the run, whose own crops would pad by 4 pixels.
    dataset: its data.
  """
  config = parts.config
  if config is None or not config.augment:
    return parts
  statistics = augmentation.channel_statistics(dataset.train['image'])

  def augmented(key: jax.Array, batch: dict[str, jax.Array]) -> object:
    crop_key, flip_key = jax.random.split(key)
    image = augmentation.normalize(batch['image'], *statistics)
    image = augmentation.random_crop(crop_key, image, padding=CROP_PADDING)
    return {**batch, 'image': augmentation.random_flip(flip_key, image)}

  return parts._replace(
    data=experiment.build_data(config, dataset, augmented),
    description={**parts.description, 'crop_padding': CROP_PADDING},
  )

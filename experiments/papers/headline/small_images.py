"""CIFAR-10 averaged down to 16 x 16 pixels, with a crop in proportion.

A step on these images takes a quarter of the time.
"""

import jax
import numpy as np

from experiments.running.execution import experiment
from experiments.running.execution.parts import Parts
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import Dataset, load_dataset

# Half of the paper's 4 pixels, because the images have half the width.
CROP_PADDING = 2


def load(data_dir: str | None) -> Dataset:
  """Return CIFAR-10 with images uint8[n, 16, 16, 3].

  Args:
    data_dir: directory of the prepared data sets.
  """
  whole = load_dataset('cifar10', data_dir)
  return whole._replace(train=_halved(whole.train), test=_halved(whole.test))


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

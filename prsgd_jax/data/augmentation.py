"""AUGMENTATION of images on the device: normalization, crops and flips.

Each function takes a batch `[batch, height, width, channels]`. The random ones
take a key first, so they fit into the `transform` of the data.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.data.pipelines import pipeline
from prsgd_jax.data.sources import Source


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return mean and standard deviation of each channel, in pixel units.

  Args:
    images: [n, ..., channels], uint8 or other numbers.

  Returns:
    (mean, std), float32[channels].
  """
  if images.dtype != np.uint8:
    axes = tuple(range(images.ndim - 1))
    return (
      images.mean(axes, np.float64).astype(np.float32),
      images.std(axes, np.float64).astype(np.float32),
    )
  return _of_counts(_channel_counts(images))


def source_statistics(
  source: Source, most: int = 2**16
) -> tuple[np.ndarray, np.ndarray]:
  """Return `channel_statistics` of the images of a source, read in pieces.

  Args:
    source: examples with an `image`, uint8[..., channels] or other numbers.
    most: examples that are read, >= 1; of a larger source, evenly spaced ones.
      Images of another type than uint8 are at most 4096. Default: 2^16.

  Returns:
    (mean, std), float32[channels].

  Raises:
    DataError: if an example cannot be read.

  Example:
    >>> source = [{'image': np.full((2, 2, 1), i, np.uint8)} for i in (10, 30)]
    >>> source_statistics(source)
    (array([20.], dtype=float32), array([10.], dtype=float32))
  """
  data = pipeline(source, batch_size=1)
  rows = np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)
  if data.example()['image'].dtype != np.uint8:
    rows = rows[:: -(-len(rows) // 4096)]
    return channel_statistics(data.read(rows, _places(rows))['image'])
  counts: Any = 0
  for piece in np.array_split(rows, -(-len(rows) // 512)):
    counts += _channel_counts(data.read(piece, _places(piece))['image'])
  return _of_counts(counts)


def _places(rows: np.ndarray) -> np.ndarray:
  return np.zeros((len(rows), 3), int)


def _channel_counts(images: np.ndarray) -> np.ndarray:
  """Return how often each value occurs in uint8 images, [channels, 256].

  A histogram, because it is exact and needs no float copy of the images.
  """
  channels = range(images.shape[-1])
  return np.stack(
    [np.bincount(images[..., c].ravel(), minlength=256) for c in channels]
  )


def _of_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  values = np.arange(256)
  mean, std = [], []
  for count in counts:
    average = (count * values).sum() / count.sum()
    variance = (count * np.square(values - average)).sum() / count.sum()
    mean.append(average)
    std.append(np.sqrt(variance))
  return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def normalize(images: Array, mean: np.ndarray, std: np.ndarray) -> Array:
  """Scale each channel to mean 0 and deviation 1.

  Args:
    images: uint8[..., channels].
    mean: float32[channels], in pixel units.
    std: float32[channels], in pixel units.

  Returns:
    float32[..., channels].

  Example:
    >>> images = np.array([[[10], [30]]], np.uint8)
    >>> normalize(images, *channel_statistics(images)).ravel().tolist()
    [-1.0, 1.0]
  """
  return (images.astype(jnp.float32) - mean) / np.maximum(std, 1e-6)


def random_crop(key: Array, images: Array, padding: int) -> Array:
  """Pad each image with zeros and crop it back at a random place.

  Args:
    key: one key for the batch.
    images: [batch, height, width, channels].
    padding: pixels on each side, >= 0. The papers use 4 on CIFAR.
  """
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(images, sides)
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

  def crop(image: Array, offset: Array) -> Array:
    start = (offset[0], offset[1], 0)
    return lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(padded, offsets)


def random_flip(key: Array, images: Array) -> Array:
  """Mirror each image left to right with probability 1/2.

  Args:
    key: one key for the batch.
    images: [batch, height, width, channels].
  """
  flips = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flips, images[:, :, ::-1], images)

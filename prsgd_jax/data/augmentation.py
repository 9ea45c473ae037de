"""AUGMENTATION of images on the device: normalization, crops and flips.

Each function takes a batch `[batch, height, width, channels]`. The random ones
take a key first, so they fit into the `transform` of the data.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array


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
  # By a histogram, because it is exact and needs no float copy of the images.
  values = np.arange(256)
  mean, std = [], []
  for channel in range(images.shape[-1]):
    count = np.bincount(images[..., channel].ravel(), minlength=256)
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

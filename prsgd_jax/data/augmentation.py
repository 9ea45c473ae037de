"""Images on the device: normalization, padded crops and flips."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, in the units of the pixels.

  Args:
    images: uint8[n, height, width, channels], or numbers of another kind
      [n, ..., channels].

  Returns:
    (mean, std), float32[channels].
  """
  if images.dtype != np.uint8:
    axes = tuple(range(images.ndim - 1))
    return (
      images.mean(axes, np.float64).astype(np.float32),
      images.std(axes, np.float64).astype(np.float32),
    )
  # A histogram is exact and makes no float copy of the images.
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
  """uint8[..., channels] -> float32 of mean 0 and deviation 1 by channel."""
  return (images.astype(jnp.float32) - mean) / np.maximum(std, 1e-6)


def random_crop(key: Array, images: Array, padding: int) -> Array:
  """Pads with zeros by `padding` and crops each image back at random.

  Args:
    key: one key for the batch.
    images: [batch, height, width, channels].
    padding: pixels on each side; the papers' CIFAR recipe has 4.
  """
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(images, sides)
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

  def crop(image: Array, offset: Array) -> Array:
    start = (offset[0], offset[1], 0)
    return lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(padded, offsets)


def random_flip(key: Array, images: Array) -> Array:
  """Mirrors each image left to right with probability 1/2."""
  flips = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flips, images[:, :, ::-1], images)

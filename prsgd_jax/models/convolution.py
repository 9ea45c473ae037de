"""Convolution and pooling of small images, without XLA's convolutions.

On CPU, XLA runs a convolution inside a loop 20 to 40 times slower than outside,
and slowly for few channels. A matrix product has neither fault.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array


class Conv(nn.Module):
  """A two-dimensional convolution with 'SAME' padding, as a matrix product.

  Parameters have the names, shapes and initial values of `flax.linen.Conv`, so
  that one reads the checkpoints of the other. The image is copied once for each
  pixel of the kernel, so this is for small images and few channels.

  Attributes:
    features: number of channels of the result.
    kernel_size: height and width of the kernel, in pixels.
    dtype: type of the arithmetic and of the result.

  Example:
    >>> import jax
    >>> image = jnp.zeros((2, 8, 8, 1))
    >>> conv = Conv(6, (5, 5))
    >>> conv.apply(conv.init(jax.random.key(0), image), image).shape
    (2, 8, 8, 6)
  """

  features: int
  kernel_size: tuple[int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Map [batch, height, width, channels] to [..., features]."""
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.linear.default_kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    rows = patches(x.astype(self.dtype), self.kernel_size)
    weights = kernel.astype(self.dtype).reshape((-1, self.features))
    return rows @ weights + bias.astype(self.dtype)


def patches(x: Array, size: tuple[int, int]) -> Array:
  """Return the neighborhood of every pixel, with zeros outside of the image.

  Args:
    x: [batch, height, width, channels].
    size: height and width of the neighborhood, in pixels.

  Returns:
    [batch, height, width, size[0] * size[1] * channels].

  Example:
    >>> patches(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 3))[0, 0].tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]
  """
  _, height, width, _ = x.shape
  sides = [((n - 1) // 2, n // 2) for n in size]
  x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
  shifted = [
    x[:, i : i + height, j : j + width]
    for i in range(size[0])
    for j in range(size[1])
  ]
  return jnp.concatenate(shifted, axis=-1)


def max_pool(x: Array) -> Array:
  """Return the maximum of each 2x2 square; an odd last row or column is left.

  Args:
    x: [batch, height, width, channels].

  Example:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
  """
  batch, height, width, channels = x.shape
  height, width = height // 2, width // 2
  squares = x[:, : 2 * height, : 2 * width]
  squares = squares.reshape((batch, height, 2, width, 2, channels))
  return squares.max(axis=(2, 4))

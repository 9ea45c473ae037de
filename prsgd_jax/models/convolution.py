"""Convolution and pooling of small images, without XLA's convolutions.

On CPU, XLA runs a convolution inside a loop 20 to 40 times slower than outside,
and slowly for few channels. A matrix product has neither fault.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.tracing.barriers import materialize


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
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    # Rows of few channels are too short for a fast product.
    convolve = by_bands if x.shape[-1] <= 3 else by_patches
    return convolve(x, kernel) + bias.astype(self.dtype)


def by_patches(x: Array, kernel: Array) -> Array:
  """Convolve by a product of the neighborhoods of all pixels with the kernel.

  Args:
    x: [batch, height, width, channels].
    kernel: [kernel height, kernel width, channels, features].

  Returns:
    [batch, height, width, features].

  Example:
    >>> by_patches(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))).sum().item()
    49.0
  """
  height, width = kernel.shape[:2]
  rows = patches(x, (height, width))
  return rows @ kernel.reshape((-1, kernel.shape[-1]))


def by_bands(x: Array, kernel: Array) -> Array:
  """Convolve by a product of lines of the image with a band matrix.

  The matrix maps the lines under the kernel to one line of the result. It has
  zeros for pixels outside of the kernel, so it does more arithmetic than
  `by_patches`, but in longer rows.

  Args:
    x: [batch, height, width, channels].
    kernel: [kernel height, kernel width, channels, features].

  Returns:
    [batch, height, width, features].

  Example:
    >>> by_bands(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))).sum().item()
    49.0
  """
  batch, height, width, channels = x.shape
  lines, size, _, features = kernel.shape
  offset = np.arange(width)[:, None] - np.arange(width) + (size - 1) // 2
  within = jnp.asarray(offset[..., None] == np.arange(size), x.dtype)
  band = jnp.einsum('iok,lkcf->licof', within, kernel)
  band = band.reshape((lines * width * channels, width * features))
  rows = patches(x.reshape((batch, height, 1, width * channels)), (lines, 1))
  return (rows @ band).reshape((batch, height, width, features))


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


@jax.custom_jvp
def max_pool(x: Array) -> Array:
  """Return the maximum of each 2x2 square; an odd last row or column is left.

  The gradient goes to the first of equal pixels, as in `flax.linen.max_pool`.

  Args:
    x: [batch, height, width, channels].

  Example:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
  """
  return _squares(x).max(axis=(2, 4))


def _squares(x: Array) -> Array:
  """Return the 2x2 squares, [batch, height / 2, 2, width / 2, 2, channels]."""
  batch, height, width, channels = x.shape
  height, width = height // 2, width // 2
  x = x[:, : 2 * height, : 2 * width]
  return x.reshape((batch, height, 2, width, 2, channels))


@max_pool.defjvp
def _differentiate_max_pool(
  primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  (x,), (dx,) = primals, tangents
  y = max_pool(x)
  is_max = _squares(x) == y[:, :, None, :, None]
  a, b, c, d = (is_max[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
  first = [[a, b & ~a], [c & ~(a | b), d & ~(a | b | c)]]
  mask = jnp.stack([jnp.stack(row, axis=3) for row in first], axis=2)
  dy = jnp.where(mask, _squares(dx), 0).sum(axis=(2, 4))
  # For the gradient, which is read four times behind a matrix product.
  return y, materialize(dy)

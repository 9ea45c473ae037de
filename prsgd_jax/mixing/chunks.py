"""CHUNKS: arrays cut into small matrices of one size, and their frequencies.

An array is treated as a matrix. A vector is one row. All axes of a tensor but
the last are merged, so that the kernel axes of a convolution join its inputs. A
side of n entries is cut into pieces whose length is the largest divisor of n
within a limit. So all chunks have one size, and nothing is padded.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array


class Grid(NamedTuple):
  """Layout of an array: `number` chunks of `height` x `width`."""

  number: int
  height: int
  width: int


def grid(shape: tuple[int, ...], chunk: int) -> Grid:
  """Return the layout by which `split` cuts an array of a shape.

  Example:
    >>> grid((96, 130), 64)
    Grid(number=10, height=48, width=26)
  """
  rows, columns = matrix_shape(shape)
  h, w = piece(rows, chunk), piece(columns, chunk)
  return Grid(rows // h * (columns // w), h, w)


def split(x: Array, chunk: int) -> Array:
  """Cut an array into chunks, [number of chunks, h, w].

  Args:
    x: an array of any shape.
    chunk: the largest allowed h and w, >= 1.

  Returns:
    The chunks, [number of chunks, h, w].

  Example:
    >>> import jax.numpy as jnp
    >>> split(jnp.zeros((96, 130)), 64).shape
    (10, 48, 26)
  """
  rows, columns = matrix_shape(x.shape)
  number, h, w = grid(x.shape, chunk)
  blocks = x.reshape((rows // h, h, columns // w, w))
  return blocks.transpose((0, 2, 1, 3)).reshape((number, h, w))


def join(chunks: Array, shape: tuple[int, ...]) -> Array:
  """Join chunks into an array of the given shape; the inverse of `split`."""
  rows, columns = matrix_shape(shape)
  _, h, w = chunks.shape
  blocks = chunks.reshape((rows // h, columns // w, h, w))
  return blocks.transpose((0, 2, 1, 3)).reshape(shape)


def to_frequencies(x: Array, chunk: int) -> Array:
  """Return an array with each chunk replaced by its discrete cosine transform.

  The transform is the orthonormal DCT-II along both sides.

  Args:
    x: an array of any shape.
    chunk: the largest allowed side of a chunk, >= 1.

  Returns:
    An array of the shape of x.

  Example:
    >>> import jax.numpy as jnp
    >>> to_frequencies(jnp.ones(4), 64).round(6).tolist()
    [2.0, 0.0, 0.0, 0.0]
  """
  return _transform(x, chunk, cosines)


def from_frequencies(x: Array, chunk: int) -> Array:
  """Return the array with the frequencies x; inverse of `to_frequencies`."""
  return _transform(x, chunk, lambda n: cosines(n).T)


def _transform(
  x: Array, chunk: int, basis: Callable[[int], np.ndarray]
) -> Array:
  chunks = split(x, chunk)
  _, h, w = chunks.shape
  left, right = (jnp.asarray(basis(n), x.dtype) for n in (h, w))
  # Widened, because in half precision the two transforms are not inverse.
  changed = jnp.einsum(
    'ah,chw,bw->cab', left, chunks, right, precision=lax.Precision.HIGHEST
  )
  return join(changed, x.shape)


@functools.cache
def cosines(n: int) -> np.ndarray:
  """Return the orthonormal DCT-II, float64[n, n], one row per frequency."""
  k, j = np.arange(n)[:, None], np.arange(n)[None]
  basis = np.cos(np.pi * k * (2 * j + 1) / (2 * n)) * np.sqrt(2 / n)
  basis[0] /= np.sqrt(2)
  return basis


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """Return the shape of the matrix as which an array is treated.

  Example:
    >>> matrix_shape((3, 3, 16, 32)), matrix_shape((10,)), matrix_shape(())
    ((144, 32), (1, 10), (1, 1))
  """
  return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def piece(n: int, limit: int) -> int:
  """Return the largest divisor of n that is at most `limit`; 1 for n = 0.

  Example:
    >>> piece(128, 64), piece(96, 64), piece(67, 64)
    (64, 48, 1)
  """
  return next((d for d in range(min(n, limit), 0, -1) if n % d == 0), 1)

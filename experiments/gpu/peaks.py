"""The limits of a device, measured: products of matrices, and copies.

The peak is what a large product of square matrices reaches in the same type and
with JAX's default precision, so float32 may use TF32 units. The bandwidth
of the memory is measured by x <- a x on a large array: a read and a write.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class Size(NamedTuple):
  """Sizes of the two measurements.

  Attributes:
    rows: rows and columns of the matrices.
    products: products in one dispatch.
    numbers: numbers of the array that is copied.
    repeats: dispatches; the fastest one counts.
  """

  rows: int
  products: int
  numbers: int
  repeats: int


LARGE = Size(8192, 16, 2**29, 5)
TINY = Size(128, 2, 2**16, 2)


def measure(size: Size) -> dict[str, float]:
  """Return the measured limits.

  Args:
    size: sizes of the measurements.

  Returns:
    `float32` and `bfloat16`, floating-point operations per second, and
    `bandwidth`, bytes per second.
  """
  return {
    'float32': _flops(size, jnp.float32),
    'bfloat16': _flops(size, jnp.bfloat16),
    'bandwidth': _bandwidth(size),
  }


def _flops(size: Size, dtype: Any) -> float:
  n = size.rows

  @jax.jit
  def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    # Scaled, so that the numbers stay finite.
    return lax.fori_loop(0, size.products, lambda _, z: (z @ y) * (1 / n), x)

  x, y = (jnp.ones((n, n), dtype) for _ in range(2))
  return size.products * 2 * n**3 / _fastest(multiply, (x, y), size.repeats)


def _bandwidth(size: Size) -> float:
  scale = jax.jit(functools.partial(jnp.multiply, 0.5))
  x = jnp.ones(size.numbers, jnp.float32)
  return 2 * x.nbytes / _fastest(scale, (x,), size.repeats)


def _fastest(run: Any, arguments: tuple[Any, ...], repeats: int) -> float:
  """Return the seconds of the fastest call after a first one."""
  jax.block_until_ready(run(*arguments))
  seconds = []
  for _ in range(repeats):
    begun = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    seconds.append(time.perf_counter() - begun)
  return min(seconds)

"""BLOCK MAPPING: a function of one replica on all replicas of a device.

Three ways compute the same numbers, up to rounding. 'vmap' makes one program of
batched operations. 'unrolled' repeats the operations for each replica.
'loop' runs one replica after the other, so the program is the smallest.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax.base import Array
from prsgd_jax.tracing.barriers import materialize
from prsgd_jax.tracing.primitives import (
  array_bytes,
  has_convolution,
  written_bytes,
)
from prsgd_jax.tree_types import describe

VMAP, UNROLLED, LOOP = 'vmap', 'unrolled', 'loop'
BLOCKS = (VMAP, UNROLLED, LOOP)

# The largest block that is unrolled by default, because compile time is
# proportional to its size.
MAX_UNROLLED = 128

# A loop copies the arguments and results of every replica, but its arrays stay
# in the cache. By measurements, it is faster for programs that write this many
# bytes, and this many times the bytes of their arguments.
LOOP_BYTES, LOOP_RATIO = 2**24, 32


def check_block(block: Any) -> str | None:
  """Return the way of mapping, None for the fastest known way.

  Args:
    block: 'vmap', 'unrolled', 'loop' or None.

  Raises:
    ValueError: if it is something else.

  Example:
    >>> check_block('loop')
    'loop'
  """
  if block is None or (isinstance(block, str) and block in BLOCKS):
    return block
  raise ValueError(
    f"block must be 'vmap', 'unrolled' or 'loop', got {describe(block)}; leave "
    'it out for the fastest known way'
  )


def choose(platform: str, block_size: int, jaxpr: Any) -> str:
  """Return the fastest known way to map a program over a block.

  On CPU, a program with convolutions is unrolled for up to 128 replicas,
  because XLA runs a convolution slowly if weights are batched or in a loop. A
  program with large intermediate arrays is a loop, because those of one replica
  fit into the cache. All others use vmap. On accelerators it is vmap, not yet
  compared with the others.

  Args:
    platform: the kind of device, such as 'cpu'.
    block_size: V, number of replicas per device.
    jaxpr: the traced program of one replica.

  Example:
    >>> choose('cpu', 8, jax.make_jaxpr(jnp.sin)(1.0).jaxpr)
    'vmap'
  """
  if platform != 'cpu':
    return VMAP
  if has_convolution(jaxpr):
    return UNROLLED if block_size <= MAX_UNROLLED else VMAP
  written = written_bytes(jaxpr)
  arguments = sum(array_bytes(x.aval) for x in jaxpr.invars)
  is_large = written >= LOOP_BYTES and written >= LOOP_RATIO * arguments
  return LOOP if is_large else VMAP


def mapped(
  block: str,
  block_size: int,
  run: Callable[..., Sequence[Array]],
  leaves: Sequence[Array],
) -> Sequence[Array]:
  """Map a function over a block.

  Args:
    block: 'vmap', 'unrolled' or 'loop'. With one replica, all are one call.
    block_size: V, number of replicas per device.
    run: function from arrays of one replica to a list of arrays.
    leaves: its arguments, `[V, ...]`.

  Returns:
    Its results, `[V, ...]`.
  """
  if block == UNROLLED or block_size == 1:
    rows: list[Any] = []
    for i in range(block_size):
      row = [x[i] for x in leaves]
      if rows:
        # One replica after the other, because its arrays stay in the cache.
        row, rows[-1] = materialize((row, list(rows[-1])))
      rows.append(run(*row))
    return [jnp.stack(xs) for xs in zip(*rows, strict=True)]
  if block == LOOP:
    return lax.map(lambda row: run(*row), tuple(leaves))
  return jax.vmap(run)(*leaves)

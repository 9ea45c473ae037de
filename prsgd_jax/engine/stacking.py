"""STACKING: batches of an iterator, many steps in one dispatch.

The stack of a long run may not fit in memory, so it is split into pieces. The
host stacks the next piece while the devices work on the current one.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from prsgd_jax.checks import check_positive_int
from prsgd_jax.data.values import Stream
from prsgd_jax.engine import feeding
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.mixing.chunks import piece

# The bounds of one stack.
MAX_STEPS = 64
MAX_BYTES = 2**28


def stacked(mesh: ReplicaMesh, data: Stream, num_steps: int) -> Iterator[Any]:
  """Stack the next batches into pieces as long as the bounds allow.

  Args:
    mesh: placement of the replicas.
    data: stream of batches; no more than `num_steps` are taken.
    num_steps: number of batches, >= 1.

  Returns:
    An iterator over trees `[D, steps, V, batch, ...]` on the devices.

  Raises:
    ValueError: when the iterator ends too early, or a batch does not fit.

  Example:
    >>> import itertools
    >>> from prsgd_jax.data import values
    >>> mesh = ReplicaMesh(num_replicas=2, num_devices=1)
    >>> data = values.stream(itertools.repeat(np.zeros((2, 16))))
    >>> [x.shape for x in stacked(mesh, data, 80)]
    [(1, 40, 2, 16), (1, 40, 2, 16)]
  """
  num_steps = check_positive_int('num_steps', num_steps)
  batches = _taken(data.iterator, num_steps)
  head = next(batches)
  rest = _after(head, batches)
  size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(head))
  for length in lengths(num_steps, size):
    yield feeding.stack_batches(
      mesh, rest, length, global_batch=data.global_batch
    )


def lengths(num_steps: int, step_bytes: int) -> Iterator[int]:
  """Cut steps into the pieces of one dispatch.

  Args:
    num_steps: number of steps, >= 1.
    step_bytes: bytes of the batches of one step.

  Example:
    >>> list(lengths(80, 1)), list(lengths(3, MAX_BYTES))
    ([40, 40], [1, 1, 1])
  """
  most = min(max(MAX_BYTES // max(step_bytes, 1), 1), MAX_STEPS)
  # Pieces of equal length unless they would be short, because each length
  # compiles another program.
  length = piece(num_steps, most)
  length = length if 2 * length > most else most
  for begun in range(0, num_steps, length):
    yield min(length, num_steps - begun)


def _taken(iterator: Iterator[Any], num_steps: int) -> Iterator[Any]:
  """Yield the next batches of an iterator, and take no more.

  Not by a for loop or `islice`, because those call `iter`, and some loaders
  that are their own iterators start again when it is called.
  """
  for i in range(num_steps):
    try:
      batch = next(iterator)
    except StopIteration:
      raise feeding.ended(num_steps, i) from None
    yield batch


def _after(head: Any, rest: Iterator[Any]) -> Iterator[Any]:
  yield head
  yield from rest

"""READING: the batches of a pipeline, read in advance by grain.

Grain reads chunks of steps by number, in threads or processes, and returns them
in order. The chunk of a step is known, so reading can begin at any step.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import operator
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.checks import MAX_STEPS
from prsgd_jax.data import reading_processes
from prsgd_jax.data.orders import Order
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.sources import DataError
from prsgd_jax.tree_types import difference

# The bounds of a chunk. Small ones, because a run begins with the first one.
CHUNK_STEPS = 16
_CHUNK_BYTES = 2**23
# More steps in advance than the next dispatches take gain nothing.
_MOST_STEPS = 256


# Set when Python exits. It would otherwise wait until threads have read all
# that they were asked to read in advance.
_exiting = threading.Event()


class Sizes(NamedTuple):
  """The units in which a pipeline is read.

  Attributes:
    step_bytes: bytes of the batches of one step.
    chunk: steps that are read at once.
    chunks: chunks that are read in advance, in all.
  """

  step_bytes: int
  chunk: int
  chunks: int


def sizes(pipeline: Pipeline, num_replicas: int) -> Sizes:
  """Return the units in which batches of some replicas are read.

  Args:
    pipeline: the data; its first example is read.
    num_replicas: replicas of this process.

  Raises:
    DataError: if the first example cannot be read.

  Example:
    >>> from prsgd_jax.data.pipelines import pipeline
    >>> data = pipeline(np.zeros((64, 256), np.float32), batch_size=4)
    >>> sizes(data, num_replicas=2)
    Sizes(step_bytes=8192, chunk=16, chunks=16)
  """
  example = jax.tree.leaves(pipeline.example())
  per_step = num_replicas * pipeline.batch_size
  step = per_step * max(sum(x.nbytes for x in example), 1)
  ahead = min(max(pipeline.buffer_bytes // step, 2), _MOST_STEPS)
  chunk = min(max(_CHUNK_BYTES // step, 1), CHUNK_STEPS, max(ahead // 2, 1))
  return Sizes(step, chunk, ahead // chunk)


def open_at(
  pipeline: Pipeline,
  order: Order,
  replicas: range,
  step: int,
  units: Sizes,
) -> Iterator[Any]:
  """Start to read, and return the batches of each step from `step` on.

  Args:
    pipeline: the data.
    order: `pipeline.order` of all replicas.
    replicas: the replicas of this process.
    step: the first step.
    units: the result of `sizes`.

  Returns:
    An iterator over trees of arrays `[R, batch_size, ...]`. Reading ends when
    it is deleted.

  Raises:
    DataError: if grain is not installed. The iterator raises it if an example
      cannot be read or used.
  """
  grain = import_grain()
  read: Callable[[int], Any] = functools.partial(
    read_chunk, pipeline, order, np.array(replicas), units.chunk
  )
  with contextlib.ExitStack() as closing:
    if pipeline.num_processes:
      read = closing.enter_context(
        reading_processes.started(read, pipeline.num_processes)
      )
    threads = min(pipeline.num_processes or pipeline.num_threads, units.chunks)
    begin, skipped = divmod(step, units.chunk)
    chunks = iter(
      grain.MapDataset.range(begin, MAX_STEPS // units.chunk + 1)
      .map(functools.partial(_until_exit, read))
      .to_iter_dataset(grain.ReadOptions(threads, units.chunks))
    )
    closing.callback(chunks.close)
    steps = _steps(chunks, units.chunk, closing.pop_all())
  return itertools.islice(steps, skipped, None)


def _until_exit(read: Callable[[int], Any], number: int) -> Any:
  if _exiting.is_set():
    raise DataError('the program ends, so nothing is read any more')
  return read(number)


def _steps(
  chunks: Iterator[Any], chunk: int, closing: contextlib.ExitStack
) -> Iterator[Any]:
  first = None
  with closing:
    for tree in chunks:
      first = tree if first is None else first
      change = difference(first, tree)
      if change:
        raise DataError(
          f'all examples of a source must be alike, but {change} in a batch'
        )
      for i in range(chunk):
        yield jax.tree.map(operator.itemgetter(i), tree)


def read_chunk(
  pipeline: Pipeline,
  order: Order,
  replicas: np.ndarray,
  chunk: int,
  number: int,
) -> Any:
  """Read the batches of consecutive steps.

  Args:
    pipeline: the data.
    order: `pipeline.order` of all replicas.
    replicas: int[R], the replicas to read for.
    chunk: number of steps.
    number: number of the chunk, 0-based.

  Returns:
    A tree of arrays `[chunk, R, batch_size, ...]`.

  Raises:
    DataError: if an example cannot be read or used.
  """
  steps = np.arange(number * chunk, (number + 1) * chunk)
  rows = order.rows(steps, replicas)
  places = np.stack(
    np.meshgrid(steps, replicas, np.arange(rows.shape[2]), indexing='ij'), -1
  )
  batch = pipeline.read(rows.ravel(), places.reshape(-1, 3))
  return jax.tree.map(lambda x: x.reshape(*rows.shape, *x.shape[1:]), batch)


def import_grain() -> Any:
  """Return `grain`, which is slow to import.

  Raises:
    DataError: if it is not installed.
  """
  try:
    import grain
  except ImportError as error:
    raise DataError(
      f'pipelines need a package that cannot be imported ({error}); run: pip '
      'install grain'
    ) from error
  _watch_exit()
  return grain


@functools.cache
def _watch_exit() -> None:
  # Not by `atexit`, because Python waits for the threads before that. The last
  # function registered is called first, so before that of grain's threads.
  threading._register_atexit(_exiting.set)  # type: ignore[attr-defined]

"""PIPELINES: data that does not fit in memory, as a value.

A pipeline has a source of examples and a recipe for batches, as `values` has
arrays and a recipe. Threads or processes of grain read its batches in advance,
see `reading`. Its batches are those of `pr.shared` and `pr.sharded`, bit for
bit.
"""

from collections.abc import Hashable, Sequence
import dataclasses
from typing import Any

import numpy as np

from prsgd_jax.checks import (
  check_positive_int,
  check_seed,
  check_step,
)
from prsgd_jax.data import orders, samplers, sources
from prsgd_jax.data.held import Held
from prsgd_jax.data.orders import Order
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.sources import ExampleFn, Source
from prsgd_jax.tracing.caller_functions import check_signature
from prsgd_jax.tree_types import describe

PARTITIONS = ('shared', 'sharded')
# The default bound of the batches read in advance.
BUFFER_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """Data that a source supplies; `pipeline` makes it.

  Two are equal if they give the same batches and read them in the same way.

  Attributes:
    source: the examples.
    batch_size: examples per replica and step.
    seed: seed of the order.
    partition: 'shared', 'sharded', or the rows of each replica.
    transform: `(key, batch) -> batch` on the device, None for none.
    example_fn: `(example, generator) -> example` on the host, None for none.
    num_threads: threads that read.
    num_processes: processes that read in place of threads, 0 for none.
    buffer_bytes: bound of the batches read in advance.
  """

  source: Source
  batch_size: int
  seed: int
  partition: str | Sequence[np.ndarray]
  transform: Transform | None
  example_fn: ExampleFn | None
  num_threads: int
  num_processes: int
  buffer_bytes: int

  @property
  def num_examples(self) -> int:
    """Number of examples, n."""
    return len(self.source)

  @property
  def key(self) -> Hashable:
    """The key by which an equal pipeline is recognized."""
    partition: Hashable = self.partition
    if isinstance(self.partition, np.ndarray):
      partition = Held(self.partition)  # one object, because rows are new ones
    elif not isinstance(self.partition, str):
      partition = tuple(map(Held, self.partition))
    functions = Held(self.transform), Held(self.example_fn)
    rest = self.num_threads, self.num_processes, self.buffer_bytes
    examples = sources.identity(self.source)
    return examples, self.batch_size, self.seed, partition, *functions, *rest

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Pipeline) and self.key == other.key

  def __hash__(self) -> int:
    return hash(self.key)

  def __repr__(self) -> str:
    """Return the sizes instead of the source."""
    partition = self.partition
    kind = repr(partition) if isinstance(partition, str) else 'shards'
    return (
      f'pipeline({self.num_examples} examples, batch_size={self.batch_size}, '
      f'seed={self.seed}, partition={kind})'
    )

  def order(self, num_replicas: int) -> Order:
    """Return the rows of each replica's batch.

    Args:
      num_replicas: N.

    Raises:
      ValueError: if the examples are too few for the replicas and the batch, or
        the partition is of another number of replicas.
    """
    n, size = self.num_examples, self.batch_size
    if self.partition == 'shared':
      return orders.shared(n, num_replicas, size, seed=self.seed)
    if self.partition == 'sharded':
      return orders.sharded(n, num_replicas, size, seed=self.seed)
    if len(self.partition) != num_replicas:
      raise ValueError(
        f'partition must have the rows of {num_replicas} replicas, got '
        f'{len(self.partition)} lists'
      )
    shards = [np.asarray(rows) for rows in self.partition]
    return orders.from_shards(shards, size, seed=self.seed)

  def example(self) -> Any:
    """Read the first example, leaves `[1, ...]`.

    Raises:
      DataError: if it cannot be read.
    """
    return self.read(np.zeros(1, int), np.zeros((1, 3), int))

  def read(self, rows: np.ndarray, places: np.ndarray) -> Any:
    """Read examples as they are before `transform`, leaves `[k, ...]`.

    Args:
      rows: int[k], numbers of the examples.
      places: int[k, 3]; step, replica, and position in the batch. With the
        seed, they determine the random numbers of `example_fn`.

    Raises:
      DataError: if an example cannot be read or used; the message names it.
    """

    def generator(k: int) -> np.random.Generator:
      step, replica, position = map(int, places[k])
      # By a counter of 4 words, because other seeds would have to be hashed.
      words = [self.seed << 32 | replica, step << 32 | position]
      return np.random.Generator(np.random.Philox(key=np.array(words, 'u8')))

    return sources.read(self.source, rows, self.example_fn, generator)


def pipeline(
  source: Any,
  *,
  batch_size: int,
  seed: int = 0,
  partition: str | Sequence[np.ndarray] = 'shared',
  transform: Transform | None = None,
  example_fn: ExampleFn | None = None,
  num_threads: int = 4,
  num_processes: int = 0,
  buffer_bytes: int = BUFFER_BYTES,
) -> Pipeline:
  """Give the replicas batches of examples that are read during the run.

  Use it for data that does not fit in memory. Threads or processes of grain
  read the next batches while the devices work. The batches are those of
  `pr.shared` or `pr.sharded`, so training on a pipeline and on the same data in
  memory is bit-identical. They depend on the seed, the step and the replica
  only: a run resumes in the middle of an epoch, on any number of devices and
  processes. Each process of a run reads the examples of its own replicas.

  Args:
    source: the examples, at most 2^31 - 1. An object with `len(source)` and
      `source[i]`, such as a TFDS data source, which returns a tree of arrays
      and numbers; or a tree of arrays `[n, ...]`, such as memory maps. With
      threads, `source[i]` is called from several of them.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the shuffles and of `example_fn`, in 0 .. 2^32 - 1.
      Default: 0.
    partition: 'shared', where all replicas together see every example once in
      an epoch; 'sharded', where each replica has its own part of the examples,
      dealt out at random; or N lists of rows, int[n_i], the part of each
      replica. Default: 'shared'.
    transform: `(key, batch) -> batch`, such as an augmentation, applied to each
      replica's batch on the device, as in `pr.shared`. Default: none.
    example_fn: `(example, generator) -> example`, such as decoding or
      augmentation in NumPy, applied on the host. The NumPy generator depends on
      the seed, step, replica and position in the batch. Default: none.
    num_threads: threads that read, >= 1; they suffice if reading releases
      Python's lock, as files, NumPy and most decoders do. Default: 4.
    num_processes: processes that read in place of the threads, >= 0. The
      source is copied to each, so it should open its files when it is read. The
      program needs `if __name__ == '__main__':`. Default: 0, for threads.
    buffer_bytes: bound of the batches read in advance, in bytes; at least two
      steps are. Default: 2^28.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if an argument is not as described. `Trainer.run` raises it if
      the examples are too few for the replicas, and DataError, a ValueError, if
      an example cannot be read.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> source = [{'x': np.full(3, i)} for i in range(100)]
    >>> pr.pipeline(source, batch_size=4)
    pipeline(100 examples, batch_size=4, seed=0, partition='shared')
  """
  found = sources.as_source(source)
  if len(found) > orders.MAX_EXAMPLES:
    raise ValueError(
      f'pipeline expects at most 2^31 - 1 examples, got {len(found)}'
    )
  batch_size = check_positive_int('batch_size', batch_size)
  _check_partition(partition, len(found), batch_size)
  if transform is not None:
    check_signature('transform(key, batch)', transform)
  if example_fn is not None:
    check_signature('example_fn(example, generator)', example_fn)
  return Pipeline(
    source=found,
    batch_size=batch_size,
    seed=check_seed('seed', seed),
    partition=partition,
    transform=transform,
    example_fn=example_fn,
    num_threads=check_positive_int('num_threads', num_threads),
    num_processes=check_step('num_processes', num_processes),
    buffer_bytes=check_positive_int('buffer_bytes', buffer_bytes),
  )


def _check_partition(
  partition: Any, num_examples: int, batch_size: int
) -> None:
  if isinstance(partition, str):
    if partition not in PARTITIONS:
      raise ValueError(
        f'partition must be {" or ".join(map(repr, PARTITIONS))}, or the rows '
        f'of each replica, got {partition!r}'
      )
    return
  try:
    shards = [np.atleast_1d(np.asarray(rows)) for rows in partition]
  except (TypeError, ValueError):
    shards = []
  if not shards:
    raise ValueError(
      'partition expects one list of rows for each replica, int[n_i], got '
      f'{describe(partition)}'
    )
  samplers.check_shard_sizes(np.array(list(map(len, shards))), batch_size)
  for replica, shard in enumerate(shards):
    samplers.check_shard(shard, replica, num_examples)

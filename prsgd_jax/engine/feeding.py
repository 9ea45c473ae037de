"""FEEDING: batches on the devices, gathered there or copied from the host."""

from collections.abc import Iterator
import itertools
import operator
from typing import Any

import jax
import numpy as np

from prsgd_jax.checks import check_positive_int
from prsgd_jax.data.gathering import gather
from prsgd_jax.data.samplers import BatchFn, Sampler, Transform
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.tree_types import describe, difference, is_array


def make_batch_fn(
  mesh: ReplicaMesh, sampler: Sampler, transform: Transform | None = None
) -> BatchFn:
  """Make the `batch_fn` of `training.make_resident_train_steps`.

  Args:
    mesh: placement of the replicas.
    sampler: function that chooses the rows of a replica at a step.
    transform: `(key, batch) -> batch`, such as augmentation. Default: none.

  Returns:
    `(data, step, replica, key) -> batch`, the rows of every leaf of `data`.

  Raises:
    ValueError: if the arguments are not a mesh and a sampler, or the sampler is
      of another number of replicas. The result raises it if the data has
      another number of examples.
  """
  if not isinstance(mesh, ReplicaMesh) or not isinstance(sampler, Sampler):
    raise ValueError(
      'make_batch_fn expects (mesh, sampler), such as that of '
      'samplers.shared(...), got '
      f'{describe((mesh, sampler))}'
    )
  return gather(sampler, mesh.num_replicas, transform)


def stack_batches(
  mesh: ReplicaMesh,
  batches: Iterator[Any],
  num_steps: int,
  *,
  global_batch: bool = False,
) -> Any:
  """Take the next batches from an iterator and place them on the devices.

  With several processes, each passes the batches of all replicas.

  Args:
    mesh: placement of the replicas.
    batches: iterator over host batches of one step each, leaves `[N, batch,
      ...]`. Create it once, before the loop. If a loader ends after an epoch,
      wrap it in a generator that starts it again.
    num_steps: number of steps to take, >= 1.
    global_batch: whether leaves are `[N * batch, ...]`, the batches of all
      replicas concatenated, as most loaders return them. Default: False.

  Returns:
    A tree of `[D, steps, V, batch, ...]` for `training.make_train_steps`.

  Raises:
    ValueError: if `batches` is not an iterator, or ends too early; if the
      batches differ in structure or shape, or cannot be split among the N
      replicas.

  Example:
    >>> import prsgd_jax as pr
    >>> mesh = pr.engine.ReplicaMesh(num_replicas=2, num_devices=1)
    >>> loader = [np.arange(6), np.arange(6, 12)]  # starts again if iterated
    >>> def epochs():
    ...   while True:
    ...     yield from loader
    >>> stream = epochs()
    >>> pr.engine.stack_batches(mesh, stream, 3, global_batch=True).shape
    (1, 3, 2, 3)
  """
  num_steps = check_positive_int('num_steps', num_steps)
  blocks = (len(mesh.local_devices), mesh.block_size)
  own = mesh.local_replicas

  def cut(x: np.ndarray) -> np.ndarray:
    x = x[:, own.start : own.stop]
    x = x.reshape((num_steps, *blocks, *x.shape[2:]))
    return np.moveaxis(x, 1, 0)

  rows = (
    _of_replicas(mesh.num_replicas, batch, global_batch)
    for batch in _take(batches, num_steps)
  )
  return mesh.place_per_device(jax.tree.map(cut, _stack(rows, num_steps)))


def _stack(batches: Iterator[Any], num_steps: int) -> Any:
  """Copy each batch at once, because a loader may reuse its memory."""
  first = next(batches)
  stacked = jax.tree.map(
    lambda x: np.empty((num_steps, *x.shape), x.dtype), first
  )
  types = jax.tree.map(operator.itemgetter(0), stacked)
  for i, batch in enumerate(itertools.chain([first], batches)):
    _check_alike(types, batch)
    for into, x in zip(*map(jax.tree.leaves, (stacked, batch)), strict=True):
      into[i] = x
  return stacked


def _take(batches: Any, num_steps: int) -> Iterator[Any]:
  if not isinstance(batches, Iterator):
    raise ValueError(
      f'batches must be an iterator, got {describe(batches)}, which would be '
      'read from its start at every call; make one by iter(...), once, before '
      'the loop'
    )
  for i in range(num_steps):
    # Not by a for loop or islice, because those call iter, and some loaders
    # that are their own iterators start again when it is called.
    try:
      batch = next(batches)
    except StopIteration:
      raise ended(num_steps, i) from None
    yield batch


def ended(num_steps: int, i: int) -> ValueError:
  """Return the error of an iterator that ended after i batches.

  Args:
    num_steps: number of batches expected.
    i: number of batches that came.
  """
  return ValueError(
    f'expected {num_steps} more batches, the iterator ended after {i}, which '
    'are lost; pass a generator that starts the loader again for each epoch: '
    'while True: yield from loader'
  )


def _check_alike(first: Any, batch: Any) -> None:
  change = difference(first, batch)
  if change:
    raise ValueError(
      f'all batches must have the same structure and shapes, but {change}; '
      'drop the last, smaller batch of an epoch (drop_last or '
      'drop_remainder=True)'
    )


def _of_replicas(n: int, batch: Any, global_batch: bool) -> Any:
  """Return a batch with leaves `[N, batch, ...]`."""

  def split(x: Any) -> np.ndarray:
    x = np.asarray(x)
    if not is_array(x):
      raise ValueError(f'a batch must be of numbers, got {describe(x)}')
    if not global_batch:
      if x.shape[:1] != (n,):
        raise ValueError(
          f'a batch must have a leading axis of {n} replicas, got an array of '
          f'shape {x.shape}; for batches of all replicas [N * batch, ...] pass '
          'global_batch=True'
        )
      return x
    if not x.shape or not x.shape[0] or x.shape[0] % n:
      raise ValueError(
        f'a batch of all replicas must have a multiple of {n} examples, got an '
        f'array of shape {x.shape}; drop the last, smaller batch of an epoch '
        '(drop_last or drop_remainder=True)'
      )
    return x.reshape((n, x.shape[0] // n, *x.shape[1:]))

  if not jax.tree.leaves(batch):
    raise ValueError(f'a batch must have an array, got {describe(batch)}')
  return jax.tree.map(split, batch)

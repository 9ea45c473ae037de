"""GATHERING: the batches of a sampler, read from data on the devices."""

from typing import Any

import jax

from prsgd_jax.base import Array
from prsgd_jax.data.samplers import BatchFn, Sampler, Transform
from prsgd_jax.tree_types import describe


class Gather:
  """The `batch_fn` of a sampler, in two parts.

  The rows of many steps can be computed together, faster than one by one.

  Args:
    sampler: function that chooses the rows of a replica at a step.
    transform: `(key, batch) -> batch`, such as augmentation. Default: none.
  """

  def __init__(self, sampler: Sampler, transform: Transform | None = None):
    self.sampler, self.transform = sampler, transform

  def rows(self, step: Array, replica: Array) -> Array:
    """Return the rows of a replica's batch, int32[batch_size]."""
    return self.sampler.rows(step, replica)

  def read(self, data: Any, rows: Array, key: Array) -> Any:
    """Return these rows of every leaf of the data, transformed.

    Raises:
      ValueError: if the data have another number of examples.
    """
    for x in jax.tree.leaves(data):
      if x.shape[:1] != (self.sampler.num_examples,):
        raise ValueError(
          f'the sampler is of {self.sampler.num_examples} examples, got data '
          f'of {x.shape[0] if x.shape else describe(x)}'
        )
    batch = jax.tree.map(lambda x: x[rows], data)
    return batch if self.transform is None else self.transform(key, batch)

  def __call__(self, data: Any, step: Array, replica: Array, key: Array) -> Any:
    """Return a replica's batch of a step."""
    return self.read(data, self.rows(step, replica), key)


def gather(
  sampler: Sampler, num_replicas: int, transform: Transform | None = None
) -> BatchFn:
  """Return the function that gathers the rows of a replica's batch.

  Args:
    sampler: function that chooses the rows of a replica at a step.
    num_replicas: N.
    transform: `(key, batch) -> batch`, such as augmentation. Default: none.

  Returns:
    `(data, step, replica, key) -> batch`, the rows of every leaf of `data`.

  Raises:
    ValueError: if the sampler has another number of replicas. The result raises
      it if the data have another number of examples.
  """
  if sampler.num_replicas != num_replicas:
    raise ValueError(
      f'the sampler must be of the {num_replicas} replicas of the mesh, got '
      f'one of {sampler.num_replicas}'
    )

  return Gather(sampler, transform)

"""Many runs of a small network on the digits, over a grid of settings."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import classifying
from experiments.papers.simulation import simulate
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data.datasets import Dataset

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 16, 32
# The loss of equal probabilities for ten classes. A larger loss, or none,
# counts as this one, because a mean needs finite numbers.
GUESSING = float(np.log(10))


def problem(
  dataset: Dataset, shards: Sequence[np.ndarray] | None = None
) -> classifying.Problem:
  """Return the problem of an MLP 64-32-10 on the digits.

  Args:
    dataset: the digits.
    shards: rows of the examples of each replica. Default: all examples.
  """
  model = models.MLP(dataset.num_classes, hidden=(HIDDEN,))
  return classifying.problem(
    model, dataset, batch_size=BATCH_SIZE, shards=shards
  )


def final_losses(
  own: classifying.Problem,
  make: Callable[..., pr.base.ReplicaTransformation],
  grid: Mapping[str, Sequence[float]],
  seeds: Sequence[int],
  num_steps: int,
) -> np.ndarray:
  """Train by every setting of a grid in one program.

  Args:
    own: the problem.
    make: function of one value of each axis, as keyword arguments, that returns
      an algorithm.
    grid: values by the name of the axis.
    seeds: seeds of the starts and the examples.
    num_steps: length of a run in steps.

  Returns:
    Training loss of the average after the last step, `[*axes, seeds]`.
  """
  axes = np.meshgrid(*grid.values(), indexing='ij')
  flat = {k: jnp.asarray(x.ravel()) for k, x in zip(grid, axes, strict=True)}

  def of_place(place: jax.Array) -> pr.base.ReplicaTransformation:
    return make(**{k: x[place.astype(int)] for k, x in flat.items()})

  found = simulate(
    of_place,
    range(axes[0].size),
    seeds,
    loss_fn=own.loss_fn,
    start=own.start,
    num_replicas=NUM_REPLICAS,
    num_steps=num_steps,
    observe=lambda params: own.observe(params)['loss'],
    every=num_steps,
  )[:, :, 0]
  finite = np.nan_to_num(found, nan=GUESSING, posinf=GUESSING)
  return np.minimum(finite, GUESSING).reshape(*axes[0].shape, len(seeds))

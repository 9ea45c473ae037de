"""Many runs of a small network on the digits, over a grid of settings."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.gallery import grids
from experiments.papers import classifying
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
  return grids.final_losses(
    make,
    grid,
    seeds,
    loss_fn=own.loss_fn,
    start=own.start,
    observe=lambda params: own.observe(params)['loss'],
    num_replicas=NUM_REPLICAS,
    num_steps=num_steps,
    ceiling=GUESSING,
  )

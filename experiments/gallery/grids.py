"""Final losses over a grid of settings and seeds, in one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.simulation import LossFn, simulate
import prsgd_jax as pr


def final_losses(
  make: Callable[..., pr.base.ReplicaTransformation],
  grid: Mapping[str, Sequence[float]],
  seeds: Sequence[int],
  *,
  loss_fn: LossFn,
  start: Any,
  observe: Callable[[Any], jax.Array],
  num_replicas: int,
  num_steps: int,
  ceiling: float,
) -> np.ndarray:
  """Train by every setting of a grid in one program.

  Args:
    make: function of one value of each axis, as keyword arguments, that returns
      an algorithm.
    grid: values by the name of the axis.
    seeds: seeds of the starts and the examples.
    loss_fn: loss of one replica, as in `simulate`.
    start: parameters at the start, as in `simulate`.
    observe: function of the parameters of all replicas that returns a loss.
    num_replicas: N, >= 1.
    num_steps: length of a run in steps.
    ceiling: the loss that a larger loss, or none, counts as.

  Returns:
    The observed loss after the last step, `[*axes, seeds]`.
  """
  axes = np.meshgrid(*grid.values(), indexing='ij')
  flat = {k: jnp.asarray(x.ravel()) for k, x in zip(grid, axes, strict=True)}

  def of_place(place: jax.Array) -> pr.base.ReplicaTransformation:
    return make(**{k: x[place.astype(int)] for k, x in flat.items()})

  found = simulate(
    of_place,
    range(axes[0].size),
    seeds,
    loss_fn=loss_fn,
    start=start,
    num_replicas=num_replicas,
    num_steps=num_steps,
    observe=observe,
    every=num_steps,
  )[:, :, 0]
  finite = np.nan_to_num(found, nan=ceiling, posinf=ceiling)
  return np.minimum(finite, ceiling).reshape(*axes[0].shape, len(seeds))

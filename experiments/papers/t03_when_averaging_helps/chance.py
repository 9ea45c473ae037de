"""Local SGD with averages at random steps, and what the problems share."""

from collections.abc import Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.tools import drawing
import prsgd_jax as pr

SEEDS = (0, 1, 2, 3, 4)


def averaging(
  rate: Any, probability: float, num_steps: int
) -> pr.base.ReplicaTransformation:
  """Return local SGD, averaged at random steps and at the end (order C)."""
  tosses = pr.schedules.with_probability(probability, num_steps=num_steps)
  when = pr.schedules.any_of(tosses, pr.schedules.at_steps([num_steps - 1]))
  return pr.k_avg(optax.sgd(rate), period=when)


def signs(key: jax.Array, shape: Sequence[int], count: int) -> list[jax.Array]:
  """Return `count` arrays of random signs from one draw of bits."""
  bits = jax.random.bits(key, tuple(shape), 'uint8')
  return [2.0 * ((bits >> i) & 1) - 1 for i in range(count)]


def standard_error(values: np.ndarray) -> float:
  """Return the standard error of the mean of independent values."""
  return float(values.std(ddof=1) / len(values) ** 0.5)


def probability_axis(ax: Axes, least: float) -> None:
  """Make the x axis one of zeta with a place for 0, after all is drawn."""
  added = drawing.zero_and_log(ax, 'x', least)
  ax.set_xlabel(rf'$\zeta$, probability of averaging at a step ({added})')

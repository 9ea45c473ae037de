"""Local SGD with averages at random steps, and what the problems share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.tools import drawing
import prsgd_jax as pr

SEEDS = (0, 1, 2, 3, 4)


def averaging(
  rate: Any, probability: float, num_steps: int
) -> pr.base.ReplicaTransformation:
  """Return local SGD, averaged at random steps and at the end (order C).

  Each copy of a problem, and each seed, has its own random steps. With common
  ones, the spread of the results would not show how much they depend on them.

  Args:
    rate: learning rate.
    probability: zeta, the probability of an average at a step.
    num_steps: T. The last step has an average.

  Returns:
    The algorithm of one array of parameters, [copies, ...].
  """

  def chosen(
    params: jax.Array, mean: jax.Array, step: jax.Array, shared_key: jax.Array
  ) -> jax.Array:
    coins = jax.random.uniform(shared_key, params.shape[:1]) < probability
    averages = coins | (step == num_steps - 1)
    return jax.vmap(jnp.where)(averages, mean, params)

  return pr.chain(
    pr.step(optax.sgd(rate)),
    pr.let(mean='params'),
    pr.sync(pr.mixing.mean(), 'mean'),
    pr.let(params=chosen),
  )


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

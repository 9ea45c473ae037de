"""Learning rates that an algorithm must know, as numbers or schedules."""

import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, Schedule
from prsgd_jax.checks import check_number


def as_rate(learning_rate: optax.ScalarOrSchedule) -> Schedule:
  """Return the learning rate as a function of the step.

  Raises:
    ValueError: if the rate is neither a schedule nor a number > 0.
  """
  if callable(learning_rate):
    return learning_rate
  rate = check_number(
    'learning_rate', learning_rate, lambda x: x > 0, 'a schedule or > 0'
  )
  return lambda step: rate


def per_unit(x: Array, rate: Array | float) -> Array:
  """Return x / rate, and 0 where the rate is 0, because nothing moved there."""
  rate = jnp.asarray(rate, x.dtype)
  return jnp.where(rate > 0, x / jnp.where(rate > 0, rate, 1), 0)

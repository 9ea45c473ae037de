"""CONTROL VARIATES: corrections for what the replicas' losses differ in."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax import collectives
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
)
from prsgd_jax.checks import check_number
from prsgd_jax.mixing import mean
from prsgd_jax.payload import mix_inexact, payload_bytes
from prsgd_jax.schedules import every
from prsgd_jax.transforms.common import (
  at_steps,
  cast_like,
  traffic,
  widen,
)


class ControlVariatesState(NamedTuple):
  """Of a round.

  Attributes:
    anchor: x, the parameters at its start.
    rates: [V], the sum of its learning rates so far.
    control: c_i, each replica's own.
    mean_control: c, the same on all.
  """

  anchor: ArrayTree
  rates: Array
  control: ArrayTree
  mean_control: ArrayTree


def control_variates(
  *, period: int, learning_rate: optax.ScalarOrSchedule
) -> ReplicaTransformation:
  """Corrects every local step, and averages all replicas at each K-th.

  y_i <- y_i - gamma (c - c_i) after each local step. At the end of a round that
  began at x:

    c_i <- c_i - c + (x - y_i) / sum gamma;  c <- mean_i c_i;  x <- mean_i y_i

  with the sum over the K steps of the round. (x - y_i) / sum gamma is what the
  replica moved by per unit of learning rate, so that c_i becomes the mean of
  its own update direction in the round, weighted by gamma, and c that of all.
  All of them begin at zero, and c is the mean of the c_i always. The rounding
  of y_i is in c_i, divided by sum gamma: mind that in half precision.

  Args:
    period: K, steps of a round.
    learning_rate: gamma of the local steps, a number or an optax schedule of
      the engine's step. A constant is a unit only, which drops out.

  Raises:
    ValueError: if `period` is not an integer >= 1, or `learning_rate` is
      neither a schedule nor a number > 0.
  """
  when = every(period)
  if not callable(learning_rate):
    check_number(
      'learning_rate', learning_rate, lambda x: x > 0, 'a schedule or > 0'
    )
  rate = learning_rate if callable(learning_rate) else lambda _: learning_rate

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    zeros = jax.tree.map(jnp.zeros_like, widen(replica.params))
    block = jax.tree.leaves(replica.params)[0].shape[0]
    return replica, ControlVariatesState(
      replica.params, jnp.zeros(block), zeros, zeros
    )

  def end_round(
    args: tuple[ArrayTree, ControlVariatesState],
  ) -> tuple[ArrayTree, ControlVariatesState]:
    params, state = args
    control = jax.tree.map(
      functools.partial(_renew, state.rates),
      state.control,
      state.mean_control,
      widen(state.anchor),
      widen(params),
    )
    params, mean_control = mix_inexact(
      collectives.replica_mean, (params, control)
    )
    rates = jnp.zeros_like(state.rates)
    return params, ControlVariatesState(params, rates, control, mean_control)

  def update(
    replica: Replica, state: ControlVariatesState, context: Context
  ) -> tuple[Replica, ArrayTree]:
    gamma = rate(context.step)

    def correct(y: Array, c_i: Array, c: Array) -> Array:
      return y - jnp.asarray(gamma, c.dtype) * (c - c_i)

    corrected = jax.tree.map(
      correct, widen(replica.params), state.control, state.mean_control
    )
    params = cast_like(corrected, replica.params)
    rates = state.rates + jnp.asarray(gamma, state.rates.dtype)
    params, state = at_steps(
      when, context.step, end_round, (params, state._replace(rates=rates))
    )
    return replica._replace(params=params), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = 2 * payload_bytes(shapes.params)  # the controls too
    return (traffic(mean(), payload, when, num_replicas, steps),)

  return ReplicaTransformation(update, init, cost)


def _renew(rates: Array, c_i: Array, c: Array, x: Array, y: Array) -> Array:
  """c_i - c + (x - y) / sum gamma, with the sums [V] of the block."""
  total = rates.reshape((-1,) + (1,) * (x.ndim - 1)).astype(c.dtype)
  moved = (x - y) / jnp.where(total > 0, total, 1)
  # A round of learning rate zero moved nothing and tells nothing.
  return jnp.where(total > 0, c_i - c + moved, c_i)

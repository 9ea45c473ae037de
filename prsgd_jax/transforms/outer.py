"""OUTER: momentum on the scale of rounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Replica,
  ReplicaTransformation,
  Schedule,
)
from prsgd_jax.checks import check_number, check_schedule
from prsgd_jax.transforms.common import (
  at_steps,
  cast_like,
  widen,
)


class SlowState(NamedTuple):
  """The parameters at the start of the round, and the slow momentum buffer."""

  anchor: ArrayTree
  momentum: ArrayTree


def slow_update(
  *,
  when: Schedule,
  learning_rate: float | Schedule,
  slow_learning_rate: float = 1.0,
  slow_momentum: float,
) -> ReplicaTransformation:
  """The outer step of SlowMo, which measures a round by the learning rate.

  u <- beta u + (x_0 - x) / gamma;  x <- x_0 - alpha gamma u, with x_0 the
  parameters after the last such step and gamma the learning rate of this step,
  the last of its round. Where gamma is 0, u <- beta u and x <- x_0 - alpha (x_0
  - x), the limit of x. Sends nothing: chain it after what averages x.

  Args:
    when: the steps, those of the average that comes before.
    learning_rate: gamma, a number or a schedule of the engine's step.
    slow_learning_rate: alpha.
    slow_momentum: beta.

  Raises:
    ValueError: if an argument is not what it should be.
  """
  check_schedule('when', when)
  alpha = check_number(
    'slow_learning_rate', slow_learning_rate, lambda x: x > 0, '> 0'
  )
  beta = check_number(
    'slow_momentum', slow_momentum, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  if not callable(learning_rate):
    check_number(
      'learning_rate', learning_rate, lambda x: x > 0, 'a schedule or > 0'
    )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    momentum = jax.tree.map(jnp.zeros_like, widen(replica.params))
    return replica, SlowState(replica.params, momentum)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def step(args: tuple[ArrayTree, SlowState]) -> tuple[ArrayTree, SlowState]:
      params, state = args
      gamma = (
        learning_rate(context.step)
        if callable(learning_rate)
        else learning_rate
      )

      def accumulate(u: Array, x_0: Array, x: Array) -> Array:
        rate = jnp.asarray(gamma, u.dtype)
        added = (x_0 - x) / jnp.where(rate > 0, rate, 1)
        return beta * u + jnp.where(rate > 0, added, 0)

      # x_0 - alpha gamma u, also where gamma is 0.
      def move(u: Array, x_0: Array, x: Array) -> Array:
        rate = jnp.asarray(gamma, u.dtype)
        return x_0 - alpha * (beta * rate * u + (x_0 - x))

      points = (state.momentum, widen(state.anchor), widen(params))
      momentum = jax.tree.map(accumulate, *points)
      moved = cast_like(jax.tree.map(move, *points), params)
      return moved, SlowState(moved, momentum)

    params, state = at_steps(when, context.step, step, (replica.params, state))
    return replica._replace(params=params), state

  return ReplicaTransformation(update, init)

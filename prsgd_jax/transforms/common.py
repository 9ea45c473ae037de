"""What the old stages share: schedules, turns and traffic."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Replica,
  ReplicaTransformation,
  Schedule,
  Traffic,
)
from prsgd_jax.matrices import sums_to_one
from prsgd_jax.mixing import Mixing
from prsgd_jax.payload import wire_dtype


def check_gradient(name: str, replica: Replica) -> None:
  if jax.tree.leaves(replica.params) and not jax.tree.leaves(replica.grads):
    raise ValueError(
      f'{name} needs the gradient of this step, but none was taken; chain '
      'pr.gradient() before it'
    )


def at_steps(when: Schedule, step: Array, fn: Any, operand: Any) -> Any:
  """`fn(operand)` at the steps of the schedule, else the operand."""
  fires = when(step)
  if not isinstance(fires, jax.Array):
    return fn(operand) if fires else operand
  return lax.cond(fires, fn, lambda operand: operand, operand)


def widen(tree: ArrayTree) -> ArrayTree:
  """The floating leaves in float32 or wider."""
  return jax.tree.map(lambda x: x.astype(wire_dtype(x)), tree)


def cast_like(tree: ArrayTree, other: ArrayTree) -> ArrayTree:
  """The leaves in the dtypes of another tree's."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)


def check_rows(mixing: Mixing, num_replicas: int) -> None:
  """Raises ValueError unless the mixing takes averages, of that many replicas.

  The rows of its matrices must sum to one. Those of push-sum need not.
  """
  if not sums_to_one(mixing.matrices(num_replicas), -1):
    raise ValueError(
      'a mixing must have rows that sum to 1, got one whose columns alone do; '
      'use it with pr.sgp, which weighs the replicas'
    )


def check_silent(
  name: str,
  stages: ReplicaTransformation,
  replica: Replica,
  num_replicas: int,
) -> None:
  """Raises ValueError if stages that not all replicas run communicate."""
  spent = stages.cost(replica, num_replicas, np.arange(1))
  if any(isinstance(entry, Traffic) for entry in spent):
    raise ValueError(
      f'{name} takes stages that do not communicate, got one that does; chain '
      f'sync after {name}'
    )


def start_turns(
  mixing: Mixing, replica: Replica, num_replicas: int
) -> ArrayTree:
  """int32[V] zeros, rounds done, if the mixing's matrices take turns; or ()."""
  if mixing.random or len(mixing.matrices(num_replicas)) == 1:
    return ()
  return jnp.zeros(jax.tree.leaves(replica.params)[0].shape[:1], jnp.int32)


def take_turn(context: Context, turns: ArrayTree) -> tuple[Context, ArrayTree]:
  """The context for `Mixing.apply`, whose step is the round, and turns + 1."""
  if isinstance(turns, tuple):
    return context, turns
  return context._replace(round=turns[0]), turns + 1


def traffic(
  mixing: Mixing,
  payload: float,
  when: Schedule,
  num_replicas: int,
  steps: np.ndarray,
  *,
  coded: bool = False,
) -> Traffic:
  """What mixing a payload of so many bytes at the steps of a schedule sends.

  Args:
    mixing: with whom.
    payload: bytes.
    when: the schedule.
    num_replicas: N.
    steps: the steps asked for.
    coded: whether the payload is codes, which are not added up on the way.
  """
  fires = np.broadcast_to(np.asarray(when(steps)), steps.shape)
  waits = mixing.matrices(num_replicas) != 0
  message = mixing.coded_message if coded else mixing.message
  sent = message(payload, num_replicas)
  return Traffic(fires, *sent, waits, mixing.random)

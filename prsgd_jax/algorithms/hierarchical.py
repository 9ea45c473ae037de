"""Averages in groups more often than between them."""

from collections.abc import Sequence

import optax

from prsgd_jax.algorithms.common import NEVER, PARAMS
from prsgd_jax.base import (
  ReplicaTransformation,
  Schedule,
  chain,
  check_positive_int,
)
from prsgd_jax.mixing import group_mean, mean
from prsgd_jax.schedules import every
from prsgd_jax.transforms import gradient, local_update, reset_buffers, sync


def hier_avg(
  tx: optax.GradientTransformation,
  *,
  local_period: int,
  global_period: int,
  group_size: int,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Hierarchical averaging: groups often, all replicas rarely (order C).

  Every K1 steps x_i <- mean over i's group of S replicas; every K2 steps
  x_i <- mean over all. At a step of both the group comes first, as in the
  paper; the global mean makes no difference of it.

  Args:
    tx: the optimizer of every replica.
    local_period: K1, steps between averages of a group.
    global_period: K2, steps between averages of all, a multiple of K1.
    group_size: S, replicas in a group; divides the number of replicas.
    what: the fields that the averages cover.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if a period or the size is not an integer >= 1 or K1 does not
      divide K2; from `init`, if S does not divide the number of replicas.

  Reference:
    Zhou, Cong 2019, A distributed hierarchical SGD algorithm with sparse global
    reduction (arXiv 1903.05133), Algorithm 1.
  """
  local_period = check_positive_int('local_period', local_period)
  global_period = check_positive_int('global_period', global_period)
  if global_period % local_period:
    raise ValueError(
      'global_period must be a multiple of local_period, got '
      f'{global_period} and {local_period}'
    )
  return chain(
    gradient(),
    local_update(tx),
    sync(group_mean(group_size), when=every(local_period), what=what),
    sync(mean(), when=every(global_period), what=what),
    reset_buffers(tx, when=reset),
  )

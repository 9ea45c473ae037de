"""Hierarchical averages: often inside groups, rarely between them."""

from collections.abc import Sequence
import itertools

import optax

from prsgd_jax.algorithms.common import Average, average_by
from prsgd_jax.base import ReplicaTransformation
from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing.mixings import group_mean, mean
from prsgd_jax.schedules import after, every, post_local
from prsgd_jax.stages import algorithm, at, step, sync


def hier_avg(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  local_period: int,
  global_period: int,
  group_size: int,
  average: Average = sync,
) -> ReplicaTransformation:
  """Hierarchical averaging: groups often, all replicas rarely (order C).

  Every K1 steps x_i <- mean over i's group of S replicas; every K2 steps
  x_i <- mean over all. If both are due, the group comes first, as in the paper,
  which does not change the global mean.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    local_period: K1, steps between averages of a group, an integer >= 1.
    global_period: K2, steps between averages of all, a multiple of K1.
    group_size: S, replicas in a group, a divisor of the number of replicas.
    average: `mixing -> stage`, the average of a level given its mixing.
      Default: `sync`, which averages the parameters.

  Raises:
    ValueError: if a period or the size is not an integer >= 1, or if K1 does
      not divide K2; from `init`, if S does not divide the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = hier_avg(
    ...     optax.sgd(0.1), local_period=2, global_period=8, group_size=4)
    >>> momentum_too = hier_avg(
    ...     optax.sgd(0.1, momentum=0.9), local_period=2, global_period=8,
    ...     group_size=4,
    ...     average=lambda mixing: pr.sync(mixing, ('params', 'opt_state')))

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
  return algorithm(
    'hier_avg',
    step(local),
    at(every(local_period), average_by(average, group_mean(group_size))),
    at(every(global_period), average_by(average, mean())),
  )


def multi_level_avg(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  periods: Sequence[int],
  group_sizes: Sequence[int],
  average: Average = sync,
) -> ReplicaTransformation:
  """Hierarchical averaging on any number of levels (order C).

  For levels l = 1, 2, ...: every P_l steps x_i <- mean over i's group of S_l
  replicas. Lower levels come first.

  `hier_avg` has periods (K1, K2) and group sizes (S,). `k_avg` has one period
  and no group size.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    periods: P_l, steps between averages on each level, integers >= 1. Each must
      divide the next.
    group_sizes: S_l, replicas in a group on each level. Each must divide the
      next, and the last must divide the number of replicas. If the list is one
      shorter than `periods`, the last level averages all replicas.
    average: `mixing -> stage`, the average of a level given its mixing.
      Default: `sync`, which averages the parameters.

  Raises:
    ValueError: if `periods` is empty, if the number of sizes is wrong, or if a
      number is not an integer >= 1 or does not divide the next; from `init`, if
      a size does not divide the number of replicas.

  Example:
    >>> import optax
    >>> algorithm = multi_level_avg(
    ...     optax.sgd(0.1), periods=[2, 4, 16], group_sizes=[2, 4])

  Reference:
    Wang, Wang, Chen, Ji 2022, Demystifying why local aggregation helps:
    convergence analysis of hierarchical SGD (arXiv 2010.12998), which counts
    the levels from the top (its algorithm was not verified line by line).
  """
  periods = _nested('periods', periods)
  group_sizes = _nested('group_sizes', group_sizes)
  if not periods or len(periods) - len(group_sizes) not in (0, 1):
    raise ValueError(
      'multi_level_avg expects a period for each level, and a group size for '
      'each level or for all but the last, which then averages all replicas, '
      f'got {len(periods)} periods and {len(group_sizes)} sizes'
    )
  levels = [*map(group_mean, group_sizes), mean()]
  return algorithm(
    'multi_level_avg',
    step(local),
    *(
      at(every(period), average_by(average, level))
      for period, level in zip(periods, levels, strict=False)
    ),
  )


def hierarchical_local_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int,
  block_steps: int,
  group_size: int,
  switch_step: int = 0,
  average: Average = sync,
) -> ReplicaTransformation:
  """Hierarchical (post-)local SGD: blocks inside, all outside (order C).

  H^b times: H local steps on each replica, then x_i <- mean over i's block of
  S replicas. Then x_i <- mean over all. During the first t' steps, all replicas
  are averaged at every step.

  With t' = 0 it is `hier_avg` with K1 = H, K2 = H H^b. With H = 1 and an
  optimizer linear in the gradient, a block takes steps along its mean gradient,
  like a data-parallel machine in the authors' code.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: H, local steps between averages of a block, an integer >= 1.
    block_steps: H^b, averages of a block between averages of all replicas, an
      integer >= 1.
    group_size: S, replicas in a block, a divisor of the number of replicas.
    switch_step: t', synchronous steps at the start (post-local SGD), >= 0.
      Default: 0.
    average: `mixing -> stage`, the average of a level given its mixing.
      Default: `sync`, which averages the parameters.

  Raises:
    ValueError: if a number is not an integer >= 1 (>= 0 for `switch_step`);
      from `init`, if S does not divide the number of replicas.

  Example:
    >>> import optax
    >>> algorithm = hierarchical_local_sgd(
    ...     optax.sgd(0.1), period=2, block_steps=4, group_size=4)

  Reference:
    Lin, Stich, Patel, Jaggi 2020, Don't use large mini-batches, use local SGD
    (arXiv 1808.07217), hierarchical local SGD in the appendix (not verified
    line by line), with t' = 0.
  """
  period = check_positive_int('period', period)
  outer_period = period * check_positive_int('block_steps', block_steps)
  outside = post_local(switch_step, outer_period)
  inside = after(switch_step, every(period))
  return algorithm(
    'hierarchical_local_sgd',
    step(local),
    at(inside, average_by(average, group_mean(group_size))),
    at(outside, average_by(average, mean())),
  )


def _nested(name: str, values: Sequence[int]) -> tuple[int, ...]:
  """Return positive integers, checked that each divides the next."""
  checked = tuple(check_positive_int(name, value) for value in values)
  for small, large in itertools.pairwise(checked):
    if large % small:
      raise ValueError(
        f'each of {name} must divide the next, got {small} before {large}'
      )
  return checked

"""COMPRESSED: stages that send codes in place of what they stand for."""

from collections.abc import Callable
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
  Schedule,
  over_block,
)
from prsgd_jax.checks import check_number, check_schedule
from prsgd_jax.compression import (
  Compressor,
  bare_signs,
  check_compressor,
  coded_bytes,
)
from prsgd_jax.mixing import Mixing, mean
from prsgd_jax.payload import mix_inexact
from prsgd_jax.schedules import always
from prsgd_jax.transforms.common import (
  at_steps,
  cast_like,
  check_gradient,
  check_rows,
  traffic,
  widen,
)
from prsgd_jax.transforms.local import local_update, optimizer_updates


def average_codes(compressor: Compressor) -> ReplicaTransformation:
  """G_i <- mean_j Q(G_j), at every step.

  All replicas decode the same codes in the same order: what they get is equal
  bit for bit.

  Args:
    compressor: Q.

  Raises:
    ValueError: if `compressor` is none; from `update`, if no gradient was taken
      before.
  """
  check_compressor(compressor)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    check_gradient('average_codes', replica)
    grads = mix_inexact(
      lambda tree: _exchange(mean(), compressor, tree, context)[0],
      replica.grads,
    )
    return replica._replace(grads=grads), state

  cost = _sends(mean(), compressor, 'grads', always())
  return ReplicaTransformation(update, cost=cost)


def vote() -> ReplicaTransformation:
  """G_i <- sgn(sum_j sgn(G_j)), at every step: one bit an entry from each.

  A tie of the vote is 0. One bit cannot say 0: for an entry of its own that is
  0, replica i sends + where i + step is even, else -. So zeros of all replicas
  cancel where N is even, and alternate in sign where it is odd.

  Raises:
    ValueError: from `update`, if no gradient was taken before.
  """
  compressor = bare_signs()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    check_gradient('vote', replica)
    of_zero = 1 - 2 * ((context.replica + context.step) % 2)

    def ballot(x: Array) -> Array:
      fill = over_block(lambda own, x: jnp.where(x == 0, own, x))
      return fill(of_zero.astype(x.dtype), x)

    def majority(tree: ArrayTree) -> ArrayTree:
      n = collectives.num_replicas(tree)
      ballots = jax.tree.map(ballot, tree)
      votes, _ = _exchange(mean(), compressor, ballots, context)
      # A mean of +1 and -1 may miss 0 by a rounding error, their sum not.
      return jax.tree.map(lambda x: jnp.sign(jnp.round(n * x)), votes)

    grads = mix_inexact(majority, replica.grads)
    return replica._replace(grads=grads), state

  cost = _sends(mean(), compressor, 'grads', always())
  return ReplicaTransformation(update, cost=cost)


def feed_back_errors(
  tx: optax.GradientTransformation, compressor: Compressor
) -> ReplicaTransformation:
  """p_i = e_i - tx(G_i); x_i <- x_i - mean_j Q(p_j); e_i <- p_i - Q(p_i).

  In place of `local_update`: what is compressed is the optimizer's step. The
  errors e_i are each replica's own, at least in float32, and start at 0.

  Args:
    tx: any optax transformation of (grads, state, params).
    compressor: Q, a contraction.

  Raises:
    ValueError: if an argument is not what it should be; from `init`, if a
      `local_update` already made the optimizer's state; from `update`, if no
      gradient was taken before.
  """
  local = local_update(tx)
  check_compressor(compressor)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    replica, _ = local.init(replica, num_replicas)
    return replica, _zeros(replica.params)

  def update(
    replica: Replica, errors: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    check_gradient('feed_back_errors', replica)
    updates, opt_state = optimizer_updates(tx, replica, context)
    steps = jax.tree.map(jnp.subtract, errors, updates)
    mixed, own = _exchange(mean(), compressor, steps, context)
    x = jax.tree.map(jnp.subtract, widen(replica.params), mixed)
    params = cast_like(x, replica.params)
    errors = jax.tree.map(jnp.subtract, steps, own)
    return replica._replace(params=params, opt_state=opt_state), errors

  cost = _sends(mean(), compressor, 'params', always())
  return ReplicaTransformation(update, init, cost)


class DifferenceState(NamedTuple):
  """x0, the last agreed parameters, and e_i where errors are fed back."""

  anchor: ArrayTree
  errors: ArrayTree = ()


def average_differences(
  compressor: Compressor, *, when: Schedule, error_feedback: bool = False
) -> ReplicaTransformation:
  """x_i <- x0 + mean_j Q(x_j - x0), and x0 <- that, at the steps of a schedule.

  With `error_feedback` p_i = x_i - x0 + e_i is sent in place of the difference,
  and e_i <- p_i - Q(p_i). Replicas start at one point, which is the first x0:
  from it on they agree bit for bit after each average.

  Args:
    compressor: Q, unbiased, or a contraction with `error_feedback`.
    when: the schedule.
    error_feedback: whether what Q left out is sent the next time.

  Raises:
    ValueError: if `compressor` or `when` is not what it should be.
  """
  check_compressor(compressor)
  check_schedule('when', when)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    errors = _zeros(replica.params) if error_feedback else ()
    return replica, DifferenceState(replica.params, errors)

  def update(
    replica: Replica, state: DifferenceState, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def communicate(
      args: tuple[ArrayTree, DifferenceState],
    ) -> tuple[ArrayTree, DifferenceState]:
      params, (anchor, errors) = args
      moved = jax.tree.map(jnp.subtract, widen(params), widen(anchor))
      if error_feedback:
        moved = jax.tree.map(jnp.add, moved, errors)
      mixed, own = _exchange(mean(), compressor, moved, context)
      if error_feedback:
        errors = jax.tree.map(jnp.subtract, moved, own)
      x = jax.tree.map(jnp.add, widen(anchor), mixed)
      params = cast_like(x, params)
      return params, DifferenceState(params, errors)

    params, state = at_steps(
      when, context.step, communicate, (replica.params, state)
    )
    return replica._replace(params=params), state

  cost = _sends(mean(), compressor, 'params', when)
  return ReplicaTransformation(update, init, cost)


class GossipState(NamedTuple):
  """xhat_i, what the neighbours know of x_i, and s_i = sum_j W_ij xhat_j."""

  known: ArrayTree
  mixed: ArrayTree


def gossip_differences(
  mixing: Mixing, compressor: Compressor, *, consensus_step_size: float
) -> ReplicaTransformation:
  """CHOCO's gossip: only codes of x_i - xhat_i travel, at every step.

  q_i = Q(x_i - xhat_i); xhat_i <- xhat_i + q_i; s_i <- s_i + sum_j W_ij q_j;
  x_i <- x_i + gamma (s_i - xhat_i). All xhat_i and s_i start at 0, so that s_i
  is sum_j W_ij xhat_j throughout.

  Args:
    mixing: W, the same at every step; symmetric and doubly stochastic in the
      theory.
    compressor: Q, a contraction.
    consensus_step_size: gamma; the more Q leaves out, the smaller.

  Raises:
    ValueError: if an argument is not what it should be; from `init`, if the
      mixing has several matrices or does not fit the number of replicas; from
      `update`, if it does not carry codes.
  """
  if not isinstance(mixing, Mixing):
    raise ValueError(f'mixing expects one such as pr.ring(), got {mixing!r}')
  check_compressor(compressor)
  gamma = check_number(
    'consensus_step_size',
    consensus_step_size,
    lambda x: 0 < x <= 1,
    'in (0, 1]',
  )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    check_rows(mixing, num_replicas)
    count = len(mixing.matrices(num_replicas))
    if count > 1:
      raise ValueError(
        'gossip_differences needs one W for all steps, got a mixing with '
        f'{count}; use a static one such as pr.ring()'
      )
    zeros = _zeros(replica.params)
    return replica, GossipState(zeros, zeros)

  def update(
    replica: Replica, state: GossipState, context: Context
  ) -> tuple[Replica, ArrayTree]:
    x = widen(replica.params)
    unknown = jax.tree.map(jnp.subtract, x, state.known)
    mixed, own = _exchange(mixing, compressor, unknown, context)
    known, mixed = jax.tree.map(jnp.add, state, GossipState(own, mixed))
    x = jax.tree.map(lambda x, s, xhat: x + gamma * (s - xhat), x, mixed, known)
    params = cast_like(x, replica.params)
    return replica._replace(params=params), GossipState(known, mixed)

  cost = _sends(mixing, compressor, 'params', always())
  return ReplicaTransformation(update, init, cost)


def _sends(
  mixing: Mixing, compressor: Compressor, field: str, when: Schedule
) -> Callable[[Replica, int, np.ndarray], tuple[Cost, ...]]:
  """The cost of a stage that sends the codes of a field at some steps."""

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = coded_bytes(compressor, getattr(shapes, field))
    return (traffic(mixing, payload, when, num_replicas, steps, coded=True),)

  return cost


def _exchange(
  mixing: Mixing, compressor: Compressor, tree: ArrayTree, context: Context
) -> tuple[ArrayTree, ArrayTree]:
  """sum_j W_ij Q(v_j), of which the codes travel, and the replica's own Q(v_i).

  Leaves of the tree are in the dtype that the compressor decodes to.
  """
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree
  )

  def decode(codes: ArrayTree) -> ArrayTree:
    return compressor.decode(codes, shapes)

  codes = over_block(compressor.encode)(context.key, tree)
  mixed = mixing.apply(codes, context, decode=decode)
  return mixed, over_block(decode)(codes)


def _zeros(tree: ArrayTree) -> ArrayTree:
  """Zeros like the leaves of a tree, in float32 or wider."""
  return jax.tree.map(jnp.zeros_like, widen(tree))

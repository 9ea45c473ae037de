"""ELASTIC: replicas tied to a centre, and a gradient taken ahead of them."""

from collections.abc import Callable
from typing import Any

import jax
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
)
from prsgd_jax.checks import check_number, check_schedule
from prsgd_jax.mixing import mean
from prsgd_jax.payload import mix_inexact, payload_bytes
from prsgd_jax.transforms.common import (
  at_steps,
  cast_like,
  traffic,
  widen,
)
from prsgd_jax.transforms.local import gradient


def elastic(*, when: Schedule, alpha: float) -> ReplicaTransformation:
  """The elastic force between the replicas and their centre c.

  x_i <- x_i - alpha (x_i - c);  c <- c + alpha sum_i (x_i - c), both of the old
  x_i and c. The output is c, of which every replica keeps the same copy; only
  the mean of the x_i is sent. N alpha <= 1, since c becomes (1 - N alpha) c +
  N alpha xbar: the papers' beta = N alpha.

  Args:
    when: the schedule.
    alpha: the moving rate.

  Raises:
    ValueError: if `when` is no schedule or `alpha` not in (0, 1]; from `init`,
      if N alpha is more than 1.
  """
  check_schedule('when', when)
  alpha = check_number('alpha', alpha, lambda x: 0 < x <= 1, 'in (0, 1]')
  mixing = mean()

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    # N times 1 / N may be a rounding error more than 1.
    if num_replicas * alpha > 1 + 1e-9:
      raise ValueError(
        f'alpha must be at most 1 / N = {1 / num_replicas:g} with '
        f'{num_replicas} replicas, got {alpha}; 0.9 / N is usual'
      )
    return replica, widen(replica.params)

  def update(
    replica: Replica, center: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    n = collectives.num_replicas(context.replica)

    def pull(args: tuple[ArrayTree, ArrayTree]) -> tuple[ArrayTree, ArrayTree]:
      params, center = args
      x = widen(params)
      xbar = mix_inexact(lambda tree: mixing.apply(tree, context), x)

      def towards(rate: float) -> Callable[[Array, Array], Array]:
        return lambda x, y: x + rate * (y - x)

      pulled = jax.tree.map(towards(alpha), x, center)
      center = jax.tree.map(towards(alpha * n), center, xbar)
      return cast_like(pulled, params), center

    params, center = at_steps(
      when, context.step, pull, (replica.params, center)
    )
    return replica._replace(params=params), center

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = payload_bytes(shapes.params)
    return (traffic(mixing, payload, when, num_replicas, steps),)

  def output(replica: Replica, center: ArrayTree) -> Replica:
    return replica._replace(params=cast_like(center, replica.params))

  return ReplicaTransformation(update, init, cost, output)


def gradient_ahead(momentum: float) -> ReplicaTransformation:
  """Nesterov's gradient: at x_i + delta v_i, where momentum will have led.

  As `gradient` otherwise; the parameters stay x_i. The velocity v_i is that of
  the `optax.trace(delta)` that ends the optimizer of `local_update`, so that
  v_i <- delta v_i - gamma G_i(x_i + delta v_i) and x_i <- x_i + v_i.

  Args:
    momentum: delta.

  Raises:
    ValueError: if `momentum` is not in [0, 1); from `update`, if the optimizer
      does not end so, or has another velocity before.
  """
  delta = check_number('momentum', momentum, lambda x: 0 <= x < 1, 'in [0, 1)')
  inner = gradient()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    *before, last = replica.opt_state or (None,)
    if not isinstance(last, optax.TraceState):
      raise ValueError(
        'gradient_ahead needs the velocity; use it with a local_update of '
        f'optax.chain(tx, optax.trace({delta}))'
      )
    if any(map(_is_trace, jax.tree.leaves(before, is_leaf=_is_trace))):
      raise ValueError(
        'gradient_ahead has the momentum; give an optimizer without, such as '
        'optax.sgd(0.1), got one with a velocity of its own'
      )
    velocity = last.trace
    ahead = jax.tree.map(lambda x, v: x + delta * v, replica.params, velocity)
    after, state = inner.update(replica._replace(params=ahead), state, context)
    return after._replace(params=replica.params), state

  return ReplicaTransformation(update, cost=inner.cost)


def _is_trace(node: Any) -> bool:
  return isinstance(node, optax.TraceState)

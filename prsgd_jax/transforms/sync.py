"""SYNC: communication at the steps of a schedule, and what follows it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax import schedules
from prsgd_jax.base import (
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Schedule,
  over_block,
)
from prsgd_jax.checks import check_optax, check_schedule
from prsgd_jax.mixing import Mixing
from prsgd_jax.payload import mix_inexact, payload_bytes
from prsgd_jax.transforms.common import (
  at_steps,
  check_gradient,
  check_rows,
  start_turns,
  take_turn,
  traffic,
)

MIXABLE = ('params', 'grads', 'opt_state', 'model_state')


class SyncState(NamedTuple):
  """Rounds done, where the matrices of a mixing take turns; the outer state."""

  turns: ArrayTree = ()
  outer: ArrayTree = ()


class OuterState(NamedTuple):
  """The last agreed parameters and the outer optimizer's buffers."""

  anchor: ArrayTree
  opt_state: ArrayTree


def sync(
  mixing: Mixing,
  *,
  when: Schedule | None = None,
  what: Sequence[str] = ('params',),
  outer: optax.GradientTransformation | None = None,
) -> ReplicaTransformation:
  """Communication: x_i <- sum_j W_ij x_j at the steps of a schedule.

  The collective is inside a `lax.cond`, which covers the mixed fields alone;
  where the schedule is known when tracing there is none. Only floating leaves
  are mixed, in float32 or wider. Averaging is an assignment, so that after a
  full average all replicas are equal bit for bit.

  With `outer`, the mean is not taken over but is fed to an optimizer as a
  pseudo-gradient: x <- x0 + outer(x0 - mean x), x0 the parameters after the
  last such step (BMUF, FedOpt, DiLoCo).

  Args:
    mixing: with whom, W.
    when: the schedule; every step if None.
    what: fields of `Replica`: any of params, grads, opt_state, model_state.
    outer: optax transformation of the pseudo-gradient of the parameters.

  Raises:
    ValueError: if an argument is not what it should be, or `outer` is given
      without params; from `init`, if the mixing does not fit the number of
      replicas.
  """
  if not isinstance(mixing, Mixing):
    raise ValueError(f'mixing expects one such as pr.mean(), got {mixing!r}')
  when = schedules.always() if when is None else when
  check_schedule('when', when)
  what = (what,) if isinstance(what, str) else tuple(what)
  if not what or set(what) - set(MIXABLE) or len(set(what)) != len(what):
    raise ValueError(f'what expects some of {MIXABLE}, each once, got {what}')
  if outer is not None and 'params' not in what:
    raise ValueError(f"outer needs 'params' in what, got {what}")
  if outer is not None:
    check_optax('outer', outer)
  step_outer = _outer_step(outer) if outer is not None else _take_over

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    check_rows(mixing, num_replicas)
    turns = start_turns(mixing, replica, num_replicas)
    if outer is None:
      return replica, SyncState(turns)
    buffers = over_block(outer.init)(replica.params)
    return replica, SyncState(turns, OuterState(replica.params, buffers))

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def communicate(args: tuple[dict, ArrayTree]) -> tuple[dict, ArrayTree]:
      fields, state = args
      turn, turns = take_turn(context, state.turns)
      mixed = mix_inexact(lambda tree: mixing.apply(tree, turn), fields)
      mixed, after = step_outer(mixed, state.outer)
      return mixed, SyncState(turns, after)

    if 'grads' in what:
      check_gradient("sync(what='grads')", replica)
    fields = {name: getattr(replica, name) for name in what}
    fields, state = at_steps(when, context.step, communicate, (fields, state))
    return replica._replace(**fields), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = payload_bytes([getattr(shapes, name) for name in what])
    return (traffic(mixing, payload, when, num_replicas, steps),)

  return ReplicaTransformation(update, init, cost)


def _take_over(mixed: dict, state: ArrayTree) -> tuple[dict, ArrayTree]:
  return mixed, state


def _outer_step(outer: optax.GradientTransformation) -> Any:
  def step(mixed: dict, state: OuterState) -> tuple[dict, OuterState]:
    pseudo_gradient = jax.tree.map(jnp.subtract, state.anchor, mixed['params'])
    updates, opt_state = over_block(outer.update)(
      pseudo_gradient, state.opt_state, state.anchor
    )
    params = optax.apply_updates(state.anchor, updates)
    return {**mixed, 'params': params}, OuterState(params, opt_state)

  return step

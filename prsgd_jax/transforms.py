"""STAGES: what a replica does in a step, and when it talks to the others."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax import schedules
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Replica,
  ReplicaTransformation,
  Schedule,
  Traffic,
  chain,
  check_positive_int,
  over_block,
)
from prsgd_jax.mixing import Mixing, mix_inexact, payload_bytes

MIXABLE = ('params', 'grads', 'opt_state', 'model_state')


def gradient() -> ReplicaTransformation:
  """G_i at the replica's present parameters, on this step's batch.

  Sets `grads`, `model_state` and `metrics`: what the loss reports, `loss`
  itself unless that is among it, and the weight `active` = 1 that the replica
  has in averages of them (0 where `while_active` sat the step out).
  """

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    (loss, (model_state, metrics)), grads = context.value_and_grad(
      replica.params, replica.model_state
    )
    if 'active' in metrics:
      raise ValueError(
        "the metric 'active' is the engine's own; give the loss's another name"
      )
    metrics = {'loss': loss, **metrics, 'active': jnp.ones_like(loss)}
    return replica._replace(
      grads=grads, model_state=model_state, metrics=metrics
    ), state

  return ReplicaTransformation(update)


def local_update(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """One optax step of every replica by itself: x_i <- x_i + tx(G_i).

  optax keeps a count of its own for learning-rate schedules. The engine's step
  is the only clock here, so that count is set to it: a replica that sat some
  steps out, or whose buffers were reset, reads the same learning rate as the
  others.

  Args:
    tx: any optax transformation of (grads, state, params).

  Raises:
    ValueError: if `tx` is not an optax transformation; from `init`, if another
      `local_update` already made the optimizer's state; from `update`, if no
      gradient was taken before.
  """
  _check_optax('local_update', tx)
  tx = optax.with_extra_args_support(tx)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    made, empty = map(jax.tree.structure, (replica.opt_state, ()))
    if made != empty:  # type: ignore[operator]
      raise ValueError(
        'an algorithm has one optimizer state, but two local_update stages '
        'were chained; join their optimizers by optax.chain'
      )
    return replica._replace(opt_state=over_block(tx.init)(replica.params)), ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    _check_gradient('local_update', replica)
    opt_state = _set_clock(replica.opt_state, context.step)
    updates, opt_state = over_block(tx.update)(
      replica.grads, opt_state, replica.params
    )
    params = optax.apply_updates(replica.params, updates)
    return replica._replace(params=params, opt_state=opt_state), state

  return ReplicaTransformation(update, init)


def _set_clock(opt_state: ArrayTree, step: Array) -> ArrayTree:
  """Makes optax's counts of schedules, no others, read the engine's step."""
  scheduled = (
    optax.ScaleByScheduleState,
    optax.InjectStatefulHyperparamsState,
    # The state of an injected schedule; optax does not export its type.
    type(optax.WrappedSchedule(optax.constant_schedule(0)).init()),
  )

  def is_scheduled(node: Any) -> bool:
    return isinstance(node, scheduled)

  def set_count(node: Any) -> Any:
    if not is_scheduled(node):
      return node
    # What hyperparameters are injected into has counts of its own inside.
    inner = jax.tree.map(set_count, tuple(node), is_leaf=is_scheduled)
    count = jnp.full_like(node.count, step)
    return type(node)(*inner)._replace(count=count)

  return jax.tree.map(set_count, opt_state, is_leaf=is_scheduled)


def _check_gradient(name: str, replica: Replica) -> None:
  if jax.tree.leaves(replica.params) and not jax.tree.leaves(replica.grads):
    raise ValueError(
      f'{name} needs the gradient of this step, but none was taken; chain '
      'pr.gradient() before it'
    )


def _check_optax(name: str, tx: Any) -> None:
  if not isinstance(tx, optax.GradientTransformation):
    raise ValueError(
      f'{name} expects an optax transformation such as optax.sgd(0.1), got '
      f'{tx!r}'
    )


def _check_schedule(name: str, when: Any) -> None:
  if not callable(when):
    raise ValueError(
      f'{name} expects a schedule such as pr.every(4), got {when!r}'
    )


def reset_buffers(
  tx: optax.GradientTransformation, *, when: Schedule
) -> ReplicaTransformation:
  """Starts the optimizer's buffers anew at the present parameters.

  Momentum begins again at zero; an Adam starts with its count, because zero
  moments under an old count would make the next step a third larger. The
  learning rate's schedule goes on (see `local_update`).

  Args:
    tx: the optimizer given to `local_update`.
    when: the steps, commonly those of the average that comes before.

  Raises:
    ValueError: if `tx` is not an optax transformation, or `when` no schedule.
  """
  _check_optax('reset_buffers', tx)
  _check_schedule('when', when)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def fresh(replica: Replica) -> Replica:
      opt_state = over_block(tx.init)(replica.params)
      return replica._replace(opt_state=opt_state)

    return _when(when, context.step, fresh, replica), state

  return ReplicaTransformation(update)


def while_active(
  local_steps: Sequence[int], *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages on replica i in the first I_i steps of each round.

  A round is max_i I_i steps. Later in it the replica keeps all it has; with one
  replica per device it then computes nothing, and in a block the result is
  discarded. The stages must not communicate: replicas are not in step here.

  Args:
    local_steps: I_i, int[N], one per replica, all >= 1.
    *stages: what an active replica does.

  Raises:
    ValueError: if a number of steps is not an integer >= 1; from `init`, if
      there is not one per replica, or if a stage communicates.
  """
  counts = tuple(check_positive_int('local_steps', c) for c in local_steps)
  if not counts:
    raise ValueError('local_steps expects one number per replica, got none')
  inner = chain(*stages)
  round_length = max(counts)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    if len(counts) != num_replicas:
      raise ValueError(
        f'local_steps must have one number for each of the {num_replicas} '
        f'replicas, got {len(counts)}'
      )
    if inner.traffic(replica, num_replicas, np.arange(1)):
      raise ValueError(
        'while_active takes stages that do not communicate, got one that '
        'does; chain sync after while_active'
      )
    return inner.init(replica, num_replicas)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    limit = jnp.asarray(counts, jnp.int32)[context.replica]
    active = context.step % round_length < limit

    def run(args: tuple[Replica, ArrayTree]) -> tuple[Replica, ArrayTree]:
      return inner.update(*args, context)

    def rest(args: tuple[Replica, ArrayTree]) -> tuple[Replica, ArrayTree]:
      replica, state = args
      after = jax.eval_shape(run, args)[0]
      grads, metrics = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (after.grads, after.metrics)
      )
      return replica._replace(grads=grads, metrics=metrics), state

    if active.shape[0] == 1:
      return lax.cond(active[0], run, rest, (replica, state))
    choose = functools.partial(_choose, active)
    return jax.tree.map(choose, run((replica, state)), rest((replica, state)))

  return ReplicaTransformation(update, init, output=inner.output)


def _choose(active: Array, new: Array, old: Array) -> Array:
  """Row by row of the block: new where active."""
  return over_block(jnp.where)(active, new, old)


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
  _check_schedule('when', when)
  what = (what,) if isinstance(what, str) else tuple(what)
  if not what or set(what) - set(MIXABLE) or len(set(what)) != len(what):
    raise ValueError(f'what expects some of {MIXABLE}, each once, got {what}')
  if outer is not None and 'params' not in what:
    raise ValueError(f"outer needs 'params' in what, got {what}")
  if outer is not None:
    _check_optax('outer', outer)
  step_outer = _outer_step(outer) if outer is not None else _take_over

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    mixing.matrix(num_replicas, 0)
    if outer is None:
      return replica, ()
    buffers = over_block(outer.init)(replica.params)
    return replica, OuterState(replica.params, buffers)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def communicate(args: tuple[dict, ArrayTree]) -> tuple[dict, ArrayTree]:
      fields, state = args
      mixed = mix_inexact(lambda tree: mixing.apply(tree, context), fields)
      return step_outer(mixed, state)

    if 'grads' in what:
      _check_gradient("sync(what='grads')", replica)
    fields = {name: getattr(replica, name) for name in what}
    fields, state = _when(when, context.step, communicate, (fields, state))
    return replica._replace(**fields), state

  def traffic(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Traffic, ...]:
    payload = payload_bytes([getattr(shapes, name) for name in what])
    fires = np.broadcast_to(np.asarray(when(steps)), steps.shape)
    return (Traffic(fires, *mixing.message(payload, num_replicas)),)

  return ReplicaTransformation(update, init, traffic)


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


def _when(when: Schedule, step: Array, fn: Any, operand: Any) -> Any:
  """`fn(operand)` at the steps of the schedule, else the operand."""
  fires = when(step)
  if not isinstance(fires, jax.Array):
    return fn(operand) if fires else operand
  return lax.cond(fires, fn, lambda operand: operand, operand)

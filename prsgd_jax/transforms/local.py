"""What a replica does by itself in a step."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Schedule,
  Work,
  chain,
  over_block,
)
from prsgd_jax.checks import check_optax, check_positive_int, check_schedule
from prsgd_jax.transforms.common import (
  at_steps,
  check_gradient,
  check_silent,
)


def gradient() -> ReplicaTransformation:
  """G_i at the replica's present parameters, on this step's batch.

  Sets `grads`, `model_state` and `metrics`: what the loss reports, and `loss`
  itself unless that is among it.
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
    metrics = {'loss': loss, **metrics}
    return replica._replace(
      grads=grads, model_state=model_state, metrics=metrics
    ), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    del shapes
    return (Work(np.ones((len(steps), num_replicas), bool)),)

  return ReplicaTransformation(update, cost=cost)


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
  check_optax('local_update', tx)

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
    check_gradient('local_update', replica)
    updates, opt_state = optimizer_updates(tx, replica, context)
    params = optax.apply_updates(replica.params, updates)
    return replica._replace(params=params, opt_state=opt_state), state

  return ReplicaTransformation(update, init)


def optimizer_updates(
  tx: optax.GradientTransformation, replica: Replica, context: Context
) -> tuple[ArrayTree, ArrayTree]:
  """What `tx` would add to the parameters, and its next state."""
  tx = optax.with_extra_args_support(tx)
  opt_state = _set_clock(replica.opt_state, context.step)
  return over_block(tx.update)(replica.grads, opt_state, replica.params)


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
  check_optax('reset_buffers', tx)
  check_schedule('when', when)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def fresh(replica: Replica) -> Replica:
      opt_state = over_block(tx.init)(replica.params)
      return replica._replace(opt_state=opt_state)

    return at_steps(when, context.step, fresh, replica), state

  return ReplicaTransformation(update)


def while_active(
  local_steps: Sequence[int], *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages on replica i in the first I_i steps of each round.

  A round is max_i I_i steps. Later in it the replica keeps all it has; with one
  replica per device it then computes nothing, and in a block the result is
  discarded. The metric `active` says which replicas worked, 1 or 0; the others'
  metrics are 0. The stages must not communicate: replicas are not in step here.

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
    check_silent('while_active', inner, replica, num_replicas)
    return inner.init(replica, num_replicas)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    limit = jnp.asarray(counts, jnp.int32)[context.replica]
    active = context.step % round_length < limit
    return update_where(active, inner, replica, state, context)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    worked = steps[:, None] % round_length < np.asarray(counts)
    return tuple(
      Work(entry.active & worked) if isinstance(entry, Work) else entry
      for entry in inner.cost(shapes, num_replicas, steps)
    )

  return ReplicaTransformation(update, init, cost, inner.output)


def update_where(
  active: Array,
  inner: ReplicaTransformation,
  replica: Replica,
  state: ArrayTree,
  context: Context,
) -> tuple[Replica, ArrayTree]:
  """`inner.update` on the active replicas; the others keep all they have.

  The others' gradients and metrics are zeros.

  Args:
    active: bool[V].
    inner: a stage that does not communicate.
    replica: the block.
    state: of `inner`.
    context: of the step.
  """

  def run(args: tuple[Replica, ArrayTree]) -> tuple[Replica, ArrayTree]:
    replica, state = inner.update(*args, context)
    if not replica.metrics:
      return replica, state
    metrics = {**replica.metrics, 'active': jnp.ones(active.shape, jnp.int32)}
    return replica._replace(metrics=metrics), state

  def rest(args: tuple[Replica, ArrayTree]) -> tuple[Replica, ArrayTree]:
    replica, state = args
    after = jax.eval_shape(run, args)[0]
    grads, metrics = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), (after.grads, after.metrics)
    )
    return replica._replace(grads=grads, metrics=metrics), state

  if active.shape[0] == 1:
    return lax.cond(active[0], run, rest, (replica, state))
  return choose(active, run((replica, state)), rest((replica, state)))


def choose(active: Array, new: ArrayTree, old: ArrayTree) -> ArrayTree:
  """Row by row of the block: new where active."""
  pick = over_block(jnp.where)
  return jax.tree.map(lambda x, y: pick(active, x, y), new, old)

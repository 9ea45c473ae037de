"""LOCAL: the gradient, and the optimizers that use it.

`gradient` and `local_update` make up a local step. `outer_update` runs an
optimizer on two registers. `restart` resets an optimizer's buffers.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.base import (
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Work,
  chain,
  over_block,
)
from prsgd_jax.checks import check_optax, check_register, what_to_type
from prsgd_jax.mixing.payload import cast_like, is_inexact, widen
from prsgd_jax.names import FIELDS, names
from prsgd_jax.optimizers.evaluation_points import evaluation_points
from prsgd_jax.optimizers.optimizer_clocks import (
  accumulation,
  check_no_own_schedule,
  own_schedule,
  set_clock,
)
from prsgd_jax.tracing.isolation import over_block_isolated
from prsgd_jax.tracing.keys import renew
from prsgd_jax.tree_types import describe


def gradient(at: str = 'params') -> ReplicaTransformation:
  """Take G_i, the gradient of this step's batch at a point.

  It assigns `grads`, `model_state` and `metrics`. The loss function
  returns the metrics. The entry `loss` is added unless it exists.

  Args:
    at: the name of the register that holds the point, with the structure and
      shapes of `params`. Default: 'params'.

  Raises:
    ValueError: if `at` is not a name; from `init`, if the register and `params`
      have different shapes; from `update`, if the loss function returns a
      metric named 'active'.

  Example:
    >>> import prsgd_jax as pr
    >>> stages = (pr.let(ahead=lambda params, v: params + v),
    ...           pr.gradient('ahead'))
  """

  check_register('at', at)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    check_alike(f'gradient({at!r})', at, 'params', replica)
    grads = jax.tree.map(jnp.zeros_like, replica.params)
    return replica._replace(grads=grads), ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    point = cast_like(replica.get(at), replica.params)
    (loss, (model_state, metrics)), grads = context.value_and_grad(
      point, replica.model_state
    )
    if 'active' in metrics:
      raise ValueError(
        "the metric 'active' is reserved; give the metric of the loss function "
        'another name'
      )
    metrics = {'loss': loss, **metrics}
    if context.watch is not None:
      metrics |= context.watch(point, loss, grads)
    if 'active' in replica.metrics:  # from an earlier gradient under `where`
      metrics['active'] = jnp.ones_like(replica.metrics['active'])
    return replica._replace(
      grads=grads, model_state=model_state, metrics=metrics
    ), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    del shapes
    return (Work(np.ones((len(steps), num_replicas), bool)),)

  found = names(
    reads={at, 'params', 'model_state'},
    writes=('grads', 'model_state', 'metrics'),
  )
  return ReplicaTransformation(update, init, cost, names=found)


def local_update(
  tx: optax.GradientTransformation, *, into: str | None = None
) -> ReplicaTransformation:
  """Take one optimizer step of every replica: x_i <- x_i + tx(G_i).

  *Schedules.* optax counts steps itself, to evaluate the schedules of learning
  rates, other hyperparameters and noise. Here these counts are set to the
  engine's step, the only clock. So all replicas read equal values, even a
  replica that was inactive or whose buffers were reset. Inside
  `optax.MultiSteps` the clock is the number of updates: the step divided by the
  number of accumulated gradients. A step that `optax.apply_if_finite` rejects
  counts. `where` and `restart` reject the few optimizers whose counts cannot be
  set.

  *Random numbers.* Keys in the state of a noisy optimizer, such as
  `optax.add_noise`, are replaced at every step. The new keys are a function of
  the seed of the run, the replica and the step; the key passed to the optimizer
  is not used. So replicas draw different numbers, a reset does not repeat them,
  and averages do not change keys.

  *Output.* The output is the point at which the result of `tx` is evaluated.
  For `optax.contrib.schedule_free` and a few other optimizers it is not
  `params`; see `evaluated_at`.

  Args:
    tx: an optax transformation of (grads, state, params). Its state is the
      register `opt_state`.
    into: the name of a register that receives the step tx(G_i), in float32 or
      wider; the parameters are then not changed. Default: none, the step is
      added to the parameters.

  Raises:
    ValueError: if `tx` is not an optax transformation, or if `into` is not the
      name of a free register; if an algorithm has two of these stages; from
      `init`, if the evaluation point of `tx` is unknown.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stages = pr.gradient(), pr.local_update(optax.sgd(0.1), into='u')
  """
  check_optax('tx', tx)
  if into is not None:
    check_register('into', into)
  if into in {*FIELDS, 'weight'} - {'grads'}:
    raise ValueError(
      f'into receives a step, which cannot be stored in the register {into!r}; '
      "use another name, such as 'u'"
    )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    replica = replica._replace(opt_state=over_block(tx.init)(replica.params))
    jax.eval_shape(output, replica, ())  # because it rejects some optimizers
    mark = own_schedule(tx, replica.opt_state)
    if into is None:
      return replica, mark
    if not replica.has(into):
      replica = replica.set({into: widen(replica.params)})
    check_alike(f'local_update(into={into!r})', into, 'params', replica)
    return replica, mark

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    updates, opt_state = optimizer_updates(tx, replica, context)
    if into is None:
      new = {'params': optax.apply_updates(replica.params, updates)}
    else:
      new = {into: widen(updates)}
      if replica.has(into):
        new = {into: cast_like(updates, replica.get(into))}
    return replica.set({**new, 'opt_state': opt_state}), state

  def output(replica: Replica, state: ArrayTree) -> Replica:
    del state
    points = evaluation_points(replica.params, replica.opt_state)
    return replica._replace(params=points)

  found = names(
    reads=('grads', 'params', 'key'),
    writes=('params' if into is None else into, 'opt_state'),
    declares=('opt_state',),
  )
  return ReplicaTransformation(update, init, output=output, names=found)


def check_alike(stage: str, one: str, other: str, replica: Replica) -> None:
  """Check that two registers have equal structures and shapes.

  Registers that hold no value yet are not checked.

  Raises:
    ValueError: if the structures or shapes differ.
  """
  if not (replica.has(one) and replica.has(other)):
    return
  found, wanted = (
    (jax.tree.structure(x), [leaf.shape[1:] for leaf in jax.tree.leaves(x)])
    for x in (replica.get(one), replica.get(other))
  )
  if found != wanted:
    raise ValueError(
      f'{stage}: registers {one!r} and {other!r} must have the same structure '
      f'and shapes, got {found} and {wanted}'
    )


def optimizer_updates(
  tx: optax.GradientTransformation, replica: Replica, context: Context
) -> tuple[ArrayTree, ArrayTree]:
  """Return the step that `tx` adds to the parameters, and its next state."""
  opt_state = set_clock(replica.opt_state, context.step, accumulation(tx))
  opt_state = renew(opt_state, context.key)
  grads = replica.grads
  if isinstance(grads, optax.LookaheadParams):
    grads = grads.fast  # because the loss does not depend on the slow ones
  tx = optax.with_extra_args_support(tx)
  try:
    update = over_block_isolated('the optimizer', tx.update)
    return update(grads, opt_state, replica.params)
  except (TypeError, ValueError) as error:
    if not re.search('missing .* argument|must be provided', str(error)):
      raise
    raise ValueError(
      f'the optimizer requires more than (grads, state, params): {error}; use '
      'one that does not depend on the value of the loss, unlike optax.lbfgs, '
      'polyak_sgd and reduce_on_plateau'
    ) from error


def outer_update(
  tx: optax.GradientTransformation, *, of: str, at: str
) -> ReplicaTransformation:
  """Take an optimizer step of one register along another: at <- at + tx(of).

  It models the optimizer of one server, which every replica computes for
  itself. The state of `tx` is local to the stage, and its schedules count the
  calls of the stage. A noisy `tx` draws equal numbers on all replicas, so that
  replicas with equal `of` and `at` stay equal. It does so under gossip, too,
  because a stage cannot know whether replicas are equal. The numbers are a
  function of the seed of the run and the step. Integer leaves keep their
  values.

  Args:
    tx: an optax transformation.
    of: the name of the register that is used as the gradient.
    at: the name of the register to update.

  Raises:
    ValueError: if `tx` is not an optax transformation, or if `of` or `at` is
      not a name; from `init`, if the registers have different shapes.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stage = pr.outer_update(optax.sgd(0.7), of='delta', at='x0')
  """
  check_optax('tx', tx)
  check_register('of', of)
  check_register('at', at)
  tx = optax.with_extra_args_support(tx)

  def of_floats(point: ArrayTree) -> optax.GradientTransformationExtraArgs:
    floats = jax.tree.map(is_inexact, point)
    if all(jax.tree.leaves(floats)):
      return tx
    return optax.masked(tx, floats)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    check_alike('outer_update', of, at, replica)
    point = replica.get(at) if replica.has(at) else replica.params
    return replica, over_block(of_floats(point).init)(widen(point))

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    # Widen both registers, so that the state keeps its dtypes.
    along, point = widen((replica.get(of), replica.get(at)))
    state = renew_alike(state, context)
    step = over_block_isolated('the optimizer', of_floats(point).update)
    updates, state = step(along, state, point)
    moved = jax.tree.map(
      lambda x, u: x + u if is_inexact(x) else x, point, updates
    )
    return replica.set({at: cast_like(moved, replica.get(at))}), state

  found = names(reads={of, at, 'shared_key'}, writes=(at,))
  return ReplicaTransformation(update, init, names=found)


def renew_alike(state: ArrayTree, context: Context) -> ArrayTree:
  """Replace the keys in a state by keys that are equal on all replicas."""
  key = context.shared_key
  if key is not None:
    key = jnp.broadcast_to(key, context.replica.shape)
  return renew(state, key)


def restart(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """Reset the buffers of `local_update(tx)` at the current parameters.

  Momentum becomes zero. Adam's count is reset too, because zero moments with an
  old count would make the next step a third larger. Schedules continue, because
  they read the engine's step, and noise is not repeated.

  Args:
    tx: the optimizer of `local_update`, or one with an equal state structure.

  Raises:
    ValueError: if `tx` is not an optax transformation; from `init`, or from
      `update` if `local_update` comes later in the chain, if the state of `tx`
      has a different structure, or if a reset would restart a schedule of `tx`.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> average = pr.chain(pr.sync(pr.mixing.mean()), pr.restart(tx))
    >>> algorithm = pr.k_avg(tx, period=4, average=average)
  """
  check_optax('tx', tx)

  def fresh(replica: Replica) -> ArrayTree:
    made = over_block(tx.init)(replica.params)
    check_no_own_schedule(
      'restart', 'a reset restarts counts', own_schedule(tx, made)
    )
    found, kept = map(jax.tree.structure, (made, replica.opt_state))
    if found != kept:  # type: ignore[operator]
      raise ValueError(
        f'restart expects the optimizer of local_update with the state {kept}, '
        f'got an optimizer with the state {found}'
      )
    return cast_like(made, replica.opt_state)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    # Skipped without a state, because local_update may come later.
    if replica.opt_state != ():
      jax.eval_shape(fresh, replica)
    return replica, ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    del context
    return replica._replace(opt_state=fresh(replica)), state

  return ReplicaTransformation(
    update,
    init,
    names=names(reads=('params', 'opt_state'), writes=('opt_state',)),
  )


def step(
  local: optax.GradientTransformation | ReplicaTransformation,
) -> ReplicaTransformation:
  """Return a local step, made from an optimizer or a stage.

  Args:
    local: an optimizer, which becomes `chain(gradient(), local_update(local))`;
      or a stage that takes a gradient and updates `params`, which is returned
      unchanged.

  Raises:
    ValueError: if `local` is neither an optax transformation nor a stage.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stage = pr.step(optax.sgd(0.1))
  """
  if isinstance(local, ReplicaTransformation):
    return local
  if not isinstance(local, optax.GradientTransformation):
    raise ValueError(
      'a local step is an optax transformation such as optax.sgd(0.1), or a '
      f'stage such as pr.sgp(optax.sgd(0.1)), got {describe(local)}'
      f'{what_to_type(local)}'
    )
  return chain(gradient(), local_update(local))

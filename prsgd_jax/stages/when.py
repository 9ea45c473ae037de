"""WHEN: `at` runs stages at some steps only.

The condition is a schedule, or `anyone`, a decision that depends on the data
and that all replicas share.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  ArrayTree,
  Change,
  Context,
  Cost,
  Decided,
  Replica,
  ReplicaTransformation,
  Schedule,
  Traffic,
  Work,
  chain,
)
from prsgd_jax.checks import check_register, check_schedule
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.mixings import mean, traffic
from prsgd_jax.names import Names
from prsgd_jax.stages.conditional import check_kept
from prsgd_jax.stages.presence import presence

# Bytes that one replica sends to share its flag, a float32.
FLAG_BYTES = 4


class Anyone(NamedTuple):
  """A joint decision: whether a register is nonzero on any replica."""

  register: str


def anyone(register: str) -> Anyone:
  """Return the condition, for `at`, that at least one replica raises a flag.

  All replicas decide equally, because the flags are reduced over them first. In
  each check, every replica sends one flag of four bytes.

  Args:
    register: the name of a register with one number for each replica. Any
      number except 0 raises the flag.

  Raises:
    ValueError: if `register` is not a name.

  Example:
    >>> import prsgd_jax as pr
    >>> stages = (pr.compute(far=lambda params: abs(params).max() > 1),
    ...           pr.at(pr.anyone('far'), pr.sync(pr.mixing.mean())))
  """
  return Anyone(check_register('anyone(register)', register))


def at(
  when: Schedule | Anyone, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Run the stages only at some steps.

  It compiles to one `lax.cond` over the registers that the stages may assign
  and that hold a value before it. A register first assigned inside is dropped
  at the end. A schedule known while tracing, such as `always()`, compiles to no
  conditional.

  Args:
    when: a schedule such as `every(4)`, or `anyone(register)` for a
      data-dependent decision.
    *stages: the stages, in order.

  Raises:
    ValueError: if `when` is neither; if stages inside `at(anyone(...))`
      communicate by a schedule, because their rounds could not be counted; from
      `init`, if a schedule does not return one bool.

  Example:
    >>> import prsgd_jax as pr
    >>> when = pr.schedules.every(4)
    >>> stage = pr.at(when, pr.sync(pr.mixing.mean()), pr.let(x0='params'))
  """
  if isinstance(when, Anyone):
    return _at_anyone(when.register, chain(*stages))
  check_schedule('at', when)
  inner = chain(*stages)
  found = inner.names

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    step = jax.ShapeDtypeStruct((), jnp.int32)
    _check_fires(jax.eval_shape(when, step))
    after, state = inner.init(replica, num_replicas)
    return _only_known(after, replica, found), state

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    return _run_if(
      when(context.step), inner, found.writes, replica, state, context
    )

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    fires = np.broadcast_to(np.asarray(when(steps), bool), steps.shape)
    return tuple(
      _masked(entry, fires) for entry in inner.cost(shapes, num_replicas, steps)
    )

  return ReplicaTransformation(
    update,
    init,
    cost,
    inner.output,
    found._replace(assigns=frozenset()),
    (False,) * len(inner.talks),
    inner.resize,
  )


def _at_anyone(
  register: str, inner: ReplicaTransformation
) -> ReplicaTransformation:
  if not all(inner.talks):
    raise ValueError(
      'at(anyone(...)) counts its rounds, so stages inside must communicate '
      'every time, got a schedule inside; move it outside, around the '
      'at(anyone(...))'
    )
  found = inner.names

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    flag = replica.get(register) if replica.has(register) else None
    block = jax.tree.leaves(replica.params)[0].shape[:1]
    if flag is not None and jax.tree.map(jnp.shape, flag) != block:
      raise ValueError(
        f'anyone({register!r}) expects one flag for each replica, got '
        f'{jax.tree.map(jnp.shape, flag)}; assign it with pr.compute'
      )
    after, state = inner.init(replica, num_replicas)
    none_yet = Decided(jnp.zeros(block, jnp.int32))
    counts = (none_yet,) * len(inner.talks)
    return _only_known(after, replica, found), (counts, state)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def counted(
      replica: Replica, state: ArrayTree, context: Context
    ) -> tuple[Replica, ArrayTree]:
      counts, state = state
      replica, state = inner.update(replica, state, context)
      counts = tuple(Decided(count.rounds + 1) for count in counts)
      return replica, (counts, state)

    # Compared before the mean, because flags of opposite sign would cancel.
    raised = replica.get(register) != 0
    present = presence(replica)
    if present is not None:
      raised &= present
    flags = raised.astype(jnp.float32)
    fires = collectives.replica_mean(flags)[0] != 0
    stage = inner._replace(update=counted)
    return _run_if(fires, stage, found.writes, replica, state, context)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    flag = traffic(mean(), FLAG_BYTES, num_replicas, steps)
    inside = inner.cost(shapes, num_replicas, steps)
    sent = [entry for entry in inside if isinstance(entry, Traffic)]
    if len(sent) < len(inside):
      raise ValueError(
        'at(anyone(...)) cannot count gradients; move pr.gradient() outside'
      )
    return (flag, *(entry._replace(fires=None) for entry in sent))

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return inner.output(replica, state[1])

  def resize(
    replica: Replica, state: ArrayTree, change: Change
  ) -> tuple[Replica, ArrayTree]:
    counts, state = state
    replica, state = inner.resize(replica, state, change)
    return replica, (counts, state)

  return ReplicaTransformation(
    update,
    init,
    cost,
    output,
    found._replace(
      reads=found.reads | {register},
      uses=found.uses | {register},
      assigns=frozenset(),
    ),
    (True,) + (False,) * len(inner.talks),
    resize,
  )


def _run_if(
  fires: Any,
  inner: ReplicaTransformation,
  writes: Iterable[str],
  replica: Replica,
  state: ArrayTree,
  context: Context,
) -> tuple[Replica, ArrayTree]:
  """Run `inner.update` under a condition that is equal on all replicas."""
  carried = [name for name in sorted(writes) if replica.has(name)]

  def run(operand: tuple[dict, ArrayTree]) -> tuple[dict, ArrayTree]:
    values, state = operand
    after, new_state = inner.update(replica.set(values), state, context)
    kept = {name: after.get(name) for name in carried}
    check_kept('at', (values, state), (kept, new_state))
    return kept, new_state

  operand = ({name: replica.get(name) for name in carried}, state)
  if isinstance(fires, jax.Array):
    values, state = lax.cond(fires, run, lambda operand: operand, operand)
  else:
    values, state = run(operand) if fires else operand
  return replica.set(values), state


def _check_fires(fires: Any) -> None:
  """Raise ValueError unless a schedule returns one bool for a step."""
  is_bool = getattr(fires, 'dtype', None) == np.bool_
  if not is_bool or fires.shape != ():
    raise ValueError(
      'at expects a schedule that returns one bool for a step, such as '
      'lambda step: step % 4 == 3, got one that returns '
      f'{getattr(fires, "dtype", None)}{list(getattr(fires, "shape", ()))}'
    )


def _only_known(after: Replica, before: Replica, found: Names) -> Replica:
  """Drop the registers that were first assigned inside an `at`."""
  known = {
    name: x
    for name, x in after.registers.items()
    if name in before.registers or name in found.declares
  }
  grads = after.grads if before.has('grads') else before.grads
  return after._replace(registers=known, grads=grads)


def _masked(entry: Cost, fires: np.ndarray) -> Cost:
  if isinstance(entry, Work):
    return entry._replace(active=entry.active & fires[:, None])
  if entry.fires is None:
    return entry
  return entry._replace(fires=entry.fires & fires)

"""INJECTION: an algorithm in which faults happen."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Change,
  Context,
  Cost,
  Decided,
  Replica,
  ReplicaTransformation,
  Traffic,
  Work,
  over_block,
  select,
)
from prsgd_jax.faults.events import (
  CRASH,
  KINDS,
  LATE,
  SLOW,
  Fault,
  union,
)
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.payload import is_inexact
from prsgd_jax.names import PRESENT
from prsgd_jax.optimizers.optimizer_clocks import check_no_own_schedule
from prsgd_jax.stages.communication import SyncState
from prsgd_jax.stages.presence import without_presence
from prsgd_jax.tracing.keys import from_data, to_data

REJOIN = ('peer', 'stale')
# Fields of a replica that last from step to step.
LASTING = ('params', 'opt_state', 'model_state')


def inject(
  algorithm: ReplicaTransformation, *faults: Fault, rejoin: str = 'peer'
) -> ReplicaTransformation:
  """Return an algorithm in which faults happen.

  - A *dead* replica (`crash`) takes no gradient, sends nothing and receives
    nothing. All of its registers keep their values. It is left out of
    evaluations and of the average of the replicas.
  - A *late* replica (`late`) trains, but sends nothing; see `late`.
  - A *slow* replica (`slow`) delays all others in the modeled time.
  - A replica's gradient or parameters become *NaN* (`nan`).

  A mean is over the replicas that are present; on a graph, the links of absent
  replicas are down, see `sync`. If no present replica has weight, a round
  changes nothing. Without faults the results equal the plain algorithm, to
  rounding. Wrap the whole algorithm.

  The ledger counts the gradients that dead replicas did not take, and the
  rounds in which replicas did not take part. Nobody waits for an absent
  replica. The bytes are those of a replica that misses no round. Membership is
  known to all and costs no bytes.

  *Limits.* Corrections that sum to zero over all N replicas
  (`gradient_tracking`, `d2`, `extra`, slowly `k_gt`) remain exact with delays,
  and after a crash with `rejoin='stale'`. While a replica is dead, its last
  gradient counts. With `rejoin='peer'` a copied correction leaves a bias.
  Codecs of differences (`choco_sgd`, `sparq_sgd`), `relay_sgd`, `edit` and
  `delayed_nesterov` refuse crashes and delays.

  Args:
    algorithm: the whole algorithm.
    *faults: the faults, in any order.
    rejoin: state of a replica that comes back. 'peer': a copy of all registers
      and buffers of the first replica that was alive; the ledger counts the
      message. 'stale': what it had when it crashed; its copies of what all
      replicas share, such as x0 of `diloco`, are then out of date. Default:
      'peer'.

  Raises:
    ValueError: if an argument has the wrong type; from `init`, if a fault names
      a replica that does not exist, or if the algorithm does not support absent
      replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.faults.inject(
    ...     pr.k_avg(optax.sgd(0.1), period=4),
    ...     pr.faults.crash(3, at=100, until=200),
    ...     pr.faults.late(7),
    ...     pr.faults.nan(5, at=150))
  """
  if not isinstance(algorithm, ReplicaTransformation):
    raise ValueError(
      'inject expects an algorithm such as pr.k_avg(optax.sgd(0.1), period=4), '
      f'got {algorithm!r}'
    )
  for fault in faults:
    if not isinstance(fault, Fault) or fault.kind not in KINDS:
      raise ValueError(
        'inject expects faults such as pr.faults.crash(3, at=100), got '
        f'{fault!r}'
      )
  if rejoin not in REJOIN:
    raise ValueError(f"rejoin must be 'peer' or 'stale', got {rejoin!r}")
  kinds = {fault.kind for fault in faults}
  crashes, absences = CRASH in kinds, bool({CRASH, LATE} & kinds)
  copies = rejoin == 'peer' and any(
    fault.kind == CRASH and fault.returns for fault in faults
  )
  dead, late = union(faults, CRASH), union(faults, LATE)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    for fault in faults:
      fault.check(num_replicas)
    block = jax.tree.leaves(replica.params)[0].shape[0]
    if absences:
      replica = replica.set({PRESENT: jnp.ones(block, bool)})
    replica, state = algorithm.init(replica, num_replicas)
    if crashes:
      check_no_own_schedule(
        'pr.faults.crash', 'counts fall behind on dead replicas', state
      )
    alive = jnp.ones(block, bool) if crashes else ()
    return without_presence(replica), (alive, state)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    _, state = state
    if copies:
      replica, state = _copy_to_returning(dead, replica, state, context)
    alive = ~dead(context.step, context.replica)
    if absences:
      present = alive & ~late(context.step, context.replica)
      replica = replica.set({PRESENT: present})
    before = replica
    replica, context = _spoiled(faults, replica, context)
    after, new_state = algorithm.update(replica, state, context)
    if crashes:
      after = _frozen(alive, after, before)
      new_state = _frozen_state(alive, new_state, state)
    return without_presence(after), (alive if crashes else (), new_state)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    at = steps[:, None], np.arange(num_replicas)[None]
    is_dead = dead(*at)
    present = ~(is_dead | late(*at))
    slowdown = _slowdown(faults, *at)
    spent = tuple(
      entry._replace(
        active=entry.active & ~is_dead,
        lost=entry.active & is_dead if crashes else None,
        slowdown=slowdown,
      )
      if isinstance(entry, Work)
      else entry._replace(present=present if absences else None)
      for entry in algorithm.cost(shapes, num_replicas, steps)
    )
    if not copies:
      return spent
    was = dead(steps[:, None] - 1, at[1]) & (steps[:, None] > 0)
    fires = (was & ~is_dead).any(axis=1) & (~was & ~is_dead).any(axis=1)
    size = float(_state_bytes(shapes))
    return (Traffic(fires, size, 1, 'global', 1), *spent)

  def output(replica: Replica, state: ArrayTree) -> Replica:
    alive, state = state
    replica = algorithm.output(replica, state)
    return replica.set({PRESENT: alive}) if crashes else replica

  def resize(
    replica: Replica, state: ArrayTree, change: Change
  ) -> tuple[Replica, ArrayTree]:
    replica, inside = algorithm.resize(replica, state[1], change)
    alive = np.ones(change.num_replicas, bool) if crashes else ()
    return replica, (alive, inside)

  talks = (False,) * copies + algorithm.talks
  return ReplicaTransformation(
    update, init, cost, output, algorithm.names, talks, resize
  )


def _spoiled(
  faults: tuple[Fault, ...], replica: Replica, context: Context
) -> tuple[Replica, Context]:
  """Return the inputs of a step, with NaN where a fault puts it."""
  kinds = {fault.kind for fault in faults}
  at = context.step, context.replica
  if 'nan_params' in kinds:
    ill = union(faults, 'nan_params')(*at)
    replica = replica._replace(params=_to_nan(ill, replica.params))
  if 'nan_grads' not in kinds:
    return replica, context
  spoils = union(faults, 'nan_grads')(*at)

  def value_and_grad(params: ArrayTree, model_state: ArrayTree) -> Any:
    value, grads = context.value_and_grad(params, model_state)
    return value, _to_nan(spoils, grads)

  return replica, context._replace(value_and_grad=value_and_grad)


def _to_nan(ill: Array, tree: ArrayTree) -> ArrayTree:
  """Return the tree with NaN for each replica that is ill."""

  def spoil(x: Array) -> Array:
    if not is_inexact(x):
      return x
    return over_block(lambda bad, x: jnp.where(bad, jnp.nan, x))(ill, x)

  return jax.tree.map(spoil, tree)


def _frozen(alive: Array, after: Replica, before: Replica) -> Replica:
  """Return the replicas after a step in which dead ones did nothing."""
  held = [*LASTING, *(n for n in before.registers if n != PRESENT)]
  old = {name: before.get(name) for name in held}
  new = {name: after.get(name) for name in held}
  after = after.set(select(alive, new, old))
  if not after.metrics:
    return after
  active = after.metrics.get('active', jnp.ones(alive.shape, jnp.int32))
  metrics = {**after.metrics, 'active': active}
  zeros = jax.tree.map(jnp.zeros_like, metrics)
  return after._replace(metrics=select(alive, metrics, zeros))


def _frozen_state(alive: Array, new: ArrayTree, old: ArrayTree) -> ArrayTree:
  """Return private states that keep the memory of dead replicas.

  Counts of rounds continue, because they must be equal on all replicas.
  """

  def counts(node: Any) -> bool:
    return isinstance(node, SyncState | Decided)

  def choose(x: Any, y: Any) -> Any:
    if isinstance(x, Decided):
      return x
    if isinstance(x, SyncState):
      return x._replace(memory=select(alive, x.memory, y.memory))
    return select(alive, x, y)

  return jax.tree.map(choose, new, old, is_leaf=counts)


def _copy_to_returning(
  dead: Any, replica: Replica, state: ArrayTree, context: Context
) -> tuple[Replica, ArrayTree]:
  """Give replicas that come back the state of the first one that was alive."""
  everyone = jnp.arange(
    collectives.num_replicas(context.replica), dtype=jnp.int32
  )
  step = context.step
  is_dead, was_dead = dead(step, everyone), dead(step - 1, everyone)
  was_dead &= step > 0
  back, healthy = was_dead & ~is_dead, ~was_dead & ~is_dead
  donor = everyone[jnp.argmax(healthy)]
  held = {n: replica.get(n) for n in (*LASTING, *replica.registers)}

  def copy(tree: ArrayTree) -> ArrayTree:
    given = to_data(tree)
    is_donor, returns = context.replica == donor, back[context.replica]

    def of_donor(x: Array) -> Array:
      # Integers, because bools do not add.
      number = x.astype(jnp.int32) if x.dtype == bool else x
      own = select(is_donor, number, jnp.zeros_like(number))
      return collectives.replica_sum(own).astype(x.dtype)

    return from_data(
      select(returns, jax.tree.map(of_donor, given), given), tree
    )

  held, state = lax.cond(
    back.any() & healthy.any(), copy, lambda tree: tree, (held, state)
  )
  return replica.set(held), state


def _slowdown(
  faults: tuple[Fault, ...], step: np.ndarray, replica: np.ndarray
) -> np.ndarray | None:
  """Return the factor of the time of each gradient; None if all are 1."""
  slow = [fault for fault in faults if fault.kind == SLOW]
  if not slow:
    return None
  factor = np.ones(np.broadcast_shapes(step.shape, replica.shape))
  for fault in slow:
    factor *= np.where(fault.affects(step, replica), fault.factor, 1.0)
  return factor


def _state_bytes(shapes: Replica) -> int:
  """Return the bytes of the registers that a returning replica receives."""
  held = [shapes.params, shapes.opt_state, shapes.model_state]
  leaves = jax.tree.leaves([*held, dict(shapes.registers)])
  return sum(x.size * x.dtype.itemsize for x in leaves)

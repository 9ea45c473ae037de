"""SCOPES: `algorithm`, a chain of stages whose registers are local.

Scopes let one algorithm be the local step, or the average, of another one
without clashes of register names.
"""

from collections.abc import Callable, Iterable

import numpy as np

from prsgd_jax.base import (
  ArrayTree,
  Change,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  chain,
)
from prsgd_jax.names import CLOCK, FIELDS, PRESENT, Names

# The registers that an algorithm shares with the stages around it.
SHARED = (*FIELDS, *CLOCK, 'weight', PRESENT)


def algorithm(
  name: str, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Chain stages in a scope, so that their registers are local.

  As in a Python function, a register that the stages declare or assign is
  local. The train state and checkpoints store it as `name.register`. A register
  that the stages only read may belong to the surrounding stages. `params`,
  `grads`, `opt_state`, `model_state`, `metrics`, `weight` and `present` are
  shared.

  Args:
    name: the name of the algorithm, a Python identifier.
    *stages: the stages, in the order of the paper's pseudocode.

  Raises:
    ValueError: if `name` is not an identifier, or if `chain` raises it.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> sgp = pr.algorithm(
    ...     'sgp', pr.remember(weight=1.0),
    ...     pr.gradient(), pr.local_update(optax.sgd(0.1), into='u'),
    ...     pr.let(params=lambda params, u, weight: params + u / weight),
    ...     pr.sync(pr.graphs.one_peer_exponential()))
  """
  if not isinstance(name, str) or not name.isidentifier():
    raise ValueError(
      "algorithm expects a name such as 'slowmo' before its stages, got "
      f'{name!r}'
    )
  inner = chain(*stages)
  found = inner.names
  prefix = f'{name}.'
  own = (found.declares | found.writes) - set(SHARED)

  def rename(names: Iterable[str]) -> frozenset[str]:
    return frozenset(prefix + n if n in own else n for n in names)

  def enter(replica: Replica) -> Replica:
    around = {n: x for n, x in replica.registers.items() if n not in own}
    mine = {
      n: replica.registers[prefix + n]
      for n in own
      if prefix + n in replica.registers
    }
    return replica._replace(registers={**around, **mine})

  def leave(inside: Replica, replica: Replica) -> Replica:
    # Drop the names that an `evaluate` inside assigns in the output.
    mine = {
      prefix + n if n in own else n: x
      for n, x in inside.registers.items()
      if n in own or n in ('weight', PRESENT)
    }
    return inside._replace(registers={**replica.registers, **mine})

  return viewed(inner, enter, leave, Names(*map(rename, found)))


def viewed(
  inner: ReplicaTransformation,
  enter: Callable[[Replica], Replica],
  leave: Callable[[Replica, Replica], Replica],
  names: Names,
) -> ReplicaTransformation:
  """Return a stage that sees the replica through a pair of functions.

  Args:
    inner: the stage.
    enter: `replica -> replica`, the replica as the stage sees it.
    leave: `(after, before) -> replica`, the replica as the surrounding stages
      see it. `after` comes from the stage, `before` was passed to `enter`.
    names: the names of the stage as seen from outside.
  """

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    inside, state = inner.init(enter(replica), num_replicas)
    return leave(inside, replica), state

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    inside, state = inner.update(enter(replica), state, context)
    return leave(inside, replica), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    return inner.cost(enter(shapes), num_replicas, steps)

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return leave(inner.output(enter(replica), state), replica)

  def resize(
    replica: Replica, state: ArrayTree, change: Change
  ) -> tuple[Replica, ArrayTree]:
    own = change._replace(before=enter(change.before))
    inside, state = inner.resize(enter(replica), state, own)
    return leave(inside, replica), state

  return ReplicaTransformation(
    update, init, cost, output, names, inner.talks, resize
  )

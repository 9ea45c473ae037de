"""SCOPES: stages under names of their own, `algorithm`."""

from collections.abc import Callable, Iterable

import numpy as np

from prsgd_jax.base import (
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  chain,
)
from prsgd_jax.names import CLOCK, FIELDS, Names

# The registers that an algorithm shares with the stages around it.
SHARED = (*FIELDS, *CLOCK, 'weight')


def algorithm(
  name: str, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Chains the stages under names of their own.

  As in a Python function, a register that the stages declare or assign is
  local. It is called `name.register` in the train state and in checkpoints. A
  register that they only read may belong to the surrounding stages. `params`,
  `grads`, `opt_state`, `model_state`, `metrics` and `weight` are shared. An
  algorithm can therefore be the local step or the average of another one.

  Args:
    name: of the algorithm, an identifier.
    *stages: the stages, in the order of the paper's pseudocode.

  Raises:
    ValueError: if `name` is not an identifier; as `chain`.

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
    # Not the names that an `evaluate` inside gives to its own results.
    mine = {
      prefix + n if n in own else n: x
      for n, x in inside.registers.items()
      if n in own or n == 'weight'
    }
    return inside._replace(registers={**replica.registers, **mine})

  return viewed(inner, enter, leave, Names(*map(rename, found)))


def viewed(
  inner: ReplicaTransformation,
  enter: Callable[[Replica], Replica],
  leave: Callable[[Replica, Replica], Replica],
  names: Names,
) -> ReplicaTransformation:
  """Returns a stage that sees the replica through a pair of functions.

  Args:
    inner: the stage.
    enter: `replica -> the replica that the stage sees`.
    leave: `(the replica after the stage, the replica before) -> replica`.
    names: of the stage as it is seen from outside.
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

  return ReplicaTransformation(update, init, cost, output, names, inner.talks)

"""REQUIREMENTS: checks of a replica before the first step."""

from collections.abc import Callable

from prsgd_jax.base import ArrayTree, Context, Replica, ReplicaTransformation
from prsgd_jax.names import names
from prsgd_jax.stages.presence import presence


def require(check: Callable[[Replica, int], None]) -> ReplicaTransformation:
  """Return a stage that runs a check when the train state is created.

  It does nothing in a step.

  Args:
    check: `(replica, num_replicas) -> None`, called by `init` after the `init`
      of all earlier stages. It must raise ValueError if the algorithm cannot
      run.

  Raises:
    ValueError: if `check` is not callable.

  Example:
    >>> import prsgd_jax as pr
    >>> def even(replica, num_replicas):
    ...   if num_replicas % 2:
    ...     raise ValueError(f'expected an even number, got {num_replicas}')
    >>> stage = pr.require(even)
  """

  if not callable(check):
    raise ValueError(
      'require expects a function of a replica and the number of replicas, got '
      f'{check!r}'
    )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    check(replica, num_replicas)
    return replica, ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    del context
    return replica, state

  return ReplicaTransformation(update, init, names=names())


def require_everyone(reason: str) -> ReplicaTransformation:
  """Return a stage that refuses replicas which crash or come late.

  Args:
    reason: why the algorithm needs all replicas in every round.

  Example:
    >>> stage = require_everyone('this algorithm counts arrivals')
  """

  def check(replica: Replica, num_replicas: int) -> None:
    del num_replicas
    if presence(replica) is not None:
      raise ValueError(
        f'{reason}, so it does not support replicas that crash or come late; '
        'leave out these faults, or use another algorithm'
      )

  return require(check)

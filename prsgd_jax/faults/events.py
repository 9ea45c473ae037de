"""EVENTS: which fault happens to which replica at which step.

A fault is a pure function of step and replica, which the algorithm evaluates on
the devices and the ledger in NumPy.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, Step
from prsgd_jax.checks import (
  MAX_STEPS,
  check_number,
  check_positive_int,
  check_seed,
  check_step,
)

CRASH, LATE, SLOW = 'crash', 'late', 'slow'
# Kind -> register that becomes NaN.
NANS = {'nan_grads': 'grads', 'nan_params': 'params'}
KINDS = (CRASH, LATE, SLOW, *NANS)


class Fault(NamedTuple):
  """One fault, or many at random steps.

  Attributes:
    kind: 'crash', 'late', 'slow', 'nan_grads' or 'nan_params'.
    affects: `(step, replica) -> bool`, whether the fault holds at a step, for
      arrays of JAX and of NumPy that broadcast.
    replicas: the indices of the affected replicas; None for any.
    factor: how many times longer a gradient of a slow replica takes.
    returns: whether a crashed replica may come back.
  """

  kind: str
  affects: Callable[[Step, Step], Any]
  replicas: tuple[int, ...] | None = None
  factor: float = 1.0
  returns: bool = True

  def check(self, num_replicas: int) -> None:
    """Raise ValueError unless the fault fits the number of replicas."""
    if self.replicas and max(self.replicas) >= num_replicas:
      raise ValueError(
        f'a fault names a replica in 0 .. {num_replicas - 1}, got '
        f'{max(self.replicas)}'
      )


def crash(
  replica: int | Sequence[int], *, at: int, until: int | None = None
) -> Fault:
  """Return the fault that a replica is dead for some steps (crash-recovery).

  A dead replica takes no gradient, sends nothing and receives nothing.

  Args:
    replica: index of the replica, or the indices of several, in 0 .. N - 1.
    at: first 0-based step at which it is dead.
    until: the step at which it is back, > `at`. Default: it never is.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import numpy as np
    >>> fault = crash(1, at=2, until=4)
    >>> fault.affects(np.arange(5), 1).tolist()
    [False, False, True, True, False]
  """
  made = _interval('crash', CRASH, replica, at, until)
  return made._replace(returns=until is not None)


def late(
  replica: int | Sequence[int], *, at: int = 0, until: int | None = None
) -> Fault:
  """Return the fault that a replica arrives too late for its rounds.

  It trains, but the rounds at these steps take place without it (an omission
  fault). It receives the result of a mean, and leaves its own work, as the
  straggler in synchronous SGD with backup workers. On a graph, its links are
  down for the round. For a straggler that all wait for, see `slow`.

  Args:
    replica: index of the replica, or the indices of several, in 0 .. N - 1.
    at: first 0-based step at which it is late. Default: 0.
    until: first step at which it no longer is, > `at`. Default: it always is.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import numpy as np
    >>> late((0, 2), at=1).affects(1, np.arange(4)).tolist()
    [True, False, True, False]

  Reference:
    Chen, Pan, Monga, Bengio, Jozefowicz 2016, Revisiting distributed
    synchronous SGD (arXiv 1604.00981), for backup workers.
  """
  return _interval('late', LATE, replica, at, until)


def slow(
  replica: int | Sequence[int],
  *,
  factor: float,
  at: int = 0,
  until: int | None = None,
) -> Fault:
  """Return the fault that a replica is a straggler that the others wait for.

  Only the modeled time changes: its gradients take `factor` times as long. With
  `late` for the same replica, nobody waits.

  Args:
    replica: index of the replica, or the indices of several, in 0 .. N - 1.
    factor: how many times longer a gradient takes, >= 1.
    at: first 0-based step at which it is slow. Default: 0.
    until: first step at which it no longer is, > `at`. Default: it always is.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> slow(3, factor=2.5).factor
    2.5
  """
  factor = check_number(
    'factor', factor, lambda x: 1 <= x < np.inf, '>= 1 and finite'
  )
  return _interval('slow', SLOW, replica, at, until)._replace(factor=factor)


def nan(
  replica: int | Sequence[int],
  *,
  at: int,
  until: int | None = None,
  what: str = 'grads',
) -> Fault:
  """Return the fault that a replica's gradient or parameters become NaN.

  Args:
    replica: index of the replica, or the indices of several, in 0 .. N - 1.
    at: first 0-based step at which it happens.
    until: first step at which it no longer happens, > `at`. Default: `at` + 1,
      one step.
    what: 'grads', the gradient that the step takes; or 'params', the parameters
      at the start of the step. Default: 'grads'.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> nan(0, at=5).kind
    'nan_grads'
  """
  kinds = {register: kind for kind, register in NANS.items()}
  if what not in kinds:
    raise ValueError(f"what must be 'grads' or 'params', got {what!r}")
  at = check_step('at', at)
  return _interval(
    'nan', kinds[what], replica, at, at + 1 if until is None else until
  )


def random_crashes(
  probability: float, *, duration: int, seed: int = 0
) -> Fault:
  """Return crashes at random, independently of each other.

  The steps are cut into blocks of `duration` steps. In each block, each replica
  is dead with a given probability.

  Args:
    probability: the probability of a crash in a block, in [0, 1].
    duration: steps of a block, an integer >= 1.
    seed: seed of the draws, an integer in 0 .. 2^32 - 1, independent of the
      seed of the run, so that the ledger knows the draws. Default: 0.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import numpy as np
    >>> dead = random_crashes(0.5, duration=2).affects(np.arange(4), 0)
    >>> bool(dead[0] == dead[1]), bool(dead[2] == dead[3])
    (True, True)
  """
  return _random(CRASH, probability, duration, seed)


def random_delays(probability: float, *, seed: int = 0) -> Fault:
  """Return delays at random: each replica is late at each step by chance.

  Args:
    probability: the probability at a step, in [0, 1].
    seed: seed of the draws, an integer in 0 .. 2^32 - 1. Default: 0.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import numpy as np
    >>> random_delays(1.0).affects(0, np.arange(3)).tolist()
    [True, True, True]
  """
  return _random(LATE, probability, 1, seed)


def random_nans(
  probability: float, *, what: str = 'grads', seed: int = 0
) -> Fault:
  """Return NaN at random: in each step, on each replica by chance.

  Args:
    probability: the probability at a step, in [0, 1].
    what: 'grads' or 'params'; see `nan`. Default: 'grads'.
    seed: seed of the draws, an integer in 0 .. 2^32 - 1. Default: 0.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> random_nans(0.01).kind
    'nan_grads'
  """
  return _random(nan(0, at=0, what=what).kind, probability, 1, seed)


def _interval(
  name: str,
  kind: str,
  replica: int | Sequence[int],
  at: int,
  until: int | None,
) -> Fault:
  given = replica if isinstance(replica, Sequence) else [replica]
  replicas = tuple(check_step(f'{name}(replica)', r) for r in given)
  if not replicas:
    raise ValueError(f'{name} expects a replica, got none')
  at = min(check_step('at', at), MAX_STEPS)
  end = MAX_STEPS if until is None else check_step('until', until)
  if end <= at:
    raise ValueError(f'until must be > at = {at}, got {until}')
  end = min(end, MAX_STEPS)

  def affects(step: Step, replica: Step) -> Any:
    who = functools.reduce(operator.or_, (replica == r for r in replicas))
    return (step >= at) & (step < end) & who

  return Fault(kind, affects, replicas)


def _random(kind: str, probability: float, duration: int, seed: int) -> Fault:
  p = check_number(
    'probability', probability, lambda x: 0 <= x <= 1, 'in [0, 1]'
  )
  length = min(check_positive_int('duration', duration), MAX_STEPS)
  seed = check_seed('seed', seed)
  # Kinds draw independently, although their seeds may be equal. The numbers are
  # above all steps, because other draws fold in the step, and above 0 and 1,
  # because the engine splits its key and `fold_in` of 0 and 1 gives the halves.
  stream = 2**31 + KINDS.index(kind)

  def drawn(block: Array, replica: Array) -> Array:
    key = jax.random.key(seed, impl='threefry2x32')
    for number in (stream, block, replica):
      key = jax.random.fold_in(key, number)
    return jax.random.uniform(key, dtype=jnp.float32) < p

  def affects(step: Step, replica: Step) -> Any:
    block = step // length
    if isinstance(replica, jax.Array):
      return jnp.vectorize(drawn)(block, replica)
    # Of blocks, because many steps share one draw.
    blocks, at_step = np.unique(block, return_inverse=True)
    index, at_replica = np.unique(replica, return_inverse=True)
    table = jax.vmap(jax.vmap(drawn, (None, 0)), (0, None))(
      jnp.asarray(blocks, jnp.int32), jnp.asarray(index, jnp.int32)
    )
    shape = np.shape(block), np.shape(replica)
    return np.asarray(table)[
      at_step.reshape(shape[0]), at_replica.reshape(shape[1])
    ]

  return Fault(kind, affects)


def union(faults: Sequence[Fault], kind: str) -> Callable[[Step, Step], Any]:
  """Return `(step, replica) -> bool`, whether a fault of a kind holds."""
  found = [fault.affects for fault in faults if fault.kind == kind]

  def affects(step: Step, replica: Step) -> Any:
    none = (step < 0) & (replica < 0)
    return functools.reduce(
      operator.or_, (affects(step, replica) for affects in found), none
    )

  return affects

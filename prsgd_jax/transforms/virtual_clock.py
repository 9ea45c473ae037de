"""VIRTUAL CLOCK: asynchronous replicas, simulated in ticks.

A step of the engine is a tick. A gradient of replica i takes D_i ticks: it is
begun at the ticks 0, D_i, 2 D_i, ... and done at the end of D_i - 1, 2 D_i - 1,
... Nobody waits for a slower one, and a slow one's gradient is old when it is
applied. Everything is a function of the step and the keys, so that such a run
can be repeated and resumed, which one on real clocks cannot.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Work,
  chain,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing import Mixing
from prsgd_jax.payload import mix_inexact, payload_bytes
from prsgd_jax.schedules import any_of, every
from prsgd_jax.transforms.common import (
  at_steps,
  start_turns,
  take_turn,
  traffic,
)
from prsgd_jax.transforms.local import choose, gradient, update_where


def delayed_gradient(durations: Sequence[int]) -> ReplicaTransformation:
  """G_i where the replica was when it began; given out until the next is begun.

  Sets `grads`, and at the ticks at which a replica begins `model_state` and
  `metrics`, as `gradient` does; `active` says which replicas began, 1 or 0, and
  the others' metrics are 0. The gradient, of that tick's batch, is held until
  it is done, which `apply_done` waits for.

  Args:
    durations: D_i, int[N], ticks that a gradient takes on each replica.

  Raises:
    ValueError: if one is not an integer >= 1; from `init`, if there is not one
      for each replica.
  """
  ticks = _check_durations(durations)
  fresh = gradient()

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    _check_number(ticks, num_replicas)
    return replica, jax.tree.map(jnp.zeros_like, replica.params)

  def update(
    replica: Replica, held: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    begins = context.step % _own(ticks, context) == 0
    replica, _ = update_where(begins, fresh, replica, (), context)
    held = choose(begins, replica.grads, held)
    return replica._replace(grads=held), held

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    del shapes, num_replicas
    return (Work(steps[:, None] % np.asarray(ticks) == 0),)

  return ReplicaTransformation(update, init, cost)


def sync_done(
  mixing: Mixing, durations: Sequence[int]
) -> ReplicaTransformation:
  """Whoever is done with a gradient averages with its partners of this tick.

  In each tick the mixing splits the replicas into pairs (or groups). Those in
  which at least one is done take their mean, atomically, the partner's gradient
  going on meanwhile; the others stay as they are. The matrix of a tick is
  doubly stochastic whoever is done.

  Args:
    mixing: the pairs; of groups that take means, W = W' = W^2.
    durations: D_i, int[N], ticks that a gradient takes on each replica.

  Raises:
    ValueError: if `mixing` is none or a duration is not an integer >= 1; from
      `init`, if there is not one for each replica, or the mixing does not fit
      them or does more than to take means in groups.
  """
  if not isinstance(mixing, Mixing):
    raise ValueError(
      f'mixing expects one such as pr.random_matching(), got {mixing!r}'
    )
  ticks = _check_durations(durations)
  when = any_of(*[every(d) for d in sorted(set(ticks))])

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    _check_number(ticks, num_replicas)
    _check_groups(mixing.matrices(num_replicas))
    return replica, start_turns(mixing, replica, num_replicas)

  def update(
    replica: Replica, turns: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    done = _done(ticks, context).astype(jnp.float32)

    def meet(args: tuple[ArrayTree, ArrayTree]) -> tuple[ArrayTree, ArrayTree]:
      params, turns = args
      turn, turns = take_turn(context, turns)
      mean, any_done = mix_inexact(
        lambda tree: mixing.apply(tree, turn), (params, done)
      )
      return choose(any_done > 0, mean, params), turns

    operand = (replica.params, turns)
    params, turns = at_steps(when, context.step, meet, operand)
    return replica._replace(params=params), turns

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    flag = jax.ShapeDtypeStruct((), jnp.float32)  # who is done
    payload = payload_bytes((shapes.params, flag))
    sent = traffic(mixing, payload, when, num_replicas, steps)
    nobody = np.eye(num_replicas, dtype=bool)[None]
    return (sent._replace(waits=nobody, random=False),)

  return ReplicaTransformation(update, init, cost)


def apply_done(
  durations: Sequence[int], *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages, such as `local_update`, where a gradient is done.

  The others keep all they have; the learning rate is that of the tick.

  Args:
    durations: D_i, int[N], ticks that a gradient takes on each replica.
    *stages: what is done with a gradient; they must not communicate.

  Raises:
    ValueError: if a duration is not an integer >= 1; from `init`, if there is
      not one for each replica, or if a stage costs anything.
  """
  ticks = _check_durations(durations)
  inner = chain(*stages)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    _check_number(ticks, num_replicas)
    if inner.cost(replica, num_replicas, np.arange(1)):
      raise ValueError(
        'apply_done takes stages that neither communicate nor take a gradient, '
        'such as pr.local_update, got one that does'
      )
    return inner.init(replica, num_replicas)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    new = inner.update(replica, state, context)
    return choose(_done(ticks, context), new, (replica, state))

  return ReplicaTransformation(update, init, output=inner.output)


def _own(ticks: tuple[int, ...], context: Context) -> Array:
  return jnp.asarray(ticks, jnp.int32)[context.replica]


def _done(ticks: tuple[int, ...], context: Context) -> Array:
  """bool[V]: whether the replica's gradient is done in this tick."""
  return (context.step + 1) % _own(ticks, context) == 0


def _check_durations(durations: Sequence[int]) -> tuple[int, ...]:
  ticks = tuple(check_positive_int('durations', d) for d in durations)
  if not ticks:
    raise ValueError(
      'durations (or speeds) must have one number per replica, got none'
    )
  return ticks


def _check_number(ticks: tuple[int, ...], num_replicas: int) -> None:
  if len(ticks) != num_replicas:
    raise ValueError(
      f'durations (or speeds) must have one number for each of the '
      f'{num_replicas} replicas, got {len(ticks)}'
    )


def _check_groups(matrices: np.ndarray) -> None:
  """Raises ValueError unless each W takes means in disjoint groups."""
  symmetric = np.allclose(matrices, matrices.swapaxes(-1, -2))
  if not (symmetric and np.allclose(matrices @ matrices, matrices)):
    raise ValueError(
      'averages on a virtual clock are means of pairs or other groups, got a '
      'mixing that is none; use pr.random_matching()'
    )

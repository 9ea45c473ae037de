"""WHO: `where` runs stages on some replicas only."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
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
  select,
)
from prsgd_jax.names import CLOCK, Names
from prsgd_jax.optimizers.optimizer_clocks import check_no_own_schedule
from prsgd_jax.stages import blocks
from prsgd_jax.stages.conditional import check_kept
from prsgd_jax.stages.rules import Rule, as_rule


def where(
  active: Any,
  *stages: ReplicaTransformation,
  expected: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> ReplicaTransformation:
  """Run the stages on the active replicas; inactive ones keep their registers.

  With one replica per device, an inactive replica computes nothing. With more,
  all replicas of a block compute, and the results of inactive ones are
  discarded. A register first assigned inside is zero on inactive replicas. The
  metric `active` is 1 on replicas that took a gradient, otherwise 0.

  Args:
    active: a rule as in `let` that returns one bool for each replica.
    *stages: the stages, in order. They must not communicate, because inactive
      replicas would not answer.
    expected: `(steps, num_replicas) -> bool[T, N]`, the active replicas, for
      the ledger. Required if the rule reads anything but `step`, `replica` and
      `num_replicas`. Default: computed from the rule.

  Raises:
    ValueError: if a stage communicates, or if `expected` is missing; from
      `init`, if the rule does not fit the number of replicas, or if inactive
      steps would delay a schedule of an optimizer.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stage = pr.where(pr.stages.first_steps((1, 3)), pr.step(optax.sgd(0.1)))
  """
  rule = as_rule('where', active)
  inner = chain(*stages)
  found = inner.names
  if inner.talks:
    raise ValueError(
      'where expects stages that do not communicate, got one that does; put '
      'sync after where(...)'
    )
  if expected is not None and not callable(expected):
    raise ValueError(
      f'expected must be a function of (steps, num_replicas), got {expected!r}'
    )
  unknown = set(rule.reads) - {'step', 'replica', 'num_replicas'}
  if expected is None and unknown:
    raise ValueError(
      f'where: the active replicas depend on {sorted(unknown)}, which the '
      'ledger does not know; give expected=lambda steps, num_replicas: ...'
    )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    rule.check(num_replicas)
    if all(replica.has(name) for name in set(rule.reads) - {*CLOCK}):
      clock = blocks.clock_at_init(replica, num_replicas)
      jax.eval_shape(lambda r: _who(rule, r, clock), replica)
    replica, state = inner.init(replica, num_replicas)
    check_no_own_schedule(
      'where', 'counts fall behind on inactive replicas', state
    )
    return replica, state

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    # Rule 1, because the stages inside use keys derived from those of rule 0.
    clock = blocks.clock_of(context, 1)
    mask = _who(rule, replica, clock)
    old = {n: replica.get(n) for n in sorted(found.writes) if replica.has(n)}
    operand = (old, state)
    run = functools.partial(_run_active, inner, found, replica, context, mask)
    if mask.shape[0] == 1:
      empty = _zeros(jax.eval_shape(run, operand)[1])
      values, new, state = lax.cond(
        mask[0], run, lambda operand: (operand[0], empty, operand[1]), operand
      )
    else:
      after = run(operand)
      values, new, state = select(mask, after, (old, _zeros(after[1]), state))
    return replica.set({**values, **new}), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    if expected is None:
      clock = {
        'step': steps[:, None],
        'replica': np.arange(num_replicas)[None],
        'num_replicas': num_replicas,
      }
      worked = rule.fn(**{name: clock[name] for name in rule.reads})
    else:
      worked = expected(steps, num_replicas)
    worked = np.broadcast_to(
      np.asarray(worked, bool), (len(steps), num_replicas)
    )
    return tuple(
      Work(entry.active & worked)
      for entry in inner.cost(shapes, num_replicas, steps)
      if isinstance(entry, Work)
    )

  asked = frozenset(rule.reads)
  return ReplicaTransformation(
    update,
    init,
    cost,
    inner.output,
    found._replace(reads=found.reads | asked, uses=found.uses | asked),
    resize=inner.resize,
  )


def _who(rule: Rule, replica: Replica, clock: blocks.Clock) -> Array:
  """Return bool[V], whether each replica is active."""
  active = blocks.call(rule, replica, clock)
  if not blocks.is_scalar(active):
    shapes = jax.tree.map(lambda x: x.shape[1:], active)
    raise ValueError(
      f'where expects a rule that returns one bool per replica, got {shapes}'
    )
  return active.astype(bool)


def _run_active(
  inner: ReplicaTransformation,
  found: Names,
  replica: Replica,
  context: Context,
  mask: Array,
  operand: tuple[dict, ArrayTree],
) -> tuple[dict, dict, ArrayTree]:
  """Return (registers that existed before, new registers, state)."""
  old, state = operand
  after, new_state = inner.update(replica.set(old), state, context)
  # A gradient's new metrics lack 'active'; those of a nested `where` have it.
  # Earlier metrics without it belong to a gradient that all replicas took.
  taken_by_all = replica.metrics and 'active' not in replica.metrics
  if after.metrics and 'active' not in after.metrics and not taken_by_all:
    ones = jnp.ones(mask.shape, jnp.int32)
    after = after._replace(metrics={**after.metrics, 'active': ones})
  new = {
    name: after.get(name)
    for name in sorted(found.assigns)
    if name not in old and after.has(name)
  }
  kept = {name: after.get(name) for name in old}
  check_kept('where', (old, state), (kept, new_state))
  return kept, new, new_state


def _zeros(tree: ArrayTree) -> ArrayTree:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

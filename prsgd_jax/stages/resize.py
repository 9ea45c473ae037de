"""RESIZE: what a register means when the number of replicas changes.

A checkpoint of N replicas may be restored onto N' of them. By default every
register is averaged over the N replicas and handed out to the N'. So whatever
an algorithm keeps of the mean of its replicas still holds, such as corrections
that sum to 0, errors that are sent later, and points that all replicas share.
`on_resize` declares the exceptions. See `engine.resizing`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  NO_KEY,
  ArrayTree,
  Change,
  Context,
  Replica,
  ReplicaTransformation,
)
from prsgd_jax.names import CLOCK, names
from prsgd_jax.stages import blocks
from prsgd_jax.stages.rules import Rule, as_rule

# The register, only for rules of `on_resize`, that holds the N of before.
BEFORE = 'num_replicas_before'


class Kept(NamedTuple):
  """A register kept by the replicas that stay; see `kept`."""

  newcomers: Rule | None


def kept(newcomers: Any = None) -> Kept:
  """Return the declaration that replicas that stay keep their own value.

  Args:
    newcomers: a rule as in `on_resize`, the value of the other replicas.
      Default: copies of the replicas that stay, in turn.

  Raises:
    ValueError: if `newcomers` is not a rule.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.on_resize(params=pr.stages.kept('center'))
  """
  rule = None if newcomers is None else as_rule('kept', newcomers)
  return Kept(rule)


def on_resize(**changed: Any) -> ReplicaTransformation:
  """Declare what registers mean when the number of replicas changes.

  It does nothing in a step. When a checkpoint of N replicas is restored onto N'
  replicas, all registers are averaged first, as `sync(mean())` averages them,
  with `weight` if it exists. Then the rules of all stages are evaluated, in
  order.

  Args:
    **changed: name -> `kept(...)`, or a rule as in `let`. A rule reads the
      averaged registers, `step` (the number of steps done), `replica`,
      `num_replicas` (N') and `num_replicas_before` (N), but no key. A rule may
      raise ValueError, to refuse the change.

  Raises:
    ValueError: if a name belongs to the clock, is 'grads' or 'metrics', or if a
      rule is invalid or reads a key.

  Example:
    >>> import prsgd_jax as pr
    >>> stages = (pr.remember(center='params', v=pr.zeros),
    ...           pr.on_resize(params=pr.stages.kept('center'), v=pr.zeros))
  """
  made = {n: _declared(n, how) for n, how in changed.items()}

  def resize(
    replica: Replica, state: ArrayTree, change: Change
  ) -> tuple[Replica, ArrayTree]:
    for name, how in made.items():
      rule = _rule(how)
      new = None
      if rule is not None:
        new = _evaluated(name, rule, replica, change)
      if isinstance(how, Kept):
        new = _kept(change.before.get(name), new, change)
      replica = replica.set({name: new})
    return replica, state

  rules = [rule for rule in map(_rule, made.values()) if rule is not None]
  reads = {name for rule in rules for name in rule.reads}
  found = names()._replace(
    lasts=frozenset({*made, *reads} - {*CLOCK, BEFORE}),
    resized=frozenset(made),
  )
  return ReplicaTransformation(_nothing, names=found, resize=resize)


def _rule(how: Kept | Rule) -> Rule | None:
  return how.newcomers if isinstance(how, Kept) else how


def _declared(name: str, how: Any) -> Kept | Rule:
  if name in {*CLOCK, BEFORE, 'grads', 'metrics'}:
    raise ValueError(
      f'on_resize expects registers that last for the whole run, got {name!r}'
    )
  if not isinstance(how, Kept):
    how = as_rule(f'on_resize({name}=...)', how)
  rule = _rule(how)
  if rule is not None and (keys := {'key', 'shared_key'} & set(rule.reads)):
    raise ValueError(
      f'on_resize({name}=...) cannot read {min(keys)!r}, because a change '
      'belongs to no step'
    )
  return how


def _evaluated(
  name: str, rule: Rule, replica: Replica, change: Change
) -> ArrayTree:
  """Return a rule's value `[N', ...]` on the averaged replicas."""
  n = change.num_replicas
  # In NumPy, because a rule may look the step up in a schedule.
  step: Any = np.int32(change.step)
  clock = blocks.Clock(step, jnp.arange(n), n, NO_KEY, NO_KEY)
  before = jax.tree.leaves(change.before.params)[0].shape[0]
  scalar = jnp.full(n, before, jnp.int32)
  known = replica.set({BEFORE: scalar})
  return blocks.assign(name, rule, known, clock)


def _kept(
  before: ArrayTree, newcomers: ArrayTree | None, change: Change
) -> ArrayTree:
  rows = jax.tree.map(lambda x: np.asarray(x)[change.origin], before)
  if newcomers is None:
    return rows

  def joined(old: np.ndarray, new: Any) -> np.ndarray:
    stayed = change.stayed
    return np.concatenate([old[:stayed], np.asarray(new)[stayed:]])

  return jax.tree.map(joined, rows, newcomers)


def _nothing(
  replica: Replica, state: ArrayTree, context: Context
) -> tuple[Replica, ArrayTree]:
  del context
  return replica, state

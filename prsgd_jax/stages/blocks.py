"""BLOCKS: evaluation of rules on blocks of replicas.

A rule is a function of one replica. These functions map it over the V replicas
of a block, and check that its result fits the register it is assigned to.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  AXIS_NAME,
  Array,
  ArrayTree,
  Context,
  Replica,
  over_block,
)
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.payload import is_inexact, widen
from prsgd_jax.names import CLOCK
from prsgd_jax.stages.rules import Rule
from prsgd_jax.tracing.isolation import over_block_isolated


class Clock(NamedTuple):
  """Values that a rule may read besides registers; see `Context`."""

  step: Array
  replica: Array
  num_replicas: int
  key: Array
  shared_key: Array


def clock_of(context: Context, rule: int = 0) -> Clock:
  """Return the clock of a rule in a step.

  Args:
    context: the context of the stage.
    rule: the index of the rule among the stage's rules that read a key. Each
      index gets its own keys. Default: 0.
  """
  key, shared_key = context.key, context.shared_key
  if rule:
    # Above the indices of leaves and stages, because they are folded in, too.
    fold = functools.partial(jax.random.fold_in, data=2**31 + rule)
    key = None if key is None else jax.vmap(fold)(key)
    shared_key = None if shared_key is None else fold(shared_key)
  return Clock(
    context.step,
    context.replica,
    collectives.num_replicas(context.replica),
    key,
    shared_key,
  )


def clock_at_init(replica: Replica, num_replicas: int) -> Clock:
  """Return the clock before the first step.

  `step` and the keys have the right shapes but no meaning. The rules of
  `remember`, which are evaluated here, may not read them.
  """
  block = jax.tree.leaves(replica.params)[0].shape[0]
  key = jax.random.key(0, impl='threefry2x32')
  try:
    first = lax.axis_index(AXIS_NAME) * block
  except NameError:  # not in a mapped program, so only shapes matter
    first = 0
  index = jnp.asarray(first + jnp.arange(block), jnp.int32)
  step = jnp.zeros((), jnp.int32)
  return Clock(step, index, num_replicas, jax.random.split(key, block), key)


def call(rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Return a rule's value on whole trees, with floating leaves widened."""
  trees = {n: widen(replica.get(n)) for n in rule.reads if n not in CLOCK}
  return _call(rule, clock, trees, 0)


def compute(name: str, rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Return a rule's value on whole trees, to be assigned to a register.

  Args:
    name: the register to assign. Its present value, if any, sets the dtypes.
    rule: the rule, called once.
    replica: the block.
    clock: the clock of the step.

  Raises:
    ValueError: if the structure or a shape differs from the register's value.
  """
  new = call(rule, replica, clock)
  if name == 'metrics' or not replica.has(name):  # metrics may be added
    return new
  old = replica.get(name)
  _check_structure(f'compute({name}=...)', name, old, 'its rule', new)
  return jax.tree.map(lambda x, y: _fitted('compute', name, x, y), new, old)


def assign(name: str, rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Return a rule's value, computed leaf by leaf in float32 or wider.

  A register with one number per replica is passed along with every leaf of the
  trees. Integer leaves of trees keep their values.

  Args:
    name: the register to assign. Its present value, if any, sets the dtypes.
    rule: the rule, called once for each leaf.
    replica: the block.
    clock: the clock of the step.

  Raises:
    ValueError: if the registers have different structures, or if a result and
      the leaf it replaces have different shapes.
  """
  read = {n: replica.get(n) for n in rule.reads if n not in CLOCK}
  old = replica.get(name) if replica.has(name) else None
  scalars = {n: widen(x) for n, x in read.items() if is_scalar(x)}
  trees = {n: x for n, x in read.items() if n not in scalars}
  every = {**trees, **({} if old is None else {name: old})}
  if not trees and (old is None or is_scalar(old)):
    new = _call(rule, clock, scalars, 0)
    return new if old is None else _fitted('let', name, new, old)
  if old is not None and trees and is_scalar(old) and not is_inexact(old):
    raise ValueError(
      f'let({name}=...) assigns an integer per replica from a tree, but let '
      f'keeps integer leaves of trees; use pr.compute({name}=...)'
    )
  (model, like), *others = every.items()
  for other, tree in others:
    _check_structure(f'let({name}=...)', model, like, other, tree)
  columns = {n: jax.tree.leaves(x) for n, x in trees.items()}
  targets = None if old is None else jax.tree.leaves(old)
  treedef = jax.tree.structure(like)
  size = len(jax.tree.leaves(like))
  leaves = [
    _assign_leaf(
      name,
      rule,
      clock,
      scalars,
      {n: column[i] for n, column in columns.items()},
      None if targets is None else targets[i],
      i,
    )
    for i in range(size)
  ]
  return jax.tree.unflatten(treedef, leaves)


def _assign_leaf(
  name: str,
  rule: Rule,
  clock: Clock,
  scalars: dict[str, Array],
  own: dict[str, Array],
  old: Array | None,
  number: int,
) -> Array:
  around = [*own.values(), *([] if old is None else [old])]
  if not all(map(is_inexact, around)):  # integers keep what they have
    return around[0] if old is None else old
  wide = {n: widen(x) for n, x in own.items()}
  new = _call(rule, clock, {**scalars, **wide}, number)
  if jax.tree.structure(new) != jax.tree.structure(0):  # type: ignore[operator]
    raise ValueError(
      f'let({name}=...): a rule must return one array for a leaf, got '
      f'{jax.tree.structure(new)}; use pr.compute for whole trees'
    )
  if old is None:
    return new
  if new.ndim == 1 and not own:  # one number for each replica
    new = over_block(lambda x, y: jnp.full_like(y, x, x.dtype))(new, old)
  return _fitted('let', name, new, old)


def _fitted(stage: str, name: str, new: Array, old: Array) -> Array:
  """Return the new leaf in the dtype of the leaf it replaces."""
  if is_inexact(new) and not is_inexact(old):
    raise ValueError(
      f'{stage}({name}=...): a leaf of {old.dtype} was assigned floats, which '
      'would be truncated; cast them in the rule, or declare the register with '
      f'a float, such as pr.remember({name}=0.0)'
    )
  if new.shape != old.shape:
    raise ValueError(
      f'{stage}({name}=...): a leaf of shape {old.shape[1:]} was assigned an '
      f'array of shape {new.shape[1:]}'
    )
  return lax.convert_element_type(new, old.dtype)


def _check_structure(
  stage: str, model: str, like: ArrayTree, other: str, tree: ArrayTree
) -> None:
  structures = jax.tree.structure(like), jax.tree.structure(tree)
  if structures[0] != structures[1]:  # type: ignore[operator]
    raise ValueError(
      f'{stage}: registers {model!r} and {other!r} have different structures, '
      f'{structures[0]} and {structures[1]}'
    )


def _call(
  rule: Rule, clock: Clock, trees: dict[str, ArrayTree], number: int
) -> ArrayTree:
  """Map the rule over the block; every leaf of the result is `[V, ...]`."""
  mapped, constant = dict(trees), {}
  for name in rule.reads:
    if name == 'replica':
      mapped[name] = clock.replica
    elif name == 'key':
      fold = functools.partial(jax.random.fold_in, data=number)
      mapped[name] = jax.vmap(fold)(clock.key)
    elif name in CLOCK:
      constant[name] = getattr(clock, name)

  def one(mapped: dict[str, ArrayTree]) -> ArrayTree:
    out = rule.fn(**mapped, **constant)
    return jax.tree.map(lambda x: jnp.asarray(x, _strong_dtype(x)), out)

  size = clock.replica.shape[0]
  if mapped:
    return over_block_isolated('a rule', one)(mapped)
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), one({}))


def _strong_dtype(x: Any) -> Any:
  """Return the strong dtype, because a weak one would cost a second trace."""
  return jnp.result_type(float) if isinstance(x, float) else jnp.result_type(x)


def is_scalar(tree: ArrayTree) -> bool:
  """Return whether a register holds one number for each replica."""
  return isinstance(tree, jax.Array | np.ndarray) and tree.ndim == 1

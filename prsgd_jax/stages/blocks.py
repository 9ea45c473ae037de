"""BLOCKS: rules, evaluated on blocks of replicas."""

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
  """What a rule may read besides registers; see `Context`."""

  step: Array
  replica: Array
  num_replicas: int
  key: Array
  shared_key: Array


def clock_of(context: Context, rule: int = 0) -> Clock:
  """Returns what a rule of a step may read.

  Args:
    context: of the stage.
    rule: its number among the rules of the stage that read a key. Each of them
      has keys of its own.
  """
  key, shared_key = context.key, context.shared_key
  if rule:
    # Above the numbers of leaves and stages, which are folded in as well.
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
  """Returns the clock before the first step.

  `step` and the keys only have the right shapes: `remember`, whose rules are
  evaluated here, may not read them.
  """
  block = jax.tree.leaves(replica.params)[0].shape[0]
  key = jax.random.key(0, impl='threefry2x32')
  try:
    first = lax.axis_index(AXIS_NAME) * block
  except NameError:  # outside of a mapped program, where only shapes matter
    first = 0
  index = jnp.asarray(first + jnp.arange(block), jnp.int32)
  step = jnp.zeros((), jnp.int32)
  return Clock(step, index, num_replicas, jax.random.split(key, block), key)


def call(rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Evaluates a rule on whole trees, floating leaves widened."""
  trees = {n: widen(replica.get(n)) for n in rule.reads if n not in CLOCK}
  return _call(rule, clock, trees, 0)


def compute(name: str, rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Evaluates a rule on whole trees, to assign its result to a register.

  Args:
    name: the register to assign; what it holds gives the dtypes.
    rule: called once.
    replica: the block.
    clock: of the step.

  Raises:
    ValueError: if the result has another structure or other shapes than what
      the register holds.
  """
  new = call(rule, replica, clock)
  if name == 'metrics' or not replica.has(name):  # metrics may be added
    return new
  old = replica.get(name)
  _check_structure(f'compute({name}=...)', name, old, 'its rule', new)
  return jax.tree.map(lambda x, y: _fitted('compute', name, x, y), new, old)


def assign(name: str, rule: Rule, replica: Replica, clock: Clock) -> ArrayTree:
  """Evaluates a rule leaf by leaf, in float32 or wider.

  A register of one number for each replica is passed along with every leaf of
  the trees. Integer leaves of trees keep their values.

  Args:
    name: the register to assign; what it holds gives the dtypes.
    rule: called once for each leaf.
    replica: the block.
    clock: of the step.

  Raises:
    ValueError: if the registers have different structures, or a result another
      shape than the leaf it replaces.
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
      f'let({name}=...): an integer of each replica was assigned from a tree, '
      f'whose integer leaves keep their values; use pr.compute({name}=...)'
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
      f'let({name}=...): a rule gives one array for a leaf, got '
      f'{jax.tree.structure(new)}; use pr.compute for whole trees'
    )
  if old is None:
    return new
  if new.ndim == 1 and not own:  # one number for each replica
    new = over_block(lambda x, y: jnp.full_like(y, x, x.dtype))(new, old)
  return _fitted('let', name, new, old)


def _fitted(stage: str, name: str, new: Array, old: Array) -> Array:
  """The new leaf in the dtype of what it replaces."""
  if is_inexact(new) and not is_inexact(old):
    raise ValueError(
      f'{stage}({name}=...): a leaf of {old.dtype} was assigned floats, which '
      'would be cut to integers; cast it in the rule, or declare it by a '
      f'float, such as pr.remember({name}=0.0)'
    )
  if new.shape != old.shape:
    raise ValueError(
      f'{stage}({name}=...): a leaf of shape {old.shape[1:]} was assigned one '
      f'of shape {new.shape[1:]}'
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
  """Maps the rule over the block; every leaf of the result is `[V, ...]`."""
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
  """The dtype without weakness, which would cost a second trace."""
  return jnp.result_type(float) if isinstance(x, float) else jnp.result_type(x)


def is_scalar(tree: ArrayTree) -> bool:
  """Returns whether a register is one number for each replica."""
  return isinstance(tree, jax.Array | np.ndarray) and tree.ndim == 1

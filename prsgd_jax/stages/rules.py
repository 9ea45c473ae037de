"""RULES: how a register is computed from other registers.

A rule is a function whose parameters name what it reads, or a shorthand for
one: a register's name, a number, `reading(fn, ...)`, `per_replica([...])`. It
is called on the values of one replica, without the block axis.
"""

from collections.abc import Callable, Sequence
import functools
import inspect
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import (
  AXIS_NAME,
  Array,
  ArrayTree,
  Context,
  Replica,
  over_block,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.names import CLOCK
from prsgd_jax.payload import is_inexact, widen


class Rule(NamedTuple):
  """A function of registers and of the clock.

  Attributes:
    fn: called by keyword with the values of one replica.
    reads: the names of its parameters.
    check: `num_replicas -> None`; raises ValueError if the rule does not fit
      that many replicas.
  """

  fn: Callable[..., Any]
  reads: tuple[str, ...]
  check: Callable[[int], None] = lambda num_replicas: None


def as_rule(name: str, given: Any) -> Rule:
  """Returns the rule that `given` stands for.

  Args:
    name: of what is assigned, for messages.
    given: a function whose parameters without defaults name what it reads; the
      name of a register, which is copied; a number; or a `Rule`.

  Raises:
    ValueError: if it is none of these, or its parameters have no names.
  """
  if isinstance(given, Rule):
    return given
  if isinstance(given, str):
    return Rule(lambda **values: values[given], (given,))
  if isinstance(given, bool | int | float | np.number):
    return Rule(lambda: given, ())
  if not callable(given):
    raise ValueError(
      f'{name} expects a function of registers such as lambda params: params, '
      f"a register's name or a number, got {given!r}"
    )
  try:
    parameters = inspect.signature(given).parameters.values()
  except (TypeError, ValueError):
    raise ValueError(
      f'{name}: the parameters of {given!r} are not known; name what it reads '
      'by pr.reading(fn, ...)'
    ) from None
  for parameter in parameters:
    if parameter.kind not in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    ):
      raise ValueError(
        f'{name}: the parameters of a rule name registers, got {parameter}; '
        'name what it reads by pr.reading(fn, ...)'
      )
  required = [p.name for p in parameters if p.default is p.empty]
  return Rule(given, tuple(required))


def reading(fn: Callable[..., Any], *reads: str) -> Rule:
  """Returns the rule that calls `fn` with the named registers, in this order.

  This is the explicit form, for functions whose parameters have other names.

  Args:
    fn: a function of positional arguments.
    *reads: names of registers or of the clock, whose values are passed.

  Raises:
    ValueError: if `fn` is not callable or a name is not a string.

  Example:
    >>> import jax.numpy as jnp, prsgd_jax as pr
    >>> stage = pr.let(delta=pr.reading(jnp.subtract, 'x0', 'params'))
  """
  if not callable(fn) or not all(isinstance(name, str) for name in reads):
    raise ValueError(
      "reading expects a function and names, such as reading(jnp.subtract, 'a',"
      f" 'b'), got {(fn, *reads)!r}"
    )
  return Rule(lambda **values: fn(*(values[r] for r in reads)), reads)


def per_replica(values: Sequence[float] | np.ndarray) -> Rule:
  """Returns the rule that gives each replica a number of its own.

  Args:
    values: one number for each replica, [N].

  Raises:
    ValueError: if `values` is not a list of numbers; from `init`, if its length
      is not N.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(weight=pr.per_replica([1.0, 2.0, 0.5, 1.0]))
  """
  table = np.asarray(values)
  if table.ndim != 1 or table.dtype.kind not in 'iuf':
    raise ValueError(
      f'per_replica expects one number for each replica, got {values!r}'
    )

  def check(num_replicas: int) -> None:
    if len(table) != num_replicas:
      raise ValueError(
        f'expected one number for each of the {num_replicas} replicas, got '
        f'{len(table)}'
      )

  return Rule(lambda replica: jnp.asarray(table)[replica], ('replica',), check)


def first_steps(local_steps: Sequence[int]) -> Rule:
  """Returns the rule for `where` that activates replica i for I_i steps.

  A round is max_i I_i steps. Replica i is active in the first I_i of them.

  Args:
    local_steps: I_i, one integer >= 1 for each replica.

  Raises:
    ValueError: if `local_steps` is empty or has anything but integers >= 1;
      from `init`, if its length is not N.

  Example:
    >>> import numpy as np
    >>> active = first_steps([1, 3]).fn
    >>> active(step=np.arange(3)[:, None], replica=np.arange(2)).tolist()
    [[True, True], [False, True], [False, True]]
  """
  counts = np.array(
    [check_positive_int('local_steps', c) for c in local_steps], np.int32
  )
  if not counts.size:
    raise ValueError('local_steps expects one number per replica, got none')
  round_length = counts.max()

  def active(step: Any, replica: Any) -> Any:
    table = jnp.asarray(counts) if isinstance(replica, jax.Array) else counts
    return step % round_length < table[replica]

  def check(num_replicas: int) -> None:
    if len(counts) != num_replicas:
      raise ValueError(
        f'local_steps must have one number for each of the {num_replicas} '
        f'replicas, got {len(counts)}'
      )

  return Rule(active, ('step', 'replica'), check)


def zeros(params: Array) -> Array:
  """Returns zeros like the parameters; a rule for `remember`.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(u=pr.zeros)
  """
  return jnp.zeros_like(params)


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
    return jax.vmap(one, axis_size=size)(mapped)
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), one({}))


def _strong_dtype(x: Any) -> Any:
  """The dtype without weakness, which would cost a second trace."""
  return jnp.result_type(float) if isinstance(x, float) else jnp.result_type(x)


def is_scalar(tree: ArrayTree) -> bool:
  """Returns whether a register is one number for each replica."""
  return isinstance(tree, jax.Array | np.ndarray) and tree.ndim == 1

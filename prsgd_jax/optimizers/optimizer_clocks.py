"""OPTIMIZER CLOCKS: counts in optax states, set to the engine's step.

optax has three kinds of counts. Counts that only schedules read are set to the
engine's step, so that inactive or reset replicas read the values that all
replicas read. Counts that belong to buffers, such as Adam's for its bias
correction, are kept. Counts that serve both, or that depend on earlier updates,
are correct as long as no replica is inactive or reset; otherwise their
schedules are rejected.
"""

from collections.abc import Iterator
import functools
import types
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ArrayTree

# Types are compared by name, because optax does not export all of them.

# State -> (the count that its schedules read, its value at step 0).
CLOCKS = {
  'ScaleByScheduleState': ('count', 0),
  'InjectHyperparamsState': ('count', 0),
  'InjectStatefulHyperparamsState': ('count', 0),
  'WrappedScheduleState': ('count', 0),
  'WeightDecaySchedule': ('count', 0),
  'AddNoiseState': ('count', 0),
  'ConditionallyTransformState': ('step', 0),
  'ConditionallyMaskState': ('step', 0),
  'ScaleByAdemamixState': ('count_m2', 0),
  'ScheduleFreeState': ('step_count', 1),
}
# States whose inner transformation is skipped at some steps, or reset by optax:
# state -> the function that makes it.
CONDITIONAL = {
  'ConditionallyTransformState': 'optax.conditionally_transform',
  'ConditionallyMaskState': 'optax.conditionally_mask',
  'LookaheadState': 'optax.lookahead',
  'SAMState': 'optax.contrib.sam',
}
# States in tuples of optax.experimental whose neighbors are skipped or reset.
EXPERIMENTAL = (
  'AccumulateAvgUpdatesState',
  'PerElementMeanAndSumSqDiffGradsState',
)
ACCUMULATED = 'MultiStepsState'
INJECTED = 'InjectStatefulHyperparamsState'
# States in which one count serves a schedule and the buffers: state -> (the
# function that makes it, the optimizer, the argument that may be a schedule).
SHARED = {
  'MomoState': ('momo', 'momo', 'learning_rate'),
  'MomoAdamState': ('momo_adam', 'momo_adam', 'learning_rate'),
  'DAdaptAdamWState': ('dadapt_adamw', 'dadapt_adamw', 'learning_rate'),
  'ProdigyState': ('prodigy', 'prodigy', 'learning_rate'),
  'MadgradState': ('scale_by_madgrad', 'madgrad', 'learning_rate'),
  'ScaleBySimplifiedAdEMAMixState': (
    'scale_by_simplified_ademamix',
    'simplified_ademamix',
    'alpha',
  ),
}


@struct.dataclass
class OwnSchedule:
  """Mark, without arrays, of an optimizer whose schedule uses its own count.

  Attributes:
    reason: the optimizer and the remedy, for errors of `where` and `restart`.
  """

  reason: str = struct.field(pytree_node=False)


def set_clock(
  opt_state: ArrayTree, step: Array, accumulated: int | None
) -> ArrayTree:
  """Set the counts that only schedules read to a step.

  Args:
    opt_state: a state of optax.
    step: the engine's 0-based step.
    accumulated: the result of `accumulation`. Inside `optax.MultiSteps` the
      clock is the number of updates, step // accumulated. None keeps it.
  """
  if _nodes(opt_state, EXPERIMENTAL):
    return opt_state

  def visit(node: Any) -> Any:
    name = _name(node)
    if name == ACCUMULATED:
      if accumulated is None:
        return node
      updates = step // accumulated
      inner = set_clock(node.inner_opt_state, updates, accumulated)
      return node._replace(
        gradient_step=jnp.full_like(node.gradient_step, updates),
        inner_opt_state=inner,
      )
    if name not in CLOCKS:
      return node  # a conditional transformation without a step
    if name not in CONDITIONAL:
      inner = jax.tree.map(visit, tuple(node), is_leaf=_has_a_clock)
      node = type(node)(*inner)
    field, start = CLOCKS[name]
    count = jnp.full_like(getattr(node, field), step + start)
    return node._replace(**{field: count})

  return jax.tree.map(visit, opt_state, is_leaf=_has_a_clock)


def accumulation(tx: optax.GradientTransformation) -> int | None:
  """Return the number of gradients that `optax.MultiSteps` in `tx` accumulates.

  It is 1 without `MultiSteps`, and None if the number is not constant.
  """
  found = {
    _constant(vars(part).get('_every_k_schedule'))
    for part in _parts(tx)
    if isinstance(part, optax.MultiSteps)
  }
  return found.pop() if len(found) == 1 else None if found else 1


def own_schedule(
  tx: optax.GradientTransformation, opt_state: ArrayTree
) -> OwnSchedule | tuple[()]:
  """Return a mark if a schedule of `tx` counts the updates of `tx` itself.

  Args:
    tx: the optimizer.
    opt_state: its state, or the shapes of its state.
  """
  if _nodes(opt_state, EXPERIMENTAL) and _nodes(opt_state, (*CLOCKS, *SHARED)):
    return OwnSchedule(
      'optax.experimental accumulates gradients, and its schedules count '
      'updates; use optax.MultiSteps(tx, k).gradient_transformation()'
    )
  for node in _nodes(opt_state, (*SHARED, *CONDITIONAL, ACCUMULATED)):
    name = _name(node)
    if name in CONDITIONAL and _nodes(tuple(node), (*CLOCKS, *SHARED)):
      return OwnSchedule(
        f'a schedule inside {CONDITIONAL[name]} counts only accepted updates; '
        'move the schedule outside'
      )
    if name == ACCUMULATED and accumulation(tx) is None:
      return OwnSchedule(
        'optax.MultiSteps accumulates a varying number of gradients, and '
        'schedules inside count its updates; give it a constant number'
      )
    if name in SHARED and _is_scheduled(tx, opt_state, name):
      _, optimizer, argument = SHARED[name]
      return OwnSchedule(
        f'optax.contrib.{optimizer} has one count for its buffers and for the '
        f'schedule {argument}; use optax.inject_hyperparams(optax.contrib.'
        f'{optimizer})({argument}=schedule)'
      )
  return ()


def check_no_own_schedule(stage: str, when: str, state: ArrayTree) -> None:
  """Raise ValueError if a state has the mark of `own_schedule`.

  Args:
    stage: the name of the stage, for the message.
    when: why the counts would be wrong there, for the message.
    state: the state of a stage, or the mark itself.
  """

  def is_mark(node: Any) -> bool:
    return isinstance(node, OwnSchedule)

  for mark in filter(is_mark, jax.tree.leaves(state, is_leaf=is_mark)):
    raise ValueError(f'{stage}: {when}, but {mark.reason}')


def _is_scheduled(
  tx: optax.GradientTransformation, opt_state: ArrayTree, name: str
) -> bool:
  """Return whether the argument is a schedule; True if it is unknown."""
  factory, _, argument = SHARED[name]
  given = [
    _closed_over(part)[argument]
    for part in _parts(tx)
    if isinstance(part, types.FunctionType)
    and part.__qualname__ == f'{factory}.<locals>.update_fn'
    and argument in _closed_over(part)
  ]
  if given:
    return any(map(callable, given))
  injected = _nodes(opt_state, (INJECTED,))
  return not any(argument in node.hyperparams for node in injected)


def _constant(every_k: Any) -> int | None:
  """Return the constant value of a schedule, or None if it may vary."""
  if every_k is None:
    return None
  given: list[Any] = []
  shape = jax.ShapeDtypeStruct((), jnp.int32)
  jax.eval_shape(lambda step: given.append(every_k(step)), shape)
  return given[0] if isinstance(given[0], int) else None


def _name(node: Any) -> str:
  """Return the name of a node's type if optax defines it, else ''."""
  kind = type(node)
  return kind.__name__ if kind.__module__.startswith('optax.') else ''


def _has_a_clock(node: Any) -> bool:
  return _name(node) in (*CLOCKS, *CONDITIONAL, ACCUMULATED)


def _nodes(tree: ArrayTree, names: tuple[str, ...]) -> list[Any]:
  """Return all nodes with one of the names, including nested ones."""

  def is_found(node: Any) -> bool:
    return _name(node) in names

  found = [x for x in jax.tree.leaves(tree, is_leaf=is_found) if is_found(x)]
  return found + [y for x in found for y in _nodes(tuple(x), names)]


def _parts(root: Any) -> Iterator[Any]:
  """Yield all parts of a transformation, which optax stores in closures."""
  todo, seen = [root], {}
  while todo:
    part = todo.pop()
    if id(part) in seen:
      continue
    seen[id(part)] = part  # kept alive, so that its id is not reused
    yield part
    if isinstance(part, types.FunctionType):
      todo += _closed_over(part).values()
    elif isinstance(part, types.MethodType):
      todo.append(part.__self__)
    elif isinstance(part, functools.partial):
      todo += [part.func, *part.args, *part.keywords.values()]
    elif isinstance(part, optax.MultiSteps):
      todo += vars(part).values()
    elif isinstance(part, dict):
      todo += part.values()
    elif isinstance(part, tuple | list):
      todo += part


def _closed_over(fn: types.FunctionType) -> dict[str, Any]:
  cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
  return {name: _contents(cell) for name, cell in cells}


def _contents(cell: types.CellType) -> Any:
  try:
    return cell.cell_contents
  except ValueError:  # assigned later
    return None

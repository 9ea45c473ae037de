"""ASSIGNMENTS: `remember` declares registers, `let` and `compute` set them.

`let` applies a rule leaf by leaf, `compute` to whole trees. `evaluate` assigns
registers only in the output of the algorithm.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Replica,
  ReplicaTransformation,
)
from prsgd_jax.mixing.payload import widen
from prsgd_jax.names import CLOCK, FIELDS, GIVEN, names
from prsgd_jax.optimizers.evaluation_points import (
  EvaluatedAtState,
  states_with_points,
)
from prsgd_jax.stages import blocks
from prsgd_jax.stages.rules import Rule, as_rule

Evaluate = Callable[[str, Rule, Replica, blocks.Clock], ArrayTree]


def remember(**initial: Any) -> ReplicaTransformation:
  """Declare registers that are kept for the whole run.

  The rules are evaluated once, in the order given, when the train state is
  created. Every replica has its own copy. The train state and checkpoints store
  the registers under their names. Floating leaves are stored in float32 or
  wider, because half precision would lose small steps.

  Args:
    **initial: name -> a rule as in `let`. It may read `replica` and
      `num_replicas`. A rule that reads no tree gives one number for each
      replica.

  Raises:
    ValueError: if a name is taken, or if a rule is invalid or reads `step` or
      a key, which do not exist yet.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(x0='params', u=pr.zeros, weight=1.0)
  """
  made = _rules('remember', initial)
  for name, rule in made.items():
    if name in FIELDS:
      raise ValueError(
        f'remember: every replica already has {name!r}; use another name'
      )
    if early := {'step', 'key', 'shared_key'} & set(rule.reads):
      raise ValueError(
        f'remember({name}=...) cannot read {min(early)!r}, which does not '
        'exist before the first step; assign it with pr.let(...) in a step'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    clock = blocks.clock_at_init(replica, num_replicas)
    for name, rule in made.items():
      rule.check(num_replicas)
      for read in set(rule.reads) - {*CLOCK, *GIVEN}:
        if not replica.has(read):
          raise ValueError(
            f'remember({name}=...) reads {read!r}, which holds no value yet; '
            'move it after the stage that assigns it'
          )
      start = blocks.assign(name, rule, _without(replica, name), clock)
      if name == 'weight':
        start = _float_weight('remember', start)
      replica = replica.set({name: widen(start)})
    return replica, ()

  found = names(reads=_read(made), writes=(), declares=made)
  found = found._replace(lasts=found.reads)
  return ReplicaTransformation(_keep, init, names=found)


def let(**assigned: Any) -> ReplicaTransformation:
  """Assign registers leaf by leaf, in the order written.

  A rule is a function whose parameters name its inputs: registers, `step`,
  `replica` (the index), `num_replicas`, `key` or `shared_key`. It is called on
  one leaf of one replica, in float32 or wider. Later rules read the values that
  earlier rules assigned. The result is cast to the dtype of the register it
  replaces. Integer leaves keep their values. Every rule draws other random
  numbers; `key` also differs between leaves, `shared_key` does not. A register
  that no `remember` declares is dropped at the end of the step, or of the `at`
  around it.

  Args:
    **assigned: name -> a function, the name of a register to copy, a number,
      `reading(...)` or `per_replica(...)`.

  Raises:
    ValueError: if a name belongs to the clock or a rule is invalid; from
      `init`, if structures or shapes do not match, or if floats are assigned to
      integers.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.let(u=lambda u, x0, params: 0.5 * u + (x0 - params))
  """
  return _assignments('let', _rules('let', assigned), blocks.assign)


def compute(**assigned: Any) -> ReplicaTransformation:
  """Assign registers from whole trees: norms, distances, flags.

  The rules are those of `let`, but each is called once, on the trees of one
  replica, and may return any tree.

  Args:
    **assigned: name -> a rule as in `let`, on whole trees.

  Raises:
    ValueError: if a name belongs to the clock or a rule is invalid; from
      `init`, if structures or shapes do not match, or if floats are assigned to
      integers.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stage = pr.compute(size=lambda grads: optax.tree.norm(grads))
    >>> logged = pr.compute(
    ...     metrics=lambda metrics, size: {**metrics, 'gradient_norm': size})
  """
  return _assignments('compute', _rules('compute', assigned), blocks.compute)


def _assignments(
  stage: str, made: dict[str, Rule], assign: Evaluate
) -> ReplicaTransformation:
  def evaluate(
    name: str, rule: Rule, replica: Replica, clock: blocks.Clock
  ) -> ArrayTree:
    new = assign(name, rule, replica, clock)
    if name == 'metrics' and not isinstance(new, Mapping):
      raise ValueError(
        f'{stage}(metrics=...) expects a dict of numbers, got {new}'
      )
    first = name == 'weight' and not replica.has(name)
    return _float_weight(stage, new) if first else new

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    clock = blocks.clock_at_init(replica, num_replicas)
    for name, rule in made.items():
      rule.check(num_replicas)
      if not all(replica.has(read) for read in _read({name: rule})):
        # It reads metrics, or a register that `check_complete` reports later.
        if name == 'weight' and not replica.has(name):
          # The shape is known: one number for each replica.
          replica = replica.set({name: jnp.zeros(clock.replica.shape)})
        continue

      def shapes(
        replica: Replica, name: str = name, rule: Rule = rule
      ) -> ArrayTree:
        return evaluate(name, rule, replica, clock)

      # Evaluate even if there is a value, because the result may not match it.
      found = jax.eval_shape(shapes, replica)
      if not replica.has(name):
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
        replica = replica.set({name: empty})
    return replica, ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    drawing = 0
    for name, rule in made.items():
      clock = blocks.clock_of(context, drawing)
      drawing += bool({'key', 'shared_key'} & set(rule.reads))
      replica = replica.set({name: evaluate(name, rule, replica, clock)})
    return replica, state

  found = names(reads=_read(made, clock=True), writes=made)
  uses = frozenset(r for rule in made.values() for r in rule.reads)
  return ReplicaTransformation(update, init, names=found._replace(uses=uses))


def evaluate(**assigned: Any) -> ReplicaTransformation:
  """Assign registers only in the output, which is evaluated and averaged.

  Training is not affected. Use it to evaluate a tail average, or the center of
  elastic averaging, in place of the replica's parameters.

  Args:
    **assigned: name -> a rule as in `let`. It cannot read the clock.

  Raises:
    ValueError: if a name belongs to the clock, or if a rule is invalid or reads
      the clock; from `init`, if structures or shapes do not match, or if
      `params` is assigned and the optimizer chooses its own evaluation point.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.evaluate(params='center')
  """
  made = _rules('evaluate', assigned)
  for name, rule in made.items():
    if clocked := set(rule.reads) & set(CLOCK):
      raise ValueError(
        f'evaluate({name}=...) cannot read {min(clocked)!r}, because an output '
        'belongs to no step; store the value with pr.remember'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    _check_no_other_point(made, replica)
    if all(replica.has(read) for read in _read(made)):
      # Evaluate abstractly, so that errors are found before training.
      jax.eval_shape(lambda r: output(r, ()), replica)
    return replica, ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    del context
    # Checked again, because the optimizer may come later in the chain.
    _check_no_other_point(made, replica)
    return replica, state

  def output(replica: Replica, state: ArrayTree) -> Replica:
    del state
    _check_no_other_point(made, replica)
    clock = blocks.clock_at_init(replica, 0)
    for name, rule in made.items():
      replica = replica.set({name: blocks.assign(name, rule, replica, clock)})
    return replica

  found = names(reads=_read(made))
  found = found._replace(lasts=found.reads)
  return ReplicaTransformation(update, init, output=output, names=found)


def _check_no_other_point(made: Mapping[str, Rule], replica: Replica) -> None:
  """Raise ValueError if the optimizer chooses its own evaluation point."""
  for state in states_with_points(replica.opt_state):
    if 'params' in made and not isinstance(state, EvaluatedAtState):
      raise ValueError(
        'evaluate(params=...) assigns the evaluation point, but the '
        f'{type(state).__name__} of the optimizer is evaluated elsewhere; to '
        'evaluate its parameters, wrap the optimizer with '
        'pr.optimizers.evaluated_at(tx, lambda state, params: params)'
      )


def _float_weight(stage: str, weight: ArrayTree) -> Array:
  """Return the weights as floats, because integers cannot be averaged."""
  if not blocks.is_scalar(weight):
    raise ValueError(
      f'{stage}(weight=...) expects one number for each replica, got '
      f'{jax.tree.map(lambda x: x.shape[1:], weight)}; sync uses it to weight '
      'the replicas, so use another name for anything else'
    )
  return weight.astype(jnp.promote_types(weight.dtype, jnp.result_type(float)))


def _keep(
  replica: Replica, state: ArrayTree, context: Context
) -> tuple[Replica, ArrayTree]:
  del context
  return replica, state


def _read(made: Mapping[str, Rule], *, clock: bool = False) -> list[str]:
  """Return the names that rules read before an earlier rule assigns them."""
  found, held = [], set(() if clock else CLOCK)
  for name, rule in made.items():
    found += [read for read in rule.reads if read not in held]
    held.add(name)
  return found


def _without(replica: Replica, name: str) -> Replica:
  rest = {k: v for k, v in replica.registers.items() if k != name}
  return replica._replace(registers=rest)


def _rules(stage: str, given: Mapping[str, Any]) -> dict[str, Rule]:
  for name in given:
    if name in CLOCK:
      raise ValueError(
        f'{stage} cannot assign {name!r}, which belongs to the clock; use '
        'another name'
      )
  return {n: as_rule(f'{stage}({n}=...)', g) for n, g in given.items()}

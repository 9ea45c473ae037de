"""ASSIGNMENTS: `remember` declares registers, `let` and `compute` set them."""

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
  """Declares registers that last from step to step.

  The rules are evaluated once, in the order given, when the train state is
  created. The registers are in the train state and in checkpoints, under their
  names. Each replica has its own. Floating leaves are stored in float32 or
  wider, so that small steps are not lost under parameters in half precision.

  Args:
    **initial: name -> a rule as in `let`. A rule that reads no tree gives one
      number for each replica. It may read `replica` and `num_replicas`.

  Raises:
    ValueError: if a name is not free, or a rule is not one, or it reads `step`
      or a key, which do not exist yet.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(x0='params', u=pr.zeros, weight=1.0)
  """
  made = _rules('remember', initial)
  for name, rule in made.items():
    if name in FIELDS:
      raise ValueError(f'remember: every replica has {name!r} already')
    if early := {'step', 'key', 'shared_key'} & set(rule.reads):
      raise ValueError(
        f'remember({name}=...) cannot read {min(early)!r}, which begins with '
        'the first step; assign it by pr.let(...) in a step'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    clock = blocks.clock_at_init(replica, num_replicas)
    for name, rule in made.items():
      rule.check(num_replicas)
      for read in set(rule.reads) - {*CLOCK, *GIVEN}:
        if not replica.has(read):
          raise ValueError(
            f'remember({name}=...) reads {read!r}, which holds nothing yet; '
            'move it after the stage that makes it'
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
  """Assigns registers leaf by leaf, in the order written.

  A rule is a function whose parameters name what it reads: registers, `step`,
  `replica` (its index), `num_replicas`, `key` or `shared_key`. It sees one leaf
  of one replica, in float32 or wider, and later rules see what earlier ones
  assigned. The result takes the dtype of the register that it replaces. Integer
  leaves keep their values. `key` differs from leaf to leaf, and `shared_key`
  does not. Both differ from rule to rule. A register that no `remember`
  declares ends with the step, or with the `at` around it.

  Args:
    **assigned: name -> a function, the name of a register to copy, a number,
      `reading(...)` or `per_replica(...)`.

  Raises:
    ValueError: if a name belongs to the clock, or a rule is not one; from
      `init`, if structures or shapes do not fit, or integers get floats.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.let(u=lambda u, x0, params: 0.5 * u + (x0 - params))
  """
  return _assignments('let', _rules('let', assigned), blocks.assign)


def compute(**assigned: Any) -> ReplicaTransformation:
  """Assigns registers from whole trees: norms, distances, flags.

  As `let`, but a rule is called once, on the trees of one replica, and may
  return any tree.

  Args:
    **assigned: name -> rule.

  Raises:
    ValueError: if a name belongs to the clock, or a rule is not one; from
      `init`, if structures or shapes do not fit, or integers get floats.

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
        # Metrics, or a register that `check_complete` reports.
        if name == 'weight' and not replica.has(name):
          # One number for each replica, whatever it is computed from.
          replica = replica.set({name: jnp.zeros(clock.replica.shape)})
        continue

      def shapes(
        replica: Replica, name: str = name, rule: Rule = rule
      ) -> ArrayTree:
        return evaluate(name, rule, replica, clock)

      # Evaluated abstractly also where there is a value: it may not fit.
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
  """Assigns registers in the output only, which is evaluated and averaged.

  Training does not see the change. An algorithm can return a tail average, or
  the center of elastic averaging, in place of the replica's parameters.

  Args:
    **assigned: name -> a rule as in `let`. It cannot read the clock.

  Raises:
    ValueError: if a name belongs to the clock, or a rule is not one or reads
      the clock; from `init`, if structures or shapes do not fit, or `params` is
      assigned and the optimizer is evaluated at a point of its own.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.evaluate(params='center')
  """
  made = _rules('evaluate', assigned)
  for name, rule in made.items():
    if clocked := set(rule.reads) & set(CLOCK):
      raise ValueError(
        f'evaluate({name}=...) cannot read {min(clocked)!r}: an output belongs '
        'to no step; keep what it needs by pr.remember'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    _check_no_other_point(made, replica)
    if all(replica.has(read) for read in _read(made)):
      # Abstractly: what does not fit is found before the training, not after.
      jax.eval_shape(lambda r: output(r, ()), replica)
    return replica, ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    del context
    # The optimizer may come later in the chain, after this stage's init.
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
  """Raises ValueError for an optimizer that has a point to evaluate itself."""
  for state in states_with_points(replica.opt_state):
    if 'params' in made and not isinstance(state, EvaluatedAtState):
      raise ValueError(
        'evaluate(params=...) makes a point of the parameters, but the '
        f'{type(state).__name__} of the optimizer is evaluated elsewhere; if '
        'its parameters are meant, give the optimizer '
        'pr.optimizers.evaluated_at(tx, lambda state, params: params)'
      )


def _float_weight(stage: str, weight: ArrayTree) -> Array:
  """The weight of each replica as a float, whatever number was given."""
  if not blocks.is_scalar(weight):
    raise ValueError(
      f'{stage}(weight=...) expects one number for each replica, got '
      f'{jax.tree.map(lambda x: x.shape[1:], weight)}; sync weighs the '
      'replicas by it, use another name for other things'
    )
  return weight.astype(jnp.promote_types(weight.dtype, jnp.result_type(float)))


def _keep(
  replica: Replica, state: ArrayTree, context: Context
) -> tuple[Replica, ArrayTree]:
  del context
  return replica, state


def _read(made: Mapping[str, Rule], *, clock: bool = False) -> list[str]:
  """Returns what rules read that no rule before them assigns."""
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

"""COMBINATORS: when stages run, on which replicas, and under which names."""

from collections.abc import Callable, Iterable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Decided,
  Replica,
  ReplicaTransformation,
  Schedule,
  Traffic,
  Work,
  chain,
  over_block,
)
from prsgd_jax.checks import check_register
from prsgd_jax.mixing import mean, traffic
from prsgd_jax.names import CLOCK, FIELDS, Names
from prsgd_jax.stages import rules
from prsgd_jax.stages.rules import Rule, as_rule

# What one replica sends when it is asked for a flag, in float32.
FLAG_BYTES = 4
# The registers that an algorithm shares with the stages around it.
SHARED = (*FIELDS, *CLOCK, 'weight')


class Anyone(NamedTuple):
  """A joint decision: whether a register is nonzero on any replica."""

  register: str


def anyone(register: str) -> Anyone:
  """Returns the condition, for `at`, that any replica raises a flag.

  All replicas decide alike, because the flags are reduced over them first. Each
  check costs every replica one flag of four bytes.

  Args:
    register: name of a register with one number for each replica. A number
      other than 0 raises the flag.

  Raises:
    ValueError: if `register` is not a name.

  Example:
    >>> import prsgd_jax as pr
    >>> stages = (pr.compute(far=lambda params: abs(params).max() > 1),
    ...           pr.at(pr.anyone('far'), pr.sync(pr.mean())))
  """
  return Anyone(check_register('anyone(register)', register))


def at(
  when: Schedule | Anyone, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages only at some steps.

  It compiles to one `lax.cond` over the registers that the stages may assign
  and that hold something before it. A register first assigned inside ends with
  it. A schedule known while tracing, such as `always()`, needs no conditional.

  Args:
    when: a schedule such as `every(4)`, or `anyone(register)` for a
      data-dependent decision.
    *stages: in order.

  Raises:
    ValueError: if `when` is neither; if communication inside `anyone` has a
      schedule of its own, whose rounds could not be counted; from `init`, if a
      schedule does not give one bool.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.at(pr.every(4), pr.sync(pr.mean()), pr.let(x0='params'))
  """
  if isinstance(when, Anyone):
    return _at_anyone(when.register, chain(*stages))
  if not callable(when):
    raise ValueError(f'at expects a schedule such as pr.every(4), got {when!r}')
  inner = chain(*stages)
  found = inner.names

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    step = jax.ShapeDtypeStruct((), jnp.int32)
    _check_fires(jax.eval_shape(when, step))
    after, state = inner.init(replica, num_replicas)
    return _only_known(after, replica, found), state

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    return _run_if(
      when(context.step), inner, found.writes, replica, state, context
    )

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    fires = np.broadcast_to(np.asarray(when(steps), bool), steps.shape)
    return tuple(
      _masked(entry, fires) for entry in inner.cost(shapes, num_replicas, steps)
    )

  return ReplicaTransformation(
    update,
    init,
    cost,
    inner.output,
    found._replace(assigns=frozenset()),
    (False,) * len(inner.talks),
  )


def _at_anyone(
  register: str, inner: ReplicaTransformation
) -> ReplicaTransformation:
  if not all(inner.talks):
    raise ValueError(
      'at(anyone(...)) counts the rounds that it decides, so that what is sent '
      'inside must be sent every time; got a schedule inside, move it around '
      'the at(anyone(...))'
    )
  found = inner.names

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    flag = replica.get(register) if replica.has(register) else None
    block = jax.tree.leaves(replica.params)[0].shape[:1]
    if flag is not None and jax.tree.map(jnp.shape, flag) != block:
      raise ValueError(
        f'anyone({register!r}) expects one flag for each replica, got '
        f'{jax.tree.map(jnp.shape, flag)}; assign it by pr.compute'
      )
    after, state = inner.init(replica, num_replicas)
    none_yet = Decided(jnp.zeros(block, jnp.int32))
    counts = (none_yet,) * len(inner.talks)
    return _only_known(after, replica, found), (counts, state)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def counted(
      replica: Replica, state: ArrayTree, context: Context
    ) -> tuple[Replica, ArrayTree]:
      counts, state = state
      replica, state = inner.update(replica, state, context)
      counts = tuple(Decided(count.rounds + 1) for count in counts)
      return replica, (counts, state)

    # Compared before the mean, in which flags of two signs would cancel.
    flags = (replica.get(register) != 0).astype(jnp.float32)
    fires = collectives.replica_mean(flags)[0] != 0
    stage = inner._replace(update=counted)
    return _run_if(fires, stage, found.writes, replica, state, context)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    flag = traffic(mean(), FLAG_BYTES, num_replicas, steps)
    inside = inner.cost(shapes, num_replicas, steps)
    sent = [entry for entry in inside if isinstance(entry, Traffic)]
    if len(sent) < len(inside):
      raise ValueError(
        'at(anyone(...)) cannot count gradients; take them outside of it'
      )
    return (flag, *(entry._replace(fires=None) for entry in sent))

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return inner.output(replica, state[1])

  return ReplicaTransformation(
    update,
    init,
    cost,
    output,
    found._replace(
      reads=found.reads | {register},
      uses=found.uses | {register},
      assigns=frozenset(),
    ),
    (True,) + (False,) * len(inner.talks),
  )


def _run_if(
  fires: Any,
  inner: ReplicaTransformation,
  writes: Iterable[str],
  replica: Replica,
  state: ArrayTree,
  context: Context,
) -> tuple[Replica, ArrayTree]:
  """`inner.update` under a condition that is the same on all replicas."""
  carried = [name for name in sorted(writes) if replica.has(name)]

  def run(operand: tuple[dict, ArrayTree]) -> tuple[dict, ArrayTree]:
    values, state = operand
    after, new_state = inner.update(replica.set(values), state, context)
    kept = {name: after.get(name) for name in carried}
    _check_kept('at', (values, state), (kept, new_state))
    return kept, new_state

  operand = ({name: replica.get(name) for name in carried}, state)
  if isinstance(fires, jax.Array):
    values, state = lax.cond(fires, run, lambda operand: operand, operand)
  else:
    values, state = run(operand) if fires else operand
  return replica.set(values), state


def _check_fires(fires: Any) -> None:
  """Raises ValueError unless a schedule gives one bool for a step."""
  is_bool = getattr(fires, 'dtype', None) == np.bool_
  if not is_bool or fires.shape != ():
    raise ValueError(
      'at expects a schedule that gives one bool for a step, such as '
      'lambda step: step % 4 == 3, got one that gives '
      f'{getattr(fires, "dtype", None)}{list(getattr(fires, "shape", ()))}'
    )


def _check_kept(
  stage: str,
  before: tuple[dict[str, ArrayTree], ArrayTree],
  after: tuple[dict[str, ArrayTree], ArrayTree],
) -> None:
  """Checks, while tracing, that conditional stages change no types.

  Args:
    stage: the combinator, for the message.
    before: (registers by name, private state).
    after: the same two after the stages.

  Raises:
    ValueError: if a structure, shape or dtype changed.
  """
  for (name, old), new in zip(
    [*before[0].items(), ('its private state', before[1])],
    [*after[0].values(), after[1]],
  ):
    if _types(old) != _types(new):
      raise ValueError(
        f'{stage}(...): its stages change the structure or a type of {name}, '
        f'from {_types(old)[1]} to {_types(new)[1]}; new entries of metrics '
        'must be added outside'
      )


def _types(tree: ArrayTree) -> tuple[Any, list[str]]:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, [f'{x.dtype}{list(x.shape[1:])}' for x in leaves]


def _only_known(after: Replica, before: Replica, found: Names) -> Replica:
  """Returns what an `at` leaves: registers from before, and declared ones."""
  known = {
    name: x
    for name, x in after.registers.items()
    if name in before.registers or name in found.declares
  }
  grads = after.grads if before.has('grads') else before.grads
  return after._replace(registers=known, grads=grads)


def _masked(entry: Cost, fires: np.ndarray) -> Cost:
  if isinstance(entry, Work):
    return Work(entry.active & fires[:, None])
  if entry.fires is None:
    return entry
  return entry._replace(fires=entry.fires & fires)


def where(
  active: Any,
  *stages: ReplicaTransformation,
  expected: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> ReplicaTransformation:
  """Runs the stages on the active replicas; inactive ones keep their registers.

  With one replica on a device, an inactive replica computes nothing. In a block
  all replicas compute, and the results of inactive ones are discarded. A
  register first assigned inside is zero on inactive replicas. The metric
  `active` is 1 on replicas that took a gradient, otherwise 0.

  Args:
    active: a rule as in `let` for one bool of each replica.
    *stages: in order. They must not communicate, because inactive replicas
      would not answer.
    expected: `(steps, num_replicas) -> bool[T, N]`, which replicas are active,
      for the ledger. Required if the rule reads more than the step and the
      replica.

  Raises:
    ValueError: if a stage communicates, or `expected` is missing; from `init`,
      if the rule does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> stage = pr.where(pr.first_steps((1, 3)), pr.step(optax.sgd(0.1)))
  """
  rule = as_rule('where', active)
  inner = chain(*stages)
  found = inner.names
  if inner.talks:
    raise ValueError(
      'where takes stages that do not communicate, got one that does; chain '
      'sync after where(...)'
    )
  unknown = set(rule.reads) - {'step', 'replica', 'num_replicas'}
  if expected is None and unknown:
    raise ValueError(
      f'where: who is active depends on {sorted(unknown)}, which the ledger '
      'does not know; give expected=lambda steps, num_replicas: ...'
    )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    rule.check(num_replicas)
    if all(replica.has(name) for name in set(rule.reads) - {*CLOCK}):
      clock = rules.clock_at_init(replica, num_replicas)
      jax.eval_shape(lambda r: _who(rule, r, clock), replica)
    return inner.init(replica, num_replicas)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    # Number 1: the stages inside have the keys that are folded from number 0.
    clock = rules.clock_of(context, 1)
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
      values, new, state = _choose(mask, after, (old, _zeros(after[1]), state))
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
  )


def _who(rule: Rule, replica: Replica, clock: rules.Clock) -> Array:
  """bool[V], which replicas are active."""
  active = rules.call(rule, replica, clock)
  if not rules.is_scalar(active):
    shapes = jax.tree.map(lambda x: x.shape[1:], active)
    raise ValueError(
      f'where expects a rule for one bool of each replica, got {shapes}'
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
  """(registers there were before, registers that are new, state)."""
  old, state = operand
  after, new_state = inner.update(replica.set(old), state, context)
  # Fresh metrics of a gradient do not have it; those of a `where` inside do.
  # Metrics from before that lack it are of a gradient that all have taken.
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
  _check_kept('where', (old, state), (kept, new_state))
  return kept, new, new_state


def _choose(active: Array, new: ArrayTree, old: ArrayTree) -> ArrayTree:
  """Row by row of the block: new where active."""
  pick = over_block(jnp.where)
  return jax.tree.map(lambda x, y: pick(active, x, y), new, old)


def algorithm(
  name: str, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Chains the stages under names of their own.

  As in a Python function, a register that the stages declare or assign is
  local. It is called `name.register` in the train state and in checkpoints. A
  register that they only read may belong to the surrounding stages. `params`,
  `grads`, `opt_state`, `model_state`, `metrics` and `weight` are shared. An
  algorithm can therefore be the local step or the average of another one.

  Args:
    name: of the algorithm, an identifier.
    *stages: the stages, in the order of the paper's pseudocode.

  Raises:
    ValueError: if `name` is not an identifier; as `chain`.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> sgp = pr.algorithm(
    ...     'sgp', pr.remember(weight=1.0),
    ...     pr.gradient(), pr.local_update(optax.sgd(0.1), into='u'),
    ...     pr.let(params=lambda params, u, weight: params + u / weight),
    ...     pr.sync(pr.one_peer_exponential()))
  """
  if not isinstance(name, str) or not name.isidentifier():
    raise ValueError(
      "algorithm expects a name such as 'slowmo' before its stages, got "
      f'{name!r}'
    )
  inner = chain(*stages)
  found = inner.names
  prefix = f'{name}.'
  own = (found.declares | found.writes) - set(SHARED)

  def rename(names: Iterable[str]) -> frozenset[str]:
    return frozenset(prefix + n if n in own else n for n in names)

  def enter(replica: Replica) -> Replica:
    around = {n: x for n, x in replica.registers.items() if n not in own}
    mine = {
      n: replica.registers[prefix + n]
      for n in own
      if prefix + n in replica.registers
    }
    return replica._replace(registers={**around, **mine})

  def leave(inside: Replica, replica: Replica) -> Replica:
    # Not the names that an `evaluate` inside gives to its own results.
    mine = {
      prefix + n if n in own else n: x
      for n, x in inside.registers.items()
      if n in own or n == 'weight'
    }
    return inside._replace(registers={**replica.registers, **mine})

  return viewed(inner, enter, leave, Names(*map(rename, found)))


def on_leaves(
  select: Callable[[ArrayTree], Iterable[int]], *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages on some leaves of the parameters, and of all like them.

  Inside, a register with the structure of `params` is the list of its selected
  leaves. What the stages declare has the structure of that list.

  Args:
    select: `params -> positions` among the leaves of the tree.
    *stages: in order.
  """
  inner = chain(*stages)
  found = inner.names

  def enter(replica: Replica) -> Replica:
    treedef = jax.tree.structure(replica.params)
    chosen = list(select(replica.params))

    def part(tree: ArrayTree) -> ArrayTree:
      if jax.tree.structure(tree) != treedef:  # type: ignore[operator]
        return tree
      leaves = jax.tree.leaves(tree)
      return [leaves[i] for i in chosen]

    held = [n for n in (*FIELDS, *replica.registers) if replica.has(n)]
    return replica.set({n: part(replica.get(n)) for n in held})

  def leave(inside: Replica, replica: Replica) -> Replica:
    treedef = jax.tree.structure(replica.params)
    chosen = list(select(replica.params))

    def whole(name: str) -> ArrayTree:
      new = inside.get(name)
      if not replica.has(name):
        return new
      leaves, structure = jax.tree.flatten(replica.get(name))
      if structure != treedef:  # type: ignore[operator]
        return new
      for i, leaf in zip(chosen, new, strict=True):
        leaves[i] = leaf
      return jax.tree.unflatten(treedef, leaves)

    kept = [n for n in found.writes if replica.has(n)] + sorted(found.declares)
    return replica.set({n: whole(n) for n in kept if inside.has(n)})

  return viewed(inner, enter, leave, found._replace(assigns=frozenset()))


def viewed(
  inner: ReplicaTransformation,
  enter: Callable[[Replica], Replica],
  leave: Callable[[Replica, Replica], Replica],
  names: Names,
) -> ReplicaTransformation:
  """Returns a stage that sees the replica through a pair of functions.

  Args:
    inner: the stage.
    enter: `replica -> the replica that the stage sees`.
    leave: `(the replica after the stage, the replica before) -> replica`.
    names: of the stage as it is seen from outside.
  """

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    inside, state = inner.init(enter(replica), num_replicas)
    return leave(inside, replica), state

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    inside, state = inner.update(enter(replica), state, context)
    return leave(inside, replica), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    return inner.cost(enter(shapes), num_replicas, steps)

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return leave(inner.output(enter(replica), state), replica)

  return ReplicaTransformation(update, init, cost, output, names, inner.talks)


def _zeros(tree: ArrayTree) -> ArrayTree:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

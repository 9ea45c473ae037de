"""Replicas, their transformations, and `chain`: optax, one level up.

An optax optimizer is a chain of gradient transformations. An *algorithm* is a
chain of replica transformations. A replica holds named *registers*. Each
*stage* reads some registers and assigns others. Only the stage `sync`
communicates. The stages are chained in the order of the paper's pseudocode.

Stages see *blocks*: each of the D devices holds V = N / D of the N replicas,
and every leaf has the leading axis V. Elementwise operations work unchanged.
Map reductions over one replica's axes with `over_block`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.names import FIELDS, Names, check_writes, joined, names

__all__ = (
  'AXIS_NAME',
  'Change',
  'Context',
  'Decided',
  'Names',
  'Replica',
  'ReplicaTransformation',
  'Traffic',
  'Work',
  'chain',
  'lasting',
  'names',
  'over_block',
  'select',
)

# The axis of devices. Every collective uses this constant.
AXIS_NAME = 'replica'

Array = jax.Array
# A pytree of arrays. `Any`, because a type checker cannot describe a pytree.
ArrayTree = Any
Step = Array | np.ndarray | int
Schedule = Callable[[Step], Any]
# The senders each replica waits for: int[S, N], itself included, padded by
# repeats. If their numbers differ: the lists of all replicas, concatenated, and
# int[N], the position at which each list begins.
Senders = np.ndarray | tuple[np.ndarray, np.ndarray]


class Replica(NamedTuple):
  """Registers of one worker. Inside a stage, registers of a block of V workers.

  Attributes:
    params, opt_state, model_state: kept for the whole run.
    grads, metrics: kept for one step; empty until `gradient` fills them.
    registers: all other registers, by name. A register that `remember` declares
      is kept for the whole run. Any other is dropped at the end of the step, or
      of the `at` that assigns it.
  """

  params: ArrayTree
  grads: ArrayTree = ()
  opt_state: ArrayTree = ()
  model_state: ArrayTree = ()
  metrics: ArrayTree = ()
  registers: Mapping[str, ArrayTree] = {}

  def has(self, name: str) -> bool:
    """Return whether the register holds a value at this point of the step."""
    if name in FIELDS:
      return bool(jax.tree.leaves(getattr(self, name)))
    return name in self.registers

  def get(self, name: str) -> ArrayTree:
    """Return a register: a field, or an entry of `registers`."""
    return getattr(self, name) if name in FIELDS else self.registers[name]

  def set(self, values: Mapping[str, ArrayTree]) -> 'Replica':
    """Return this replica with some registers assigned."""
    fields = {name: x for name, x in values.items() if name in FIELDS}
    others = {name: x for name, x in values.items() if name not in FIELDS}
    return self._replace(**fields, registers={**self.registers, **others})


class Context(NamedTuple):
  """Inputs that the engine passes to every stage in a step.

  Attributes:
    step: int32 scalar, 0-based, equal on all replicas. It is the only clock.
    replica: int32[V], the global indices of this block's replicas.
    key: key[V], one key per replica, a function of (seed, replica, step). None
      for a stage whose names do not read it.
    shared_key: key, a function of (seed, step), equal on all replicas. None for
      a stage whose names do not read it.
    value_and_grad: `(params, model_state) -> ((loss, (model_state, metrics)),
      grads)` on this step's batch, over the block (every leaf `[V, ...]`).
    round: int32 scalar, the number of rounds this `sync` has done before. It
      selects the matrix of a graph that alternates between matrices.
    watch: `(point, loss, grads) -> metrics`, more metrics of each gradient, for
      diagnosis. Default: none.
  """

  step: Array
  replica: Array
  key: Array
  shared_key: Array
  value_and_grad: Callable[[ArrayTree, ArrayTree], Any]
  round: Array | int = 0
  watch: Callable[[ArrayTree, Array, ArrayTree], dict[str, Array]] | None = None


# Passed to a stage instead of a key that it does not name.
NO_KEY: Any = None


class Work(NamedTuple):
  """Gradients that the replicas take, for the ledger.

  Attributes:
    active: bool[num_steps, N], whether each replica takes one at each step.
    lost: bool[num_steps, N], whether a replica would take one but has crashed;
      None if no replica has.
    slowdown: float[num_steps, N], the factor by which a gradient takes longer;
      None if none does.
  """

  active: np.ndarray
  lost: np.ndarray | None = None
  slowdown: np.ndarray | None = None


class Traffic(NamedTuple):
  """Communication of one stage, for the ledger.

  Attributes:
    fires: bool[num_steps], whether the stage communicates at each step; None
      for data-dependent communication, whose stage counts its rounds.
    bytes_sent: bytes that one replica sends in a round, the maximum over the
      replicas. If rounds differ, first the mean over the rounds, or the
      expectation, is taken for each replica.
    latencies: number of consecutive messages in a round, the maximum over the
      replicas. If rounds differ, the mean over the rounds, or the expectation.
    tier: the links used: 'global', 'group' or 'neighbor'.
    waits: the replicas that a replica waits for. An integer S means its group
      of S consecutive replicas: N is all replicas, 1 is none. Otherwise a
      function `(rounds_before, generator) -> Senders` of a round; the generator
      draws random graphs.
    present: bool[num_steps, N], whether each replica takes part in a round at
      each step; None if all always do. Nobody waits for an absent one.
  """

  fires: np.ndarray | None
  bytes_sent: float
  latencies: float
  tier: str
  waits: int | Callable[[int, np.random.Generator], Senders]
  present: np.ndarray | None = None


Cost = Work | Traffic


class Decided(NamedTuple):
  """Number of rounds of a stage whose communication depends on the data.

  The state of the stage holds one for each `Traffic` without `fires`, in order.

  Attributes:
    rounds: int32[V], the rounds done so far, equal on all replicas.
  """

  rounds: Array


class Change(NamedTuple):
  """A change of the number of replicas from N to N', for `resize`.

  Attributes:
    before: the N replicas as saved, leaves `[N, ...]` in NumPy.
    origin: int[N'], the saved replica that each new one comes from. Newcomers
      come last; each is a copy of a replica that stays, in turn.
    stayed: number of new replicas that are not newcomers.
    step: the number of steps done.
    num_replicas: N'.
  """

  before: Replica
  origin: np.ndarray
  stayed: int
  step: int
  num_replicas: int


def _no_init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
  del num_replicas
  return replica, ()


def _no_cost(
  shapes: Replica, num_replicas: int, steps: np.ndarray
) -> tuple[Cost, ...]:
  del shapes, num_replicas, steps
  return ()


def _same_output(replica: Replica, state: ArrayTree) -> Replica:
  del state
  return replica


def _averaged(
  replica: Replica, state: ArrayTree, change: Change
) -> tuple[Replica, ArrayTree]:
  del change
  return replica, state


class ReplicaTransformation(NamedTuple):
  """A stage of an algorithm, or a whole algorithm: five pure functions.

  Attributes:
    update: `(replica, state, context) -> (replica, state)`.
    init: `(replica, num_replicas) -> (replica, state)`, on a block. Every leaf
      of `state` has the leading axis V. Check here what depends on the number
      of replicas.
    cost: `(shapes, num_replicas, steps) -> tuple of Work and Traffic`, in the
      order of execution. `shapes` is one `Replica` of `jax.ShapeDtypeStruct`;
      `steps` is an integer NumPy array.
    output: `(replica, state) -> replica`, the replica to evaluate.
    names: the registers that the stage reads and assigns, made by `names`.
    talks: one bool for each `Traffic` of the cost: whether it is sent every
      time the stage runs. Empty for a stage that does not communicate.
    resize: `(replica, state, change) -> (replica, state)`, when a checkpoint is
      restored onto another number of replicas. The leaves `[N', ...]` are
      already averaged over the saved replicas and handed out. Default: they
      stay so.
  """

  update: Callable[[Replica, ArrayTree, Context], tuple[Replica, ArrayTree]]
  init: Callable[[Replica, int], tuple[Replica, ArrayTree]] = _no_init
  cost: Callable[[Replica, int, np.ndarray], tuple[Cost, ...]] = _no_cost
  output: Callable[[Replica, ArrayTree], Replica] = _same_output
  names: Names = Names()
  talks: tuple[bool, ...] = ()
  resize: Callable[[Replica, ArrayTree, Change], tuple[Replica, ArrayTree]] = (
    _averaged
  )

  def __repr__(self) -> str:
    """Return the registers, because four function addresses mean little."""
    found = self.names
    return (
      f'ReplicaTransformation(reads={sorted(found.reads)}, '
      f'writes={sorted(found.writes)}, declares={sorted(found.declares)}, '
      f'messages={len(self.talks)})'
    )


def chain(*stages: ReplicaTransformation) -> ReplicaTransformation:
  """Run the stages in order, at every step.

  A chain is itself a stage, so chains nest. All stages share one set of
  registers. `init`, `update`, `output` and `resize` run in the order of the
  arguments; `cost` lists the entries in that order.

  Args:
    *stages: the stages, in the order of the paper's pseudocode.

  Returns:
    A `ReplicaTransformation` whose state is the tuple of the stages' states.

  Raises:
    ValueError: if an argument is not a `ReplicaTransformation`, or if two
      stages declare the same register.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> local_sgd = pr.chain(
    ...     pr.gradient(), pr.local_update(optax.sgd(0.1)),
    ...     pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())))
    >>> local_sgd.talks
    (False,)
  """
  for stage in stages:
    if not isinstance(stage, ReplicaTransformation):
      raise ValueError(
        'chain expects stages such as pr.gradient() or '
        f'pr.sync(pr.mixing.mean()), got {stage!r}'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    states: Sequence[ArrayTree] = ()
    for stage in stages:
      replica, state = stage.init(replica, num_replicas)
      states = (*states, state)
    return replica, states

  def update(
    replica: Replica, states: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    new_states: Sequence[ArrayTree] = ()
    for i, (stage, state) in enumerate(zip(stages, states, strict=True)):
      own = _with_own_keys(context, stage, i)
      before = replica
      replica, state = stage.update(replica, state, own)
      check_writes(stage.names, before, replica)
      new_states = (*new_states, state)
    return replica, new_states

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    spent: tuple[Cost, ...] = ()
    for i, stage in enumerate(stages):
      entries = stage.cost(shapes, num_replicas, steps)
      _check_talks(stage, entries)
      spent += entries
      # Trace `init` only if a later stage may read a new register, because the
      # trace takes most of the time.
      if i + 1 < len(stages) and _makes_registers(stage, shapes):
        leaves, treedef = jax.tree.flatten(shapes)
        kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        shapes = after(i, treedef, kinds, num_replicas)
    return spent

  # Cached, because all spans of steps have equal shapes, and a trace of many
  # leaves takes seconds.
  @functools.lru_cache(2 * len(stages))
  def after(
    i: int, treedef: Any, kinds: tuple[Any, ...], num_replicas: int
  ) -> Replica:
    leaves = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    shapes = jax.tree.unflatten(treedef, leaves)
    return _shapes_after(stages[i], shapes, num_replicas)

  def output(replica: Replica, states: ArrayTree) -> Replica:
    for stage, state in zip(stages, states, strict=True):
      replica = stage.output(replica, state)
    return replica

  def resize(
    replica: Replica, states: ArrayTree, change: Change
  ) -> tuple[Replica, ArrayTree]:
    new_states: Sequence[ArrayTree] = ()
    for stage, state in zip(stages, states, strict=True):
      replica, state = stage.resize(replica, state, change)
      new_states = (*new_states, state)
    return replica, new_states

  return ReplicaTransformation(
    update,
    init,
    cost,
    output,
    joined([stage.names for stage in stages]),
    tuple(sent for stage in stages for sent in stage.talks),
    resize,
  )


def _makes_registers(stage: ReplicaTransformation, shapes: Replica) -> bool:
  made = stage.names.writes | stage.names.declares
  return bool(made - shapes.registers.keys() - set(FIELDS))


def _shapes_after(
  stage: ReplicaTransformation, shapes: Replica, num_replicas: int
) -> Replica:
  """Return one replica's shapes after the stage's `init` has run."""
  block = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), shapes
  )
  after = jax.eval_shape(lambda r: stage.init(r, num_replicas)[0], block)
  new = {n: x for n, x in after.registers.items() if not shapes.has(n)}
  return shapes.set(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), new)
  )


def _check_talks(
  stage: ReplicaTransformation, entries: tuple[Cost, ...]
) -> None:
  sent = sum(isinstance(entry, Traffic) for entry in entries)
  if sent != len(stage.talks):
    raise ValueError(
      f'a stage has talks={stage.talks}, but its cost lists {sent} message(s); '
      'give talks one bool for each message'
    )


def _with_own_keys(
  context: Context, stage: ReplicaTransformation, i: int
) -> Context:
  """Derive the keys of the i-th stage, so that stages draw independently.

  A stage that does not name a key gets None, because sharing another stage's
  key would silently repeat its random numbers.
  """
  fold = functools.partial(jax.random.fold_in, data=i)
  draws, draws_alike = (k in stage.names.uses for k in ('key', 'shared_key'))
  return context._replace(
    key=jax.vmap(fold)(context.key) if draws else NO_KEY,
    shared_key=fold(context.shared_key) if draws_alike else NO_KEY,
  )


def lasting(algorithm: ReplicaTransformation, replica: Replica) -> Replica:
  """Return the replica with only the registers that outlive a step.

  Use it in your own training loop, between two steps. The engine drops the
  other registers in the same way.

  Args:
    algorithm: the whole algorithm.
    replica: the replica after `algorithm.init` or `algorithm.update`.

  Returns:
    The replica without gradients, metrics and temporary registers.

  Example:
    >>> import jax.numpy as jnp, optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(optax.sgd(0.1), period=4)
    >>> replica = pr.base.Replica(params=jnp.zeros((1, 2)))
    >>> replica, state = algorithm.init(replica, 1)
    >>> pr.base.lasting(algorithm, replica).grads
    ()
  """
  declared = algorithm.names.declares
  kept = {n: x for n, x in replica.registers.items() if n in declared}
  return replica._replace(grads=(), metrics=(), registers=kept)


def over_block(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Map a function of one replica's trees over the block axis V.

  Args:
    fn: a function of trees of one replica, without the axis V.

  Returns:
    The function of trees `[V, ...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> norms = over_block(jnp.linalg.norm)(jnp.ones((2, 4)))  # V = 2
    >>> norms.tolist()
    [2.0, 2.0]
  """
  return jax.vmap(fn)


def select(mask: Array, new: ArrayTree, old: ArrayTree) -> ArrayTree:
  """Return, for each replica of a block, `new` where the mask, else `old`.

  Args:
    mask: bool[V].
    new: leaves `[V, ...]`.
    old: leaves `[V, ...]`, with the structure of `new`.

  Example:
    >>> import jax.numpy as jnp
    >>> select(jnp.array([True, False]), jnp.ones(2), jnp.zeros(2)).tolist()
    [1.0, 0.0]
  """
  pick = over_block(jnp.where)
  return jax.tree.map(lambda x, y: pick(mask, x, y), new, old)

"""Replicas, their transformations, and `chain`: optax, one level up.

optax makes an optimizer a chain of gradient transformations. Here an
*algorithm* is a chain of replica transformations. A replica holds named
*registers*; a *stage* reads some of them and assigns others, and only the stage
`sync` communicates. The order of the chain is the order of the paper's
pseudocode.

Stages see *blocks*: a device holds V = N / D of the N replicas, and every leaf
has the leading axis V. Elementwise operations need no care. A reduction over a
replica's own axes goes through `over_block`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.names import FIELDS, Names, check_writes, joined
from prsgd_jax.names import names as names

# The axis of devices, and the only name of it: every collective uses it.
AXIS_NAME = 'replica'

Array = jax.Array
# A pytree of arrays; any structure, so no checker can know more of it.
ArrayTree = Any
Step = Array | np.ndarray | int
Schedule = Callable[[Step], Any]
# Whom each replica waits for: int[S, N], itself among them, as often as needed.
# Or, for unlike numbers, those of all replicas one after the other, and int[N],
# where each one's begin.
Senders = np.ndarray | tuple[np.ndarray, np.ndarray]


class Replica(NamedTuple):
  """The registers of one worker; in a stage, of a block of V of them.

  Attributes:
    params, opt_state, model_state: last for the whole run.
    grads, metrics: last for one step; empty until `gradient` fills them.
    registers: all other registers, by name. Those that `remember` declares last
      for the whole run. Any other ends with the step, or with the `at` that
      assigns it.
  """

  params: ArrayTree
  grads: ArrayTree = ()
  opt_state: ArrayTree = ()
  model_state: ArrayTree = ()
  metrics: ArrayTree = ()
  registers: Mapping[str, ArrayTree] = {}

  def has(self, name: str) -> bool:
    """Returns whether the register holds anything at this point of a step."""
    if name in FIELDS:
      return bool(jax.tree.leaves(getattr(self, name)))
    return name in self.registers

  def get(self, name: str) -> ArrayTree:
    """Returns a register: a field, or an entry of `registers`."""
    return getattr(self, name) if name in FIELDS else self.registers[name]

  def set(self, values: Mapping[str, ArrayTree]) -> 'Replica':
    """Returns this replica with some registers assigned."""
    fields = {name: x for name, x in values.items() if name in FIELDS}
    others = {name: x for name, x in values.items() if name not in FIELDS}
    return self._replace(**fields, registers={**self.registers, **others})


class Context(NamedTuple):
  """What the engine gives every stage in a step.

  Attributes:
    step: int32 scalar, 0-based, the same everywhere: the only clock.
    replica: int32[V], the global indices of this block's replicas.
    key: key[V], a function of (seed, replica, step), each replica's own.
    shared_key: key, a function of (seed, step): the same on all replicas.
      `chain` derives both keys for each stage whose names read them; any other
      stage gets None.
    value_and_grad: `(params, model_state) -> ((loss, (model_state, metrics)),
      grads)` on this step's batch, over the block (every leaf `[V, ...]`).
    round: int32 scalar, how often the `sync` that reads it has run before. It
      selects the matrix of a graph whose matrices take turns.
  """

  step: Array
  replica: Array
  key: Array
  shared_key: Array
  value_and_grad: Callable[[ArrayTree, ArrayTree], Any]
  round: Array | int = 0


# In place of a key that a stage does not name.
NO_KEY: Any = None


class Work(NamedTuple):
  """Which replicas take a gradient, for the ledger.

  Attributes:
    active: bool[num_steps, N].
  """

  active: np.ndarray


class Traffic(NamedTuple):
  """What one stage sends, for the ledger.

  Attributes:
    fires: bool[num_steps], whether the stage communicates at each step; None
      for data-dependent communication, whose stage counts its rounds.
    bytes_sent: bytes that one replica sends in one such round; the maximum over
      the replicas.
    latencies: messages that follow one another in one such round. Of what is
      drawn in each round bytes and latencies are the expected ones.
    tier: the links used: 'global', 'group' or 'neighbor'.
    waits: whom a replica waits for. S for all of its group of S consecutive
      replicas, so that N is everybody and 1 nobody. Otherwise
      `(rounds_before, generator) -> Senders` of a round, where random graphs
      are drawn by the generator.
  """

  fires: np.ndarray | None
  bytes_sent: float
  latencies: float
  tier: str
  waits: int | Callable[[int, np.random.Generator], Senders]


Cost = Work | Traffic


class Decided(NamedTuple):
  """Rounds of a stage whose communication depends on the data.

  Its state has one for each `Traffic` without `fires`, in the same order.

  Attributes:
    rounds: int32[V], the rounds done, the same on all replicas.
  """

  rounds: Array


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


class ReplicaTransformation(NamedTuple):
  """A stage of an algorithm, or a whole algorithm: four pure functions.

  Attributes:
    update: `(replica, state, context) -> (replica, state)`.
    init: `(replica, num_replicas) -> (replica, state)`, on a block. Checks that
      depend on the number of replicas are here. Every leaf of `state` has the
      leading axis V.
    cost: `(shapes, num_replicas, steps) -> tuple of Work and Traffic` in the
      order in which they are done, where `shapes` is one replica's `Replica` of
      `jax.ShapeDtypeStruct` and `steps` an integer NumPy array.
    output: `(replica, state) -> replica`, the replica to evaluate.
    names: the registers that the stage reads and assigns, which `names` makes.
    talks: for each `Traffic` of its cost, whether it is sent every time the
      stage runs. A stage without `Traffic` does not
      communicate.
  """

  update: Callable[[Replica, ArrayTree, Context], tuple[Replica, ArrayTree]]
  init: Callable[[Replica, int], tuple[Replica, ArrayTree]] = _no_init
  cost: Callable[[Replica, int, np.ndarray], tuple[Cost, ...]] = _no_cost
  output: Callable[[Replica, ArrayTree], Replica] = _same_output
  names: Names = Names()
  talks: tuple[bool, ...] = ()

  def __repr__(self) -> str:
    """The registers in place of the addresses of four functions."""
    found = self.names
    return (
      f'ReplicaTransformation(reads={sorted(found.reads)}, '
      f'writes={sorted(found.writes)}, declares={sorted(found.declares)}, '
      f'messages={len(self.talks)})'
    )


def chain(*stages: ReplicaTransformation) -> ReplicaTransformation:
  """Runs the stages in order, at every step.

  A chain is a stage: chains nest, and all stages see the same registers.
  Updates, initializations and outputs run in the order of the arguments, and
  costs are listed in that order.

  Args:
    *stages: the stages, in the order of the paper's pseudocode.

  Returns:
    A `ReplicaTransformation` whose state is the tuple of the stages' states.

  Raises:
    ValueError: if an argument is not a `ReplicaTransformation`, or two stages
      declare one register.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> local_sgd = pr.chain(
    ...     pr.gradient(), pr.local_update(optax.sgd(0.1)),
    ...     pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())))
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
      # Tracing `init` takes most of the time: only for the sake of a later
      # stage, which may read a new register.
      if i + 1 < len(stages) and _makes_registers(stage, shapes):
        leaves, treedef = jax.tree.flatten(shapes)
        kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        shapes = after(i, treedef, kinds, num_replicas)
    return spent

  # Kept because the shapes are those of every span of steps, and a trace of
  # many leaves takes seconds.
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

  return ReplicaTransformation(
    update,
    init,
    cost,
    output,
    joined([stage.names for stage in stages]),
    tuple(sent for stage in stages for sent in stage.talks),
  )


def _makes_registers(stage: ReplicaTransformation, shapes: Replica) -> bool:
  made = stage.names.writes | stage.names.declares
  return bool(made - shapes.registers.keys() - set(FIELDS))


def _shapes_after(
  stage: ReplicaTransformation, shapes: Replica, num_replicas: int
) -> Replica:
  """One replica's shapes after a stage, whose `init` says what it assigns."""
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
      f'a stage announces talks={stage.talks}, but its cost has {sent} '
      'message(s); give one bool for each'
    )


def _with_own_keys(
  context: Context, stage: ReplicaTransformation, i: int
) -> Context:
  """Gives the i-th stage keys of its own, so that stages draw independently.

  A stage that does not name a key gets none, because with the key of another
  stage it would silently draw the same numbers.
  """
  fold = functools.partial(jax.random.fold_in, data=i)
  draws, draws_alike = (k in stage.names.uses for k in ('key', 'shared_key'))
  return context._replace(
    key=jax.vmap(fold)(context.key) if draws else NO_KEY,
    shared_key=fold(context.shared_key) if draws_alike else NO_KEY,
  )


def lasting(algorithm: ReplicaTransformation, replica: Replica) -> Replica:
  """Returns the replica with the registers that last from step to step.

  A training loop of your own carries these from step to step. All other
  registers end with the step, as they do in the engine.

  Args:
    algorithm: the whole algorithm.
    replica: after `algorithm.init` or `algorithm.update`.

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
  """Maps a function of one replica's trees over the block axis V."""
  return jax.vmap(fn)

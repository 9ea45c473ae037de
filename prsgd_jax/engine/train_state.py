"""The state of all replicas on their devices, and its consensus."""

import functools
import math
import operator
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Replica,
  ReplicaTransformation,
  lasting,
)
from prsgd_jax.checks import check_live, check_seed
from prsgd_jax.engine.engine_checks import check_arrays, check_setting
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.mixing.payload import is_inexact, wire_dtype
from prsgd_jax.names import check_complete
from prsgd_jax.tracing.keys import from_data, is_typed, to_data
from prsgd_jax.tree_types import describe, difference


class TrainState(struct.PyTreeNode):
  """All that a run has: arrays only, every leaf with the leading axis D.

  Attributes:
    step: int32[D], steps done: the one clock, the same on all devices.
    key: key[D], made of the seed, the same on all devices.
    params, opt_state, model_state: `[D, V, ...]`.
    algorithm_state: the private states of the stages, `[D, V, ...]`.
    registers: name -> tree, the registers that `remember` declares, `[D, V,
      ...]`.
  """

  step: Array
  key: Array
  params: ArrayTree
  opt_state: ArrayTree
  model_state: ArrayTree
  algorithm_state: ArrayTree
  registers: dict[str, ArrayTree] = struct.field(default_factory=dict)

  def replica(self) -> Replica:
    """The replicas as the first stage of a step finds them."""
    return Replica(
      params=self.params,
      opt_state=self.opt_state,
      model_state=self.model_state,
      registers=self.registers,
    )

  def advance(
    self, replica: Replica, algorithm_state: ArrayTree
  ) -> 'TrainState':
    """Returns the state after a step that ended with this replica.

    Raises:
      ValueError: if the step changed a structure, a shape or a dtype.
    """
    after = self.replace(
      step=self.step + 1,
      params=replica.params,
      opt_state=replica.opt_state,
      model_state=replica.model_state,
      algorithm_state=algorithm_state,
      # What belongs to the step ends with it.
      registers={name: replica.registers[name] for name in self.registers},
    )
    _check_types(self, after)
    return after


def _check_types(before: TrainState, after: TrainState) -> None:
  """Raises ValueError where a step changed a type, naming the leaf."""
  old, new = _named(before), _named(after)
  for name in old:
    change = difference(old[name], new[name], axes=1)
    if change:
      cause = ''
      if name == 'opt_state':
        cause = (
          '; the optimizer mixes dtypes: use parameters of one dtype, or cast '
          'in the optimizer'
        )
      raise ValueError(
        f'a step must keep the structure, shapes and dtypes of {name!r}, but '
        f'{change}{cause}'
      )


def _named(state: TrainState) -> dict[str, ArrayTree]:
  fields = ('params', 'opt_state', 'model_state', 'algorithm_state')
  return {**{n: getattr(state, n) for n in fields}, **state.registers}


def check_state(who: str, mesh: ReplicaMesh | None, state: Any) -> None:
  """Checks that a state can be read, and that it lies on the mesh.

  Args:
    who: what the state was passed to.
    mesh: where it should be; None if anywhere.
    state: what was passed.

  Raises:
    ValueError: if it is no `TrainState`, was given to `train_steps` before, or
      is of another mesh.
  """
  if not isinstance(state, TrainState):
    raise ValueError(
      f'{who} expects the state that pr.engine.create_train_state returns, got '
      f'{describe(state)}'
    )
  check_live(state.step)
  if mesh is None:
    return
  leaf = jax.tree.leaves(state.params)[0]
  layout = (mesh.num_devices, mesh.block_size)
  if leaf.shape[:2] != layout or state.step.shape != layout[:1]:
    raise ValueError(
      f'{who} was made for {mesh}, but the state has the leading axes '
      f'{leaf.shape[:2]} of another mesh; use one mesh throughout'
    )


def check_fits(
  algorithm: ReplicaTransformation, state: TrainState, num_replicas: int
) -> None:
  """Checks that a state is of the algorithm: only types are compared.

  Args:
    algorithm: what is to read the state.
    state: of a block, leaves `[V, ...]`.
    num_replicas: N.

  Raises:
    ValueError: if it is of another algorithm.
  """
  fresh = jax.eval_shape(
    functools.partial(create_block, algorithm, num_replicas, 0),
    (state.params, state.model_state),
  )
  expected, found = _named(fresh), _named(state)
  for name in [*expected, *found]:
    change = difference(expected.get(name, ()), found.get(name, ()), axes=1)
    if change:
      raise ValueError(
        f'the state is of another algorithm: its {name} differs, {change}; '
        'make it by create_train_state(mesh, algorithm, ...) of this one'
      )


def create_train_state(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  params: ArrayTree,
  model_state: ArrayTree = (),
  *,
  seed: int = 0,
  per_replica: bool = False,
) -> TrainState:
  """Makes the state of a new run on the devices of the mesh.

  The arrays given are copied: donating the state leaves them alone.

  Args:
    mesh: where the replicas live.
    algorithm: what will update the state.
    params: one point from which all replicas start; with `per_replica`, N
      points, every leaf `[N, ...]`.
    model_state: batch statistics and the like, in the same form. Random keys
      in it, such as those of flax nnx's dropout, are replaced before each loss
      by keys made of the seed, the replica and the step.
    seed: of all randomness of the run, an integer in 0 .. 2^32 - 1.
    per_replica: whether `params` and `model_state` have the leading axis N. An
      algorithm that keeps the last agreed point (`outer`, SlowMo, FedPAQ, an
      elastic center) takes a replica's own start for it: from different points
      its replicas agree late or never.

  Raises:
    ValueError: if a stage reads a register that holds nothing, or assigns one
      that nobody reads; if the algorithm does not fit the number of replicas;
      if leaves lack the leading axis N where it is promised.
  """
  check_setting('create_train_state', mesh, algorithm)
  check_complete(algorithm.names)
  seed = check_seed('seed', seed)
  point = (params, model_state)
  check_arrays(params=params, model_state=model_state)
  if not per_replica:
    shape = (mesh.num_replicas,)
    copies = jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x), shape + np.shape(x)),
      to_data(point),
    )
    point = from_data(copies, point)

  create = functools.partial(create_block, algorithm, mesh.num_replicas, seed)
  return mesh.map(create)(mesh.place(point))


def create_block(
  algorithm: ReplicaTransformation,
  num_replicas: int,
  seed: int | Array,
  point: tuple[ArrayTree, ArrayTree],
) -> TrainState:
  """Makes the state of a block, leaves `[V, ...]`.

  Args:
    algorithm: what will update the state.
    num_replicas: N.
    seed: of all randomness.
    point: (params, model_state) of the block.
  """
  replica = Replica(params=point[0], model_state=point[1])
  replica, algorithm_state = algorithm.init(replica, num_replicas)
  replica = lasting(algorithm, replica)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key(seed, impl='threefry2x32'),
    params=replica.params,
    opt_state=replica.opt_state,
    model_state=replica.model_state,
    algorithm_state=algorithm_state,
    registers=dict(replica.registers),
  )
  return jax.tree.map(_strong, state)


def _strong(x: Array) -> Array:
  """Without the weak type that would cost a second trace."""
  return jax.lax.convert_element_type(x, x.dtype)


def replica_shapes(state: TrainState) -> Replica:
  """One replica's shapes and dtypes: what the ledger counts."""

  def shape(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[2:], x.dtype)

  return Replica(
    params=jax.tree.map(shape, state.params),
    grads=jax.tree.map(shape, state.params),
    opt_state=jax.tree.map(shape, state.opt_state),
    model_state=jax.tree.map(shape, state.model_state),
    registers=jax.tree.map(shape, state.registers),
  )


def initial_shapes(
  algorithm: ReplicaTransformation,
  num_replicas: int,
  params: ArrayTree,
  model_state: ArrayTree = (),
) -> Replica:
  """Returns one replica's shapes before there is a state.

  Args:
    algorithm: what will update the state.
    num_replicas: N.
    params: of one model, arrays or their shapes.
    model_state: of one model, in the same form.

  Returns:
    What `replica_shapes` returns of the state.

  Raises:
    ValueError: if the algorithm does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(optax.sgd(0.1), period=4)
    >>> initial_shapes(algorithm, 8, np.zeros(3, np.float32)).params
    ShapeDtypeStruct(shape=(3,), dtype=float32)
  """

  def create(point: tuple[ArrayTree, ArrayTree]) -> TrainState:
    block = jax.tree.map(lambda x: jnp.asarray(x)[None], point)
    state = create_block(algorithm, num_replicas, 0, block)
    return jax.tree.map(lambda x: x[None], state)

  return replica_shapes(jax.eval_shape(create, (params, model_state)))


def consensus(
  algorithm: ReplicaTransformation, state: TrainState
) -> tuple[ArrayTree, ArrayTree]:
  """The algorithm's output averaged over the replicas, on the host.

  Returns:
    (params, model_state) of one model, NumPy arrays. Counters, other integers
    and random keys, which have no mean, are those of replica 0. Typed keys are
    arrays of JAX, because NumPy has none.
  """

  if not isinstance(algorithm, ReplicaTransformation):
    raise ValueError(
      'consensus expects (algorithm, state), got '
      f'{describe((algorithm, state))}'
    )
  check_state('consensus', None, state)
  num_replicas = math.prod(jax.tree.leaves(state.params)[0].shape[:2])
  check_fits(algorithm, jax.eval_shape(_first_block, state), num_replicas)

  def blocks(x: Array) -> np.ndarray:
    host = np.asarray(x)
    num_devices, block_size = host.shape[:2]
    return host.reshape((num_devices * block_size, *host.shape[2:]))

  given = (state.replica(), state.algorithm_state)
  data = jax.tree.map(blocks, to_data(given))
  replica, algorithm_state = from_data(data, given)
  out = algorithm.output(replica, algorithm_state)
  return jax.tree.map(host_mean, (out.params, out.model_state))


def _first_block(state: TrainState) -> TrainState:
  return jax.tree.map(operator.itemgetter(0), state)


def host_mean(x: np.ndarray) -> np.ndarray:
  """Returns the mean over `[N, ...]`; integers are those of replica 0."""
  if is_typed(x) or not is_inexact(x):
    return x[0]
  return np.asarray(x).mean(axis=0, dtype=wire_dtype(x)).astype(x.dtype)

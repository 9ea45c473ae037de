"""TRAIN STATE: the arrays of all replicas on their devices, and their average.

Every leaf is `[D, V, ...]`: V replicas on each of D devices. `step` and `key`
are `[D]` and equal on all devices. `create_train_state` makes a state,
`advance` replaces it after a step, and `consensus` averages the replicas.
"""

import functools
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
from prsgd_jax.stages.presence import presence
from prsgd_jax.tracing.keys import from_data, is_typed, to_data
from prsgd_jax.tree_types import describe, difference


class TrainState(struct.PyTreeNode):
  """The whole state of a run, arrays with the leading axis D.

  Attributes:
    step: int32[D], the number of steps done, equal on all devices.
    key: key[D], made of the seed, equal on all devices.
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
    """Return the replicas as the first stage of a step receives them."""
    return Replica(
      params=self.params,
      opt_state=self.opt_state,
      model_state=self.model_state,
      registers=self.registers,
    )

  def advance(
    self, replica: Replica, algorithm_state: ArrayTree
  ) -> 'TrainState':
    """Return the state after a step.

    Args:
      replica: the replicas as the last stage of the step returned them.
      algorithm_state: the private states of the stages after the step.

    Raises:
      ValueError: if the step changed a structure, a shape or a dtype.
    """
    after = self.replace(
      step=self.step + 1,
      params=replica.params,
      opt_state=replica.opt_state,
      model_state=replica.model_state,
      algorithm_state=algorithm_state,
      # Only declared registers, because the others belong to the step.
      registers={name: replica.registers[name] for name in self.registers},
    )
    _check_types(self, after)
    return after


def _check_types(before: TrainState, after: TrainState) -> None:
  """Raise ValueError, with the name of the leaf, if a step changed a type."""
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
  """Check that a state can be read, and that it is on the mesh.

  Args:
    who: name of the caller, for the message.
    mesh: mesh that the state should be on; None accepts any.
    state: should be a `TrainState`.

  Raises:
    ValueError: if it is not a `TrainState`, was passed to `train_steps` before,
      or is of another mesh.
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
  layout = (len(mesh.local_devices), mesh.block_size)
  if leaf.shape[:2] != layout or state.step.shape != layout[:1]:
    raise ValueError(
      f'{who} was made for {mesh}, but the state has the leading axes '
      f'{leaf.shape[:2]} of another mesh; use one mesh throughout'
    )


def check_fits(
  algorithm: ReplicaTransformation, state: TrainState, num_replicas: int
) -> None:
  """Check that a state is of an algorithm, by comparing types only.

  Args:
    algorithm: the algorithm that will read the state.
    state: state of a block, leaves `[V, ...]`.
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
        'make it by trainer.init of a trainer of this one'
      )


def check_algorithm(
  algorithm: ReplicaTransformation, state: TrainState, num_replicas: int
) -> None:
  """Check that a whole state is of an algorithm, by comparing types only.

  Args:
    algorithm: the algorithm that will read the state.
    state: state of a run, leaves `[D, V, ...]`.
    num_replicas: N.

  Raises:
    ValueError: if it is of another algorithm.
  """
  check_fits(algorithm, jax.eval_shape(_first_block, state), num_replicas)


def create_train_state(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  params: ArrayTree,
  model_state: ArrayTree = (),
  *,
  seed: int = 0,
  per_replica: bool = False,
) -> TrainState:
  """Make the state of a new run on the devices of the mesh.

  The arrays passed are copied, so they stay valid when the state is donated.

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm that will update the state.
    params: one point from which all replicas start; with `per_replica`, N
      points, every leaf `[N, ...]`.
    model_state: state of the model, such as batch statistics; with
      `per_replica`, every leaf `[N, ...]`. Random keys in it (flax nnx's
      dropout) are replaced before each loss by keys made of seed, replica and
      step. Default: none.
    seed: seed of all randomness of the run, in 0 .. 2^32 - 1. Default: 0.
    per_replica: whether `params` and `model_state` have the leading axis N. An
      algorithm that remembers the last agreed point (`outer`, SlowMo, FedPAQ,
      an elastic center) takes the start of each replica for it. Its replicas
      then agree late or never. Default: False.

  Returns:
    The state at step 0.

  Raises:
    ValueError: if a stage reads a register that holds nothing, or assigns one
      that no stage reads; if the algorithm does not fit the number of replicas;
      if `per_replica` and a leaf lacks the leading axis N.
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
  """Make the state of a block, leaves `[V, ...]`.

  Args:
    algorithm: the algorithm that will update the state.
    num_replicas: N.
    seed: seed of all randomness, in 0 .. 2^32 - 1.
    point: (params, model_state) of the block, leaves `[V, ...]`.
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
  """Remove a weak type, because it would cost a second trace."""
  return jax.lax.convert_element_type(x, x.dtype)


def replica_shapes(state: TrainState) -> Replica:
  """Return the shapes and dtypes of one replica, for the ledger.

  Args:
    state: state of a run, leaves `[D, V, ...]`.
  """

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
  """Return the shapes and dtypes of one replica without making a state.

  Args:
    algorithm: the algorithm that will update the state.
    num_replicas: N.
    params: parameters of one model, arrays or shapes.
    model_state: model state of one model, arrays or shapes. Default: none.

  Returns:
    The result of `replica_shapes` for the state of a new run.

  Raises:
    ValueError: if the algorithm does not fit the number of replicas, or a leaf
      is not an array or its shape.

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

  check_arrays(params=params, model_state=model_state)
  return replica_shapes(jax.eval_shape(create, (params, model_state)))


def consensus(
  algorithm: ReplicaTransformation,
  state: TrainState,
  mesh: ReplicaMesh | None = None,
) -> tuple[ArrayTree, ArrayTree]:
  """Average the output of an algorithm over the replicas, on the host.

  All replicas alive count alike, even if they have a register `weight`. So
  between two rounds of `fedavg` with weights or participation, it is another
  point than the next average; and for `sgp` with weights other than 1, it is
  the mean of z, which moves when the mean of x does not.

  Args:
    algorithm: the algorithm of the state.
    state: state of a run, leaves `[D, V, ...]`.
    mesh: placement of the replicas. Only several processes need it, and then
      each must make the call. Default: none.

  Returns:
    (params, model_state) of one model, NumPy arrays. Integers and random keys
    have no mean and are taken from replica 0, or the first one alive. Typed
    keys are JAX arrays, because NumPy has none.

  Raises:
    ValueError: if the arguments are not an algorithm and a state of it, or a
      run of several processes passes no mesh.
  """
  if not isinstance(algorithm, ReplicaTransformation):
    raise ValueError(
      'consensus expects (algorithm, state), got '
      f'{describe((algorithm, state))}'
    )
  check_state('consensus', mesh, state)
  if mesh is None and jax.process_count() > 1:
    raise ValueError(
      'consensus needs the mesh with several processes; call '
      'pr.engine.consensus(algorithm, state, mesh)'
    )

  def blocks(x: Array) -> np.ndarray:
    host = np.asarray(x)
    num_devices, block_size = host.shape[:2]
    return host.reshape((num_devices * block_size, *host.shape[2:]))

  given = (state.replica(), state.algorithm_state)
  if mesh is None:
    data = jax.tree.map(blocks, to_data(given))
  else:
    data = mesh.gather(given)
  num_replicas = len(jax.tree.leaves(data)[0])
  check_algorithm(algorithm, state, num_replicas)
  replica, algorithm_state = from_data(data, given)
  out = algorithm.output(replica, algorithm_state)
  present = presence(out)
  rows = np.arange(len(jax.tree.leaves(out.params)[0]))
  if present is not None and present.any():
    rows = np.flatnonzero(present)
  point = (out.params, out.model_state)
  return jax.tree.map(lambda x: host_mean(x[rows]), point)


def _first_block(state: TrainState) -> TrainState:
  return jax.tree.map(operator.itemgetter(0), state)


def host_mean(x: np.ndarray) -> np.ndarray:
  """Return the mean over `[N, ...]`; integers come from replica 0."""
  if is_typed(x) or not is_inexact(x):
    return x[0]
  return np.asarray(x).mean(axis=0, dtype=wire_dtype(x)).astype(x.dtype)

"""TRAINING: many steps of an algorithm in one program, by `lax.scan`.

The caller passes pure functions of one replica,

  loss_fn(params, model_state, batch, key) -> (loss, (model_state, metrics))
  batch_fn(data, step, replica, key) -> batch

and each step is one `algorithm.update` on the block of each device.
"""

from collections.abc import Callable
import operator
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree, Context, ReplicaTransformation
from prsgd_jax.checks import check_num_steps
from prsgd_jax.data.gathering import Gather
from prsgd_jax.data.samplers import BatchFn, Transform
from prsgd_jax.engine import in_flight
from prsgd_jax.engine.engine_checks import check_setting
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState, check_fits, check_state
from prsgd_jax.tracing.caller_functions import (
  BATCH,
  LOSS,
  check_floats,
  check_signature,
  checked_loss,
)
from prsgd_jax.tracing.isolation import (
  completing,
  isolated,
  traced,
  types_of,
)
from prsgd_jax.tracing.keys import renew
from prsgd_jax.tracing.primitives import has_convolution
from prsgd_jax.tree_types import describe

# Rows of a dispatch that are computed before its first step, at most 64 MiB.
MOST_ROWS = 2**24

LossFn = Callable[[ArrayTree, ArrayTree, Any, Array], Any]


def make_train_steps(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  loss_fn: LossFn,
  transform: Transform | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, ArrayTree]]:
  """Make the function that trains on batches the caller passes.

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm to run.
    loss_fn: the loss of one replica, without collectives over the replicas.
    transform: `(key, batch) -> batch` of one replica, such as augmentation; it
      runs inside the scan. Default: none.

  Returns:
    `(state, batches) -> (state, metrics)`. Batches have leaves `[D, steps, V,
    batch, ...]`; `feeding.stack_batches` makes them. Metrics are `[D, steps, V,
    ...]`: `loss`, the metrics of `loss_fn`, and `active` if a stage `where`
    lets replicas pause. The state passed is donated, so use the one returned.
    Batches of 0 steps do nothing. At most two dispatches of the process are in
    flight. The attribute `lower` lowers the program, as in `jax.jit(f).lower`.

  Raises:
    ValueError: if the arguments are not a mesh, an algorithm and a function of
      four arguments. The result raises it if the state, the batches or the
      result of `loss_fn` is not as described.
  """
  check_setting('make_train_steps', mesh, algorithm)
  grad_fn = gradient_of(loss_fn)
  transform_fn = transform and isolated('transform', transform)

  def run(state: TrainState, batches: Any) -> tuple[TrainState, ArrayTree]:
    def step(state: TrainState, batch: Any) -> tuple[TrainState, ArrayTree]:
      def draw(keys: Array) -> Any:
        return jax.vmap(transform_fn)(keys, batch) if transform_fn else batch

      return _step(mesh, algorithm, grad_fn, state, draw)

    num_steps = jax.tree.leaves(batches)[0].shape[0]
    return _scan(step, state, batches, num_steps)

  dispatch, lower = _compile(
    mesh, algorithm, run, functions=2 if transform else 1
  )

  def train_steps(
    state: TrainState, batches: Any
  ) -> tuple[TrainState, ArrayTree]:
    """Train for one step per batch."""
    num_steps = _count_batches(mesh, batches)

    def piece(i: int) -> tuple[Any]:
      if not num_steps:  # only the shapes matter
        return (jax.tree.map(_one_step_like, batches),)
      return (jax.tree.map(lambda x: x[:, i : i + 1], batches),)

    return dispatch(state, (batches,), num_steps, piece)

  train_steps.lower = lower  # type: ignore[attr-defined]
  return train_steps


def _one_step_like(x: Array) -> np.ndarray:
  return np.zeros((x.shape[0], 1, *x.shape[2:]), x.dtype)


def _count_batches(mesh: ReplicaMesh, batches: Any) -> int:
  """Return the number of steps of stacked batches.

  Raises:
    ValueError: if a leaf is not `[D, steps, V, ...]`.
  """
  num_devices, block_size = len(mesh.local_devices), mesh.block_size
  shapes = [np.shape(x) for x in jax.tree.leaves(batches)]
  counts = {x[1] if len(x) > 2 else None for x in shapes}
  fits = all(x[:1] + x[2:3] == (num_devices, block_size) for x in shapes)
  if len(counts) != 1 or not fits:
    raise ValueError(
      f'batches must have leaves [D, steps, V, ...] = [{num_devices}, steps, '
      f'{block_size}, ...], got {describe(batches)}; make them by '
      'pr.engine.stack_batches(mesh, iterator, num_steps)'
    )
  return shapes[0][1]


def make_resident_train_steps(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  loss_fn: LossFn,
  batch_fn: BatchFn,
) -> Callable[[TrainState, Any, int], tuple[TrainState, ArrayTree]]:
  """Make the function that trains on data that stays on the devices.

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm to run.
    loss_fn: the loss of one replica, without collectives over the replicas.
    batch_fn: pure function `(data, step, replica, key) -> batch` of one
      replica. It runs inside the scan.

  Returns:
    `(state, data, num_steps) -> (state, metrics)`, with data as
    `ReplicaMesh.replicate` places it. State, metrics and `lower` are as in
    `make_train_steps`.

  Raises:
    ValueError: if the arguments are not a mesh, an algorithm and two functions
      of four arguments. The result raises it if `num_steps` is not an integer
      >= 0, or the state, the data or the result of `loss_fn` is not as
      described.
  """
  check_setting('make_resident_train_steps', mesh, algorithm)
  check_signature(BATCH, batch_fn)
  grad_fn = gradient_of(loss_fn)
  rows_fn, read_fn = (isolated('batch_fn', f) for f in _parts(batch_fn))

  def run(
    state: TrainState, data: Any, num_steps: int
  ) -> tuple[TrainState, ArrayTree]:
    def block_rows(step: Array) -> Any:
      return jax.vmap(rows_fn, (None, 0))(step, mesh.replica_index())

    def step(
      state: TrainState, rows: Any | None
    ) -> tuple[TrainState, ArrayTree]:
      def draw(keys: Array) -> Any:
        own = block_rows(state.step) if rows is None else rows
        return jax.vmap(read_fn, (None, 0, 0))(data, own, keys)

      return _step(mesh, algorithm, grad_fn, state, draw)

    rows = None
    of_step = jax.tree.leaves(jax.eval_shape(block_rows, state.step))
    if num_steps * sum(x.size for x in of_step) <= MOST_ROWS:
      # All steps together, because in the scan they are short loops.
      rows = jax.vmap(block_rows)(state.step + jnp.arange(num_steps))
    return _scan(step, state, rows, num_steps)

  dispatch, lower = _compile(
    mesh, algorithm, run, functions=3, static_argnums=(2,)
  )

  def train_steps(
    state: TrainState, data: Any, num_steps: int
  ) -> tuple[TrainState, ArrayTree]:
    """Train for `num_steps` steps on the data."""
    num_steps = check_num_steps(num_steps)
    mesh.check_replicated(data)
    inputs = (data, num_steps)
    return dispatch(state, inputs, num_steps, lambda i: (data, 1))

  train_steps.lower = lower  # type: ignore[attr-defined]
  return train_steps


def _parts(batch_fn: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Return `(step, replica) -> rows` and `(data, rows, key) -> batch`.

  For a function that is not made of a sampler, the rows are step and replica.
  """
  if isinstance(batch_fn, Gather):
    return batch_fn.rows, batch_fn.read
  return (
    lambda step, replica: (step, replica),
    lambda data, rows, key: batch_fn(data, *rows, key),
  )


def gradient_of(loss_fn: LossFn) -> Callable[..., Any]:
  """Return the isolated function of a loss and its gradient, of one replica.

  Args:
    loss_fn: the loss of one replica, without collectives over the replicas.

  Raises:
    ValueError: if `loss_fn` is not a function of four arguments.
  """
  return isolated('loss_fn', _value_and_grad(loss_fn))


def _value_and_grad(loss_fn: LossFn) -> Callable[..., Any]:
  check_signature(LOSS, loss_fn)
  grad_fn = jax.value_and_grad(checked_loss(loss_fn), has_aux=True)

  def checked(params: ArrayTree, *args: Any) -> Any:
    check_floats(params)  # because the error of JAX names no leaf
    return grad_fn(params, *args)

  return checked


def make_block(
  mesh: ReplicaMesh, loss_fn: LossFn
) -> Callable[[ArrayTree, ArrayTree, Any], str]:
  """Make the function that returns how a loss is mapped over a block.

  Args:
    mesh: placement of the replicas.
    loss_fn: the loss of one replica.

  Returns:
    `(params, model_state, batch) -> str`, 'vmap', 'unrolled' or 'loop', of
    arrays of one replica or their shapes. It traces the loss unless the mesh
    has a `block`.
  """

  def block(params: ArrayTree, model_state: ArrayTree, batch: Any) -> str:
    if mesh.block is not None:
      return mesh.block
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (params, model_state, batch, key)
    return mesh.block_of(traced('loss_fn', _value_and_grad(loss_fn), *args))

  return block


class StepKeys(NamedTuple):
  """The random keys of a block in one step.

  Attributes:
    batch, stage, loss, renewal: key[V], for `batch_fn`, the stages, `loss_fn`,
      and the keys inside model states.
    shared: key for the stages, equal on all replicas.
  """

  batch: Array
  stage: Array
  loss: Array
  renewal: Array
  shared: Array


def step_keys(root: Array, step: Array, replica_index: Array) -> StepKeys:
  """Return the keys of a step, which depend on seed, replica and step only.

  Args:
    root: the key made of the seed.
    step: int32 scalar, 0-based.
    replica_index: int32[V], in 0 .. N - 1.
  """
  shared_root, replica_root = jax.random.split(root)
  shared_key = jax.random.fold_in(shared_root, step)
  step_key = jax.random.fold_in(replica_root, step)
  keys = jax.vmap(
    lambda r: jax.random.split(jax.random.fold_in(step_key, r), 4)
  )(replica_index)
  batch, stage, loss, renewal = (keys[:, i] for i in range(4))
  return StepKeys(batch, stage, loss, renewal, shared_key)


def one_step(
  algorithm: ReplicaTransformation,
  block_grad_fn: Callable[..., Any],
  state: TrainState,
  replica_index: Array,
  keys: StepKeys,
  batch: Any,
) -> tuple[TrainState, ArrayTree]:
  """Take one step of a block: one `algorithm.update` on one batch.

  Args:
    algorithm: the algorithm to run.
    block_grad_fn: `gradient_of(loss_fn)`, mapped over the block.
    state: state of a block, leaves `[V, ...]`.
    replica_index: int32[V], in 0 .. N - 1.
    keys: the keys of this step.
    batch: the batch of this step, leaves `[V, batch, ...]`.

  Returns:
    The state after the step, and its metrics, `[V, ...]`.
  """
  context = Context(
    step=state.step,
    replica=replica_index,
    key=keys.stage,
    shared_key=keys.shared,
    value_and_grad=lambda p, s: block_grad_fn(
      p, renew(s, keys.renewal), batch, keys.loss
    ),
  )
  replica, algorithm_state = algorithm.update(
    state.replica(), state.algorithm_state, context
  )
  return state.advance(replica, algorithm_state), replica.metrics


def _step(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  grad_fn: Callable[..., Any],
  state: TrainState,
  draw: Callable[[Array], Any],
) -> tuple[TrainState, ArrayTree]:
  """Take one step of a device's block, with its keys and its batch."""
  replica_index = mesh.replica_index()
  keys = step_keys(state.key, state.step, replica_index)
  block_grad_fn = mesh.map_block(grad_fn)
  batch = draw(keys.batch)
  return one_step(algorithm, block_grad_fn, state, replica_index, keys, batch)


def _scan(
  step: Callable[..., Any], state: TrainState, xs: Any, length: int
) -> tuple[TrainState, ArrayTree]:
  """Scan, except for one step, because `lax.scan` would make it a loop."""
  if length > 1:
    return lax.scan(step, state, xs, length=length)
  state, metrics = step(state, jax.tree.map(operator.itemgetter(0), xs))
  return state, jax.tree.map(lambda x: x[None], metrics)


class _SlowLoop(Exception):
  """Raised for a program that would be slow as a loop."""


def _compile(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  run: Callable[..., tuple[TrainState, ArrayTree]],
  functions: int,
  static_argnums: tuple[int, ...] = (),
) -> tuple[
  Callable[..., tuple[TrainState, ArrayTree]], Callable[..., jax.stages.Lowered]
]:
  """Map `run` over the devices and bound the dispatches in flight.

  On CPU, a loss with convolutions is dispatched step by step, because XLA runs
  a convolution inside a loop 20 to 40 times slower than outside (measured with
  ResNet-20).

  Args:
    mesh: placement of the replicas.
    algorithm: the algorithm to run.
    run: `(state, *inputs) -> (state, metrics)` of a block.
    functions: number of isolated functions that `run` calls.
    static_argnums: positions of the arguments of `run` that are not arrays.

  Returns:
    A pair. `(state, inputs, num_steps, piece) -> (state, metrics)`, where
    `inputs` are the arguments of `run` after the state for all steps, and
    `piece(i)` the arguments for step i; with 0 steps, only the shapes of
    `piece(0)` matter. And a function of the arguments of `run` that lowers the
    program of all steps.
  """

  fitting: set[Any] = set()

  def with_token(state: TrainState, *inputs: Any) -> Any:
    # Checked once, because `completing` traces for each function it isolates.
    types = types_of(state)
    if types not in fitting:
      check_fits(algorithm, state, mesh.num_replicas)
      fitting.add(types)
    state, metrics = run(state, *inputs)
    # A token to wait for, because the next dispatch donates the state, and an
    # algorithm without a gradient has no metrics.
    return state, metrics, state.step + 0

  by_steps = False

  def watch(jaxpr: Any) -> None:
    on_cpu = mesh.devices[0].platform == 'cpu'
    if on_cpu and not by_steps and has_convolution(jaxpr):
      raise _SlowLoop

  program = mesh.map(
    with_token, donate_argnums=(0,), static_argnums=static_argnums
  )
  mapped = completing(program, functions, watch)
  unwatched = completing(program, functions)

  def advance(state: TrainState, *inputs: Any) -> tuple[TrainState, ArrayTree]:
    in_flight.make_room()
    state, metrics, token = mapped(state, *inputs)
    in_flight.add(token)
    return state, metrics

  def dispatch(
    state: TrainState,
    inputs: tuple[Any, ...],
    num_steps: int,
    piece: Callable[[int], tuple[Any, ...]],
  ) -> tuple[TrainState, ArrayTree]:
    nonlocal by_steps
    check_state('train_steps', mesh, state)
    if not num_steps:
      one_step = jax.eval_shape(lambda s: unwatched(s, *piece(0)), state)
      return state, _without_steps(mesh, one_step[1])
    if not by_steps:
      try:
        return advance(state, *inputs)
      except _SlowLoop:
        by_steps = True
    collected = []
    for i in range(num_steps):
      state, metrics = advance(state, *piece(i))
      collected.append(metrics)
    return state, jax.tree.map(lambda *xs: jnp.concatenate(xs, 1), *collected)

  def lower(*args: Any) -> jax.stages.Lowered:
    return completing(program.lower, 0)(*args)  # type: ignore[attr-defined]

  return dispatch, lower


def _without_steps(mesh: ReplicaMesh, metrics: ArrayTree) -> ArrayTree:
  """Return empty metrics `[D, 0, V, ...]` with the given types."""

  def empty(x: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.zeros((x.shape[0], 0, *x.shape[2:]), x.dtype)

  return mesh.place_per_device(jax.tree.map(empty, metrics))

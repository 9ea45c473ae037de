"""The engine: scanned training steps, and evaluation.

The engine knows pure functions of one replica only:

  loss_fn(params, model_state, batch, key) -> (loss, (model_state, metrics))
  batch_fn(data, step, replica, key) -> batch
  eval_fn(params, model_state, batch) -> dict of values [batch]

A dispatch runs many steps by `lax.scan` inside the mapped function, and each
step is one `algorithm.update`.
"""

import collections
from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import analysis
from prsgd_jax.base import (
  AXIS_NAME,
  Array,
  ArrayTree,
  Context,
  ReplicaTransformation,
  check_positive_int,
)
from prsgd_jax.mixing import is_inexact, wire_dtype
from prsgd_jax.replica_mesh import ReplicaMesh
from prsgd_jax.train_state import TrainState

LossFn = Callable[[ArrayTree, ArrayTree, Any, Array], Any]
BatchFn = Callable[[Any, Array, Array, Array], Any]
EvalFn = Callable[[ArrayTree, ArrayTree, Any], dict[str, Array]]

# Un-awaited dispatches of a program with a collective dead-lock on CPU.
MAX_IN_FLIGHT = 2


def make_train_steps(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, loss_fn: LossFn
) -> Callable[[TrainState, Any], tuple[TrainState, ArrayTree]]:
  """Training on batches that the caller brings.

  Args:
    mesh: where the replicas live.
    algorithm: the chain to run.
    loss_fn: the loss of one replica, without collectives.

  Returns:
    `(state, batches) -> (state, metrics)`. The batches' leaves are `[D, steps,
    V, batch, ...]` (`input_pipeline.stack_batches` makes them); the metrics'
    are `[D, steps, V]`: `loss`, `active` and what `loss_fn` reports. The state
    given is donated. At most two dispatches are in flight.
  """

  def run(state: TrainState, batches: Any) -> tuple[TrainState, ArrayTree]:
    def step(state: TrainState, batch: Any) -> tuple[TrainState, ArrayTree]:
      return _step(mesh, algorithm, loss_fn, state, lambda keys: batch)

    return lax.scan(step, state, batches)

  return _compile(mesh, run)


def make_resident_train_steps(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  loss_fn: LossFn,
  batch_fn: BatchFn,
) -> Callable[[TrainState, Any, int], tuple[TrainState, ArrayTree]]:
  """Training on data that stays on the devices.

  Args:
    mesh: where the replicas live.
    algorithm: the chain to run.
    loss_fn: the loss of one replica, without collectives.
    batch_fn: one replica's batch of a step, made inside the scan; a function of
      (data, step, replica, key) and of nothing else.

  Returns:
    `(state, data, num_steps) -> (state, metrics)`, with data as
    `ReplicaMesh.replicate` places it, and the rest as in `make_train_steps`.
  """

  def run(
    state: TrainState, data: Any, num_steps: int
  ) -> tuple[TrainState, ArrayTree]:
    def step(state: TrainState, _: None) -> tuple[TrainState, ArrayTree]:
      def draw(keys: Array) -> Any:
        per_replica = jax.vmap(batch_fn, in_axes=(None, None, 0, 0))
        return per_replica(data, state.step, mesh.replica_index(), keys)

      return _step(mesh, algorithm, loss_fn, state, draw)

    return lax.scan(step, state, length=num_steps)

  return _compile(mesh, run, static_argnums=(2,))


def _step(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  loss_fn: LossFn,
  state: TrainState,
  draw: Callable[[Array], Any],
) -> tuple[TrainState, ArrayTree]:
  """One step of the block: its batch, its keys, one `algorithm.update`."""
  replica_index = mesh.replica_index()
  shared_root, replica_root = jax.random.split(state.key)
  shared_key = jax.random.fold_in(shared_root, state.step)
  step_key = jax.random.fold_in(replica_root, state.step)
  keys = jax.vmap(
    lambda r: jax.random.split(jax.random.fold_in(step_key, r), 3)
  )(replica_index)
  batch = draw(keys[:, 0])
  grad_fn = _map_block(mesh, jax.value_and_grad(loss_fn, has_aux=True))
  context = Context(
    step=state.step,
    replica=replica_index,
    key=keys[:, 1],
    shared_key=shared_key,
    value_and_grad=lambda p, s: grad_fn(p, s, batch, keys[:, 2]),
  )
  replica, algorithm_state = algorithm.update(
    state.replica(), state.algorithm_state, context
  )
  return state.advance(replica, algorithm_state), replica.metrics


def _map_block(mesh: ReplicaMesh, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Maps one replica's gradient over its block, the fastest way known.

  On CPU a vmap over convolutions' weights becomes a grouped convolution, five
  times slower than one replica after the other.
  """

  def mapped(*args: Any) -> Any:
    if mesh.block_size == 1:
      out = fn(*jax.tree.map(lambda x: x[0], args))
      return jax.tree.map(lambda x: x[None], out)
    if mesh.devices[0].platform == 'cpu':
      return lax.map(lambda block: fn(*block), args)
    return jax.vmap(fn)(*args)

  return mapped


def _compile(
  mesh: ReplicaMesh,
  run: Callable[..., tuple[TrainState, ArrayTree]],
  static_argnums: tuple[int, ...] = (),
) -> Callable[..., tuple[TrainState, ArrayTree]]:
  """Maps `run` over the devices and bounds the dispatches in flight."""

  def with_token(*args: Any) -> tuple[TrainState, ArrayTree, Array]:
    state, metrics = run(*args)
    # What can be waited for: the state is gone with the next dispatch, and a
    # chain without a gradient has no metrics.
    return state, metrics, state.step + 0

  mapped = mesh.map(
    with_token, donate_argnums=(0,), static_argnums=static_argnums
  )
  in_flight: collections.deque = collections.deque()

  @functools.wraps(mapped)
  def dispatch(*args: Any) -> tuple[TrainState, ArrayTree]:
    while len(in_flight) >= MAX_IN_FLIGHT:
      jax.block_until_ready(in_flight.popleft())
    state, metrics, token = mapped(*args)
    in_flight.append(token)
    return state, metrics

  return dispatch


def make_evaluate(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, eval_fn: EvalFn
) -> Callable[[TrainState, Any], dict[str, float]]:
  """Evaluation of the averaged output, the examples shared by the devices.

  Args:
    mesh: where the replicas live.
    algorithm: whose output is averaged.
    eval_fn: values `[batch]` of one model on a batch.

  Returns:
    `(state, examples) -> dict of means` over the examples, which
    `shard_examples` prepares, with `consensus_distance` of the parameters.
  """

  def run(state: TrainState, examples: Any) -> dict[str, Array]:
    replica = algorithm.output(state.replica(), state.algorithm_state)

    params, model_state = jax.tree.map(
      _average, (replica.params, replica.model_state)
    )
    sums = _sum_over_batches(eval_fn, params, model_state, examples)
    sums, weight = lax.psum(sums, AXIS_NAME)
    means = {name: value / weight for name, value in sums.items()}
    if 'consensus_distance' in means:
      raise ValueError(
        "the value 'consensus_distance' is the engine's own; give that of "
        'eval_fn another name'
      )
    distance = analysis.consensus_distance(replica.params)
    return {**means, 'consensus_distance': distance}

  mapped = mesh.map(run)

  def evaluate(state: TrainState, examples: Any) -> dict[str, float]:
    means = jax.device_get(mapped(state, examples))
    return {name: float(value[0]) for name, value in means.items()}

  return evaluate


def _average(x: Array) -> Array:
  """`[V, ...] -> [...]` as `train_state.consensus` has it, on every device."""
  if is_inexact(x):
    mean = x.astype(wire_dtype(x)).mean(axis=0)
    return lax.pmean(mean, AXIS_NAME).astype(x.dtype)
  first = lax.axis_index(AXIS_NAME) == 0
  own = jnp.where(first, x[0], jnp.zeros_like(x[0]))
  return lax.psum(own, AXIS_NAME).astype(x.dtype)


def make_evaluate_replicas(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, eval_fn: EvalFn
) -> Callable[[TrainState, Any], dict[str, np.ndarray]]:
  """Evaluation of every replica's output by itself, on all examples.

  Returns:
    `(state, examples) -> dict of float[N]`, with examples as `shard_examples`
    prepares them.
  """

  def run(state: TrainState, examples: Any) -> dict[str, Array]:
    replica = algorithm.output(state.replica(), state.algorithm_state)
    everything = jax.tree.map(
      lambda x: lax.all_gather(x, AXIS_NAME, tiled=True), examples
    )

    def one(point: tuple[ArrayTree, ArrayTree]) -> dict[str, Array]:
      sums, weight = _sum_over_batches(eval_fn, *point, everything)
      return {name: value / weight for name, value in sums.items()}

    return lax.map(one, (replica.params, replica.model_state))

  mapped = mesh.map(run)
  return lambda state, examples: mesh.gather(mapped(state, examples))


def shard_examples(mesh: ReplicaMesh, examples: Any, batch_size: int) -> Any:
  """Places examples for evaluation, cut into batches on every device.

  Args:
    mesh: the devices that share the examples.
    examples: tree of host arrays `[n, ...]`.
    batch_size: examples per device in one call of `eval_fn`.

  Returns:
    (examples, weights) on the devices, leaves `[D, batches, batch, ...]`; the
    last batches are filled up with examples of weight 0.

  Raises:
    ValueError: if there are no examples, or `batch_size` is not an integer of
      at least 1.
  """
  check_positive_int('batch_size', batch_size)
  sizes = {len(x) for x in jax.tree.leaves(examples)}
  if len(sizes) != 1 or sizes == {0}:
    raise ValueError(
      'examples must be a tree of arrays of one length >= 1, got lengths '
      f'{sorted(sizes)}'
    )
  (size,) = sizes
  batch_size = min(batch_size, -(-size // mesh.num_devices))
  num_batches = -(-size // (mesh.num_devices * batch_size))
  shape = (mesh.num_devices, num_batches, batch_size)
  row = np.arange(np.prod(shape))
  weights = (row < size).astype(np.float32)
  index = np.minimum(row, size - 1)

  def cut(x: np.ndarray) -> np.ndarray:
    return np.asarray(x)[index].reshape(shape + np.shape(x)[1:])

  return mesh.place_per_device(
    (jax.tree.map(cut, examples), weights.reshape(shape))
  )


def _sum_over_batches(
  eval_fn: EvalFn, params: ArrayTree, model_state: ArrayTree, examples: Any
) -> tuple[dict[str, Array], Array]:
  """Weighted sums of `eval_fn` over a device's batches, and of the weights."""

  def batch_sums(batch: Any) -> tuple[dict[str, Array], Array]:
    inputs, weights = batch
    values = eval_fn(params, model_state, inputs)
    for name, value in values.items():
      if value.shape != weights.shape:
        raise ValueError(
          f'eval_fn must give {name} for each example, shape {weights.shape}, '
          f'got shape {value.shape}'
        )
    sums = {
      name: jnp.where(weights > 0, value * weights, 0).sum()
      for name, value in values.items()
    }
    return sums, weights.sum()

  per_batch = lax.map(batch_sums, examples)
  return jax.tree.map(lambda x: x.sum(axis=0), per_batch)

"""The engine: scanned training steps, and evaluation.

The engine knows pure functions of one replica only:

  loss_fn(params, model_state, batch, key) -> (loss, (model_state, metrics))
  batch_fn(data, step, replica, key) -> batch
  eval_fn(params, model_state, batch) -> dict of values [batch]

A dispatch runs many steps by `lax.scan` inside the mapped function, and each
step is one `algorithm.update`.
"""

import collections
from collections.abc import Callable, Iterator
import functools
import itertools
import operator
from typing import Any

import jax
from jax import lax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from prsgd_jax import analysis, collectives
from prsgd_jax.base import (
  AXIS_NAME,
  Array,
  ArrayTree,
  Context,
  ReplicaTransformation,
  check_positive_int,
)
from prsgd_jax.payload import is_inexact, wire_dtype
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
    are `[D, steps, V]`: `loss`, what `loss_fn` reports, and `active` where
    `while_active` lets replicas sit out. The state
    given is donated. At most two dispatches are in flight.
  """

  def run(state: TrainState, batches: Any) -> tuple[TrainState, ArrayTree]:
    def step(state: TrainState, batch: Any) -> tuple[TrainState, ArrayTree]:
      return _step(mesh, algorithm, loss_fn, state, lambda keys: batch)

    num_steps = jax.tree.leaves(batches)[0].shape[0]
    return _scan(step, state, batches, num_steps)

  def pieces(state: TrainState, batches: Any) -> Iterator[Any]:
    del state
    for i in range(jax.tree.leaves(batches)[0].shape[1]):
      yield (jax.tree.map(lambda x, i=i: x[:, i : i + 1], batches),)

  return _compile(mesh, run, pieces)


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

    return _scan(step, state, None, num_steps)

  def pieces(state: TrainState, data: Any, num_steps: int) -> Iterator[Any]:
    del state
    return itertools.repeat((data, 1), num_steps)

  return _compile(mesh, run, pieces, static_argnums=(2,))


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


def _scan(
  step: Callable[..., Any], state: TrainState, xs: Any, length: int
) -> tuple[TrainState, ArrayTree]:
  """`lax.scan`, which would be a loop for a single step too."""
  if length > 1:
    return lax.scan(step, state, xs, length=length)
  state, metrics = step(state, jax.tree.map(operator.itemgetter(0), xs))
  return state, jax.tree.map(lambda x: x[None], metrics)


def _map_block(mesh: ReplicaMesh, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Maps one replica's gradient over its block, the fastest way known.

  On CPU a vmap over convolutions' weights becomes a grouped convolution, five
  times slower than one replica after the other, and a loop around convolutions
  is slower still (see `_compile`): the block is written out.
  """

  def mapped(*args: Any) -> Any:
    if mesh.block_size > 1 and mesh.devices[0].platform != 'cpu':
      return jax.vmap(fn)(*args)
    once = jax.jit(fn, inline=True)  # traced once for the rows
    rows = [
      once(*jax.tree.map(operator.itemgetter(i), args))
      for i in range(mesh.block_size)
    ]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *rows)

  return mapped


def _compile(
  mesh: ReplicaMesh,
  run: Callable[..., tuple[TrainState, ArrayTree]],
  pieces: Callable[..., Iterator[Any]],
  static_argnums: tuple[int, ...] = (),
) -> Callable[..., tuple[TrainState, ArrayTree]]:
  """Maps `run` over the devices and bounds the dispatches in flight.

  XLA's CPU backend runs a convolution inside a loop 20 to 40 times slower than
  outside of one (measured with ResNet-20), so there a program with convolutions
  is dispatched step by step: `pieces` gives the further arguments of each.
  """

  def with_token(*args: Any) -> tuple[TrainState, ArrayTree, Array]:
    state, metrics = run(*args)
    # What can be waited for: the state is gone with the next dispatch, and a
    # chain without a gradient has no metrics.
    return state, metrics, state.step + 0

  mapped = mesh.map(
    with_token, donate_argnums=(0,), static_argnums=static_argnums
  )
  in_flight: collections.deque = collections.deque()
  slow_loops: list[bool] = []  # known once a program is traced

  def advance(*args: Any) -> tuple[TrainState, ArrayTree]:
    while len(in_flight) >= MAX_IN_FLIGHT:
      jax.block_until_ready(in_flight.popleft())
    state, metrics, token = mapped(*args)
    in_flight.append(token)
    return state, metrics

  @functools.wraps(mapped)
  def dispatch(state: TrainState, *inputs: Any) -> Any:
    if not slow_loops:
      on_cpu = mesh.devices[0].platform == 'cpu'
      slow_loops.append(
        on_cpu and _has_convolution(mapped, static_argnums, state, *inputs)
      )
    if not slow_loops[0]:
      return advance(state, *inputs)
    collected = []
    for piece in pieces(state, *inputs):
      state, metrics = advance(state, *piece)
      collected.append(metrics)
    return state, jax.tree.map(lambda *xs: jnp.concatenate(xs, 1), *collected)

  return dispatch


def _has_convolution(
  fn: Callable[..., Any], static_argnums: tuple[int, ...], *args: Any
) -> bool:
  traced = jax.make_jaxpr(fn, static_argnums=static_argnums)(*args)
  return 'conv_general_dilated' in _primitives(traced.jaxpr)


def _primitives(jaxpr: Any) -> set[str]:
  """The names of all primitives of a jaxpr and of those inside it."""
  names = set()
  for eqn in jaxpr.eqns:
    names.add(eqn.primitive.name)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      names |= _primitives(inner)
  return names


def make_evaluate(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  eval_fn: EvalFn,
  *,
  refresh: Callable[[Any], Any] | None = None,
) -> Callable[[TrainState, Any], dict[str, float]]:
  """Evaluation of the averaged output, the examples shared by the devices.

  Args:
    mesh: where the replicas live.
    algorithm: whose output is averaged.
    eval_fn: values `[batch]` of one model on a batch.
    refresh: what is done to the averaged (params, model_state), leaves
      `[D, ...]`, before; such as `make_reestimate`'s on the training data.

  Returns:
    `(state, examples) -> dict of means` over the examples, which
    `shard_examples` prepares, with `consensus_distance` of the replicas'
    parameters (not of their outputs).
  """

  def average(state: TrainState) -> tuple[Any, Array]:
    replica = algorithm.output(state.replica(), state.algorithm_state)
    point = jax.tree.map(_average, (replica.params, replica.model_state))
    return point, analysis.consensus_distance(state.params)

  def batch_sums(point: Any, batch: Any) -> Any:
    return _weighted_sums(eval_fn, point, batch)

  mapped_average, mapped_sums = mesh.map(average), mesh.map(batch_sums)

  def evaluate(state: TrainState, examples: Any) -> dict[str, float]:
    point, distance = mapped_average(state)
    if refresh is not None:
      point = refresh(point)
    sums = [mapped_sums(point, batch) for batch in _batches(examples)]
    # [D] of each batch; on the host, so that no loop is around `eval_fn`.
    means = _means([jax.tree.map(np.sum, jax.device_get(s)) for s in sums])
    if 'consensus_distance' in means:
      raise ValueError(
        "the value 'consensus_distance' is the engine's own; give that of "
        'eval_fn another name'
      )
    scalars = {name: float(value) for name, value in means.items()}
    return {**scalars, 'consensus_distance': float(distance[0])}

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

  def output(state: TrainState) -> Any:
    replica = algorithm.output(state.replica(), state.algorithm_state)
    return replica.params, replica.model_state

  def batch_sums(points: Any, batch: Any) -> Any:
    everything = collectives.all_gather(batch)

    def one(*point: Any) -> Any:
      return _weighted_sums(eval_fn, point, everything)

    return _map_block(mesh, one)(*points)

  mapped_output, mapped_sums = mesh.map(output), mesh.map(batch_sums)

  def evaluate(state: TrainState, examples: Any) -> dict[str, np.ndarray]:
    points = mapped_output(state)
    sums = []
    for batch in _batches(examples):
      # Awaited one by one: they have a collective (see MAX_IN_FLIGHT).
      sums.append(mesh.gather(mapped_sums(points, batch)))
    return _means(sums)

  return evaluate


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


def _batches(examples: Any) -> Iterator[Any]:
  """The batches `[D, batch, ...]` of what `shard_examples` made."""
  for i in range(jax.tree.leaves(examples)[0].shape[1]):
    yield jax.tree.map(lambda x, i=i: x[:, i], examples)


def _weighted_sums(
  eval_fn: EvalFn, point: tuple[ArrayTree, ArrayTree], batch: Any
) -> tuple[dict[str, Array], Array]:
  """Weighted sums of `eval_fn` over a batch, and the sum of the weights."""
  inputs, weights = batch
  values = eval_fn(*point, inputs)
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


def _means(sums: list[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
  """Means over the batches from their sums and weights, in float64."""
  total, weight = jax.tree.map(
    lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *sums
  )
  return {name: value / weight for name, value in total.items()}

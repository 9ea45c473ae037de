"""The engine: scanned training steps.

The engine knows pure functions of one replica only:

  loss_fn(params, model_state, batch, key) -> (loss, (model_state, metrics))
  batch_fn(data, step, replica, key) -> batch

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

from prsgd_jax.base import Array, ArrayTree, Context, ReplicaTransformation
from prsgd_jax.replica_mesh import ReplicaMesh
from prsgd_jax.train_state import TrainState

LossFn = Callable[[ArrayTree, ArrayTree, Any, Array], Any]
BatchFn = Callable[[Any, Array, Array, Array], Any]

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
    `where` lets replicas sit out. The state
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
  grad_fn = mesh.map_block(jax.value_and_grad(loss_fn, has_aux=True))
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

"""EVALUATION of the averaged model, or of each replica separately.

The caller passes a pure function of one model,

  eval_fn(params, model_state, batch) -> dict of values [batch]

and the results are its means over the examples, which the devices share.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  AXIS_NAME,
  Array,
  ArrayTree,
  ReplicaTransformation,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.engine.engine_checks import check_numbers, check_setting
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.train_state import TrainState, check_fits, check_state
from prsgd_jax.mixing import analysis, collectives
from prsgd_jax.mixing.payload import is_inexact, wire_dtype
from prsgd_jax.stages.presence import presence
from prsgd_jax.tracing.caller_functions import (
  EVAL,
  check_signature,
  checked_values,
)
from prsgd_jax.tracing.isolation import completing, isolated
from prsgd_jax.tracing.keys import from_data, to_data
from prsgd_jax.tree_types import describe, is_array

EvalFn = Callable[[ArrayTree, ArrayTree, Any], dict[str, Array]]


def make_evaluate(
  mesh: ReplicaMesh,
  algorithm: ReplicaTransformation,
  eval_fn: EvalFn,
) -> Callable[..., dict[str, float]]:
  """Make the function that evaluates the averaged output of an algorithm.

  Args:
    mesh: placement of the replicas.
    algorithm: its output is averaged over the replicas.
    eval_fn: `(params, model_state, batch) -> dict of values [batch]`.

  Returns:
    `(state, examples, refresh=None) -> dict of means` over the examples that
    `shard_examples` prepares. `consensus_distance` is added; it is computed
    from the parameters of the replicas, not from their outputs. `refresh`, if
    given, is applied to the averaged (params, model_state) first, leaves
    `[D, ...]`; see `make_reestimate`.

  Raises:
    ValueError: if the arguments are not a mesh, an algorithm and a function of
      three arguments. The result raises it if the state or the examples are not
      as described, or `eval_fn` does not return a dict of values `[batch]`.
  """
  check_setting('make_evaluate', mesh, algorithm)
  values_fn = _values(eval_fn)

  def average(state: TrainState) -> tuple[Any, Array]:
    check_fits(algorithm, state, mesh.num_replicas)
    replica = algorithm.output(state.replica(), state.algorithm_state)
    point = (replica.params, replica.model_state)
    present = presence(replica)
    averaged = jax.tree.map(
      functools.partial(_average, present=present), to_data(point)
    )
    distance = analysis.consensus_distance(state.params, present)
    return from_data(averaged, point), distance

  def batch_sums(point: Any, batch: Any) -> Any:
    return _weighted_sums(values_fn, point, batch)

  mapped_average = mesh.map(average)
  mapped_sums = completing(mesh.map(batch_sums), functions=1)

  def evaluate(
    state: TrainState,
    examples: Any,
    refresh: Callable[[Any], Any] | None = None,
  ) -> dict[str, float]:
    check_state('evaluate', mesh, state)
    check_examples(mesh, examples)
    # Awaited, because a collective in flight beside the programs of the batches
    # can dead-lock on CPU.
    point, distance = jax.block_until_ready(mapped_average(state))
    if refresh is not None:
      point = jax.block_until_ready(refresh(point))
    sums = [mapped_sums(point, batch) for batch in _batches(examples)]
    # On the host, because convolutions in a loop are slow on CPU.
    means = _means(_over_devices(mesh, sums))
    if 'consensus_distance' in means:
      raise ValueError(
        "the value 'consensus_distance' is the engine's own; give that of "
        'eval_fn another name'
      )
    scalars = {name: float(value) for name, value in means.items()}
    return {**scalars, 'consensus_distance': float(first(distance))}

  return evaluate


def _over_devices(mesh: ReplicaMesh, sums: list[Any]) -> list[Any]:
  """Return the sums of each batch over all devices, on the host."""
  # Stacked, because with several processes each gather is a message.
  stacked = jax.tree.map(lambda *xs: np.stack(xs, 1), *jax.device_get(sums))
  if mesh.num_processes > 1:
    stacked = mesh.gather_per_device(mesh.place_per_device(stacked))
  return [
    jax.tree.map(lambda x, i=i: np.sum(x[:, i]), stacked)
    for i in range(len(sums))
  ]


def _average(x: Array, present: Array | None) -> Array:
  """Average `[V, ...] -> [...]` over all devices; `consensus` on devices."""
  if is_inexact(x) and present is not None:
    wide = x.astype(wire_dtype(x))
    return analysis.mean_of_present(wide, present).astype(x.dtype)
  if is_inexact(x):
    mean = x.astype(wire_dtype(x)).mean(axis=0)
    return lax.pmean(mean, AXIS_NAME).astype(x.dtype)
  is_first = lax.axis_index(AXIS_NAME) == 0
  own = jnp.where(is_first, x[0], jnp.zeros_like(x[0]))
  return lax.psum(own, AXIS_NAME).astype(x.dtype)


def make_evaluate_replicas(
  mesh: ReplicaMesh, algorithm: ReplicaTransformation, eval_fn: EvalFn
) -> Callable[[TrainState, Any], dict[str, np.ndarray]]:
  """Make the function that evaluates each replica on all examples.

  Args:
    mesh: placement of the replicas.
    algorithm: the outputs of its replicas are evaluated.
    eval_fn: `(params, model_state, batch) -> dict of values [batch]`.

  Returns:
    `(state, examples) -> dict of float[N]`, the means over the examples that
    `shard_examples` prepares.

  Raises:
    ValueError: if the arguments are not a mesh, an algorithm and a function of
      three arguments. The result raises it if the state or the examples are not
      as described, or `eval_fn` does not return a dict of values `[batch]`.
  """
  check_setting('make_evaluate_replicas', mesh, algorithm)
  values_fn = _values(eval_fn)

  def output(state: TrainState) -> Any:
    check_fits(algorithm, state, mesh.num_replicas)
    replica = algorithm.output(state.replica(), state.algorithm_state)
    return replica.params, replica.model_state

  def batch_sums(points: Any, batch: Any) -> Any:
    everything = collectives.all_gather(batch)

    def one(*point: Any) -> Any:
      return _weighted_sums(values_fn, point, everything)

    return mesh.map_block(one)(*points)

  mapped_output = mesh.map(output)
  mapped_sums = completing(mesh.map(batch_sums), functions=1)

  def evaluate(state: TrainState, examples: Any) -> dict[str, np.ndarray]:
    check_state('evaluate', mesh, state)
    check_examples(mesh, examples)
    # Awaited, because steps of training with collectives may be in flight.
    points = jax.block_until_ready(mapped_output(state))
    sums = []
    for batch in _batches(examples):
      # Awaited one by one, because un-awaited collectives dead-lock on CPU.
      sums.append(mesh.gather(mapped_sums(points, batch)))
    return _means(sums)

  return evaluate


def shard_examples(mesh: ReplicaMesh, examples: Any, batch_size: int) -> Any:
  """Split examples into batches for evaluation, and place them on devices.

  Args:
    mesh: its devices share the examples.
    examples: tree of host arrays `[n, ...]`, n >= 1.
    batch_size: examples per device in one call of `eval_fn`, >= 1.

  Returns:
    (examples, weights) on the devices, leaves `[D, batches, batch, ...]`. The
    last batches are padded with examples of weight 0.

  Raises:
    ValueError: if `examples` is empty or its arrays differ in length, or
      `batch_size` is not an integer >= 1.
  """
  check_positive_int('batch_size', batch_size)
  check_numbers('examples', examples)
  sizes = {np.shape(x)[:1] for x in jax.tree.leaves(examples)}
  if len(sizes) != 1 or sizes & {(), (0,)}:
    raise ValueError(
      'examples must be a tree of arrays of one length >= 1, got lengths '
      f'{sorted(x[0] if x else 0 for x in sizes)}'
    )
  ((size,),) = sizes
  batch_size = min(batch_size, -(-size // mesh.num_devices))
  num_batches = -(-size // (mesh.num_devices * batch_size))
  shape = (mesh.num_devices, num_batches, batch_size)
  row = np.arange(np.prod(shape))
  weights = (row < size).astype(np.float32)
  index = np.minimum(row, size - 1)
  # The part of this process, because each takes all examples.
  each = len(row) // mesh.num_processes
  rows = slice(mesh.process * each, (mesh.process + 1) * each)
  local = (len(mesh.local_devices), num_batches, batch_size)

  def cut(x: np.ndarray) -> np.ndarray:
    return np.asarray(x)[index[rows]].reshape(local + np.shape(x)[1:])

  return mesh.place_per_device(
    (jax.tree.map(cut, examples), weights[rows].reshape(local))
  )


def check_examples(mesh: ReplicaMesh, examples: Any) -> None:
  """Check that examples have the form that `shard_examples` returns.

  Args:
    mesh: placement of the replicas.
    examples: should be (examples, weights), leaves `[D, batches, batch, ...]`.

  Raises:
    ValueError: if they have another form, or are empty.
  """
  is_pair = isinstance(examples, tuple | list) and len(examples) == 2
  weights: Any = examples[1] if is_pair else None
  cut: tuple[int, ...] = np.shape(weights) if is_array(weights) else ()
  shapes = [np.shape(x)[:3] for x in jax.tree.leaves(examples)]
  rows = len(mesh.local_devices)
  fits = len(cut) == 3 and cut[0] == rows and set(shapes) == {cut}
  if not fits or not cut[1] * cut[2]:
    raise ValueError(
      'evaluate expects (state, examples) with the examples that '
      'pr.engine.shard_examples(mesh, examples, batch_size) returns, got '
      f'{describe(examples)}'
    )


def _values(eval_fn: Any) -> Callable[..., dict[str, Array]]:
  """Return `eval_fn` with its result checked, without the replica axis."""
  check_signature(EVAL, eval_fn)
  return isolated('eval_fn', checked_values(eval_fn))


def _batches(examples: Any) -> Iterator[Any]:
  """Yield the batches `[D, batch, ...]` that `shard_examples` made."""
  for i in range(jax.tree.leaves(examples)[0].shape[1]):
    yield jax.tree.map(lambda x, i=i: x[:, i], examples)


def _weighted_sums(
  values_fn: EvalFn, point: tuple[ArrayTree, ArrayTree], batch: Any
) -> tuple[dict[str, Array], Array]:
  """Return weighted sums of `eval_fn` over a batch, and the weights' sum."""
  inputs, weights = batch
  values = values_fn(*point, inputs)
  for name, value in values.items():
    if jnp.shape(value) != weights.shape:
      raise ValueError(
        f'eval_fn must give {name} for each example, shape {weights.shape}, '
        f'got shape {jnp.shape(value)}'
      )
    if jnp.iscomplexobj(value):
      raise ValueError(f'eval_fn must give real numbers, got complex {name}')
  sums = {
    name: jnp.where(weights > 0, value * weights, 0).sum()
    for name, value in values.items()
  }
  return sums, weights.sum()


def _means(sums: list[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
  """Return means over the batches from sums and weights, in float64."""
  total, weight = jax.tree.map(
    lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *sums
  )
  return {name: value / weight for name, value in total.items()}

"""BATCH STATISTICS of the averaged model, re-estimated on training batches.

An averaged model has other activations than the models it averages, so the
average of their batch statistics may be wrong for it. Here BatchNorm estimates
them again, with the update that it uses in training. Each of its batches holds
examples of all replicas, because a batch of one replica would miss the variance
between replicas with unlike data.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array
from prsgd_jax.checks import check_positive_int
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.payload import mix_inexact
from prsgd_jax.tracing.caller_functions import (
  BATCH,
  LOSS,
  check_signature,
  checked_loss,
)
from prsgd_jax.tracing.isolation import completing, isolated
from prsgd_jax.tree_types import describe

# Because 0.9^64, with flax's momentum, leaves 0.1 % of the old statistics.
NUM_BATCHES = 64


def make_reestimate(
  mesh: ReplicaMesh,
  loss_fn: Callable[..., Any],
  batch_fn: Callable[..., Any],
  *,
  num_batches: int = NUM_BATCHES,
) -> Callable[[Any, Any], Any]:
  """Make the function that re-estimates the state of a model.

  Every device runs the loss, without a gradient, on its batches in turn. Then
  the states of the devices are averaged. The replicas' batches of a step are
  mixed: with N replicas and batches of B examples, each batch has B / N
  examples of every replica (rounded down or up; where B < N, one example of
  each of B replicas, and the next batch is of the next replicas).

  Args:
    mesh: placement of the replicas.
    loss_fn: loss function of training; it updates the model state.
    batch_fn: batch function of training, see `make_resident_train_steps`; its
      result has leaves `[B, ...]`.
    num_batches: batches per device, >= 1. With BatchNorm's momentum of 0.9,
      0.9^num_batches of the old state is left.

  Returns:
    `(point, data) -> point` with point = (params, model_state), leaves
    `[D, ...]`, and data as `ReplicaMesh.replicate` places it. Each device holds
    the N batches of a step at a time.

  Raises:
    ValueError: if `num_batches` is not an integer >= 1, or a function takes
      another number of arguments. The result raises it if `data` is not placed,
      `batch_fn` does not return arrays of one length, or `loss_fn` does not
      return what training expects.
  """
  check_positive_int('num_batches', num_batches)
  check_signature(LOSS, loss_fn)
  check_signature(BATCH, batch_fn)
  own_loss = isolated('loss_fn', checked_loss(loss_fn))
  draw = _mixed_batches(mesh, isolated('batch_fn', batch_fn))

  def move(point: Any, batch: Any, turn: Array) -> Any:
    params, model_state = point
    _, root = _roots()
    key = _key(root, turn, lax.axis_index(AXIS_NAME))
    _, (model_state, _) = own_loss(params, model_state, batch, key)
    return params, model_state

  def average(point: Any) -> Any:
    params, model_state = point
    return params, mix_inexact(lambda x: lax.pmean(x, AXIS_NAME), model_state)

  mapped_draw = completing(mesh.map(draw), functions=1)
  mapped_move = completing(mesh.map(move), functions=1)
  mapped_average = mesh.map(average)

  def reestimate(point: Any, data: Any) -> Any:
    mesh.check_replicated(data)
    # A loop on the host, because convolutions in a loop are slow on CPU.
    for turn in range(num_batches):
      step, i = divmod(turn, mesh.block_size)
      if i == 0:
        # Awaited, because a collective beside other programs can dead-lock.
        jax.block_until_ready(point)
        batches = mapped_draw(data, mesh.replicate(np.int32(step)))
        jax.block_until_ready(batches)
      batch = jax.tree.map(lambda x, i=i: x[:, i], batches)
      point = mapped_move(point, batch, mesh.replicate(np.int32(turn)))
    return mapped_average(jax.block_until_ready(point))

  return reestimate


def _mixed_batches(
  mesh: ReplicaMesh, batch_fn: Callable[..., Any]
) -> Callable[[Any, Array], Any]:
  """Return `(data, step) -> batches` of a device, `[V, B, ...]`."""

  def examples(*args: Any) -> Any:
    batch = batch_fn(*args)
    _check_length(batch)
    return batch

  def draw(data: Any, step: Array) -> Any:
    root, _ = _roots()
    replicas = mesh.replica_index()
    keys = jax.vmap(lambda i: _key(root, step, i))(replicas)
    draws = jax.vmap(examples, (None, None, 0, 0))
    batches = draws(data, step, replicas, keys)
    return jax.tree.map(mix, collectives.all_gather(batches))

  def mix(x: Array) -> Array:
    """Deal the examples `[N, B, ...]` of the replicas, one of each in turn."""
    dealt = x.swapaxes(0, 1).reshape(x.shape)
    return dealt[mesh.replica_index()]

  return draw


def _roots() -> tuple[Array, Array]:
  """Return the keys of the batches and of the losses.

  They are fixed, because the keys of training come from the run's seed.
  """
  batches, losses = jax.random.split(jax.random.key(0, impl='threefry2x32'))
  return batches, losses


def _key(root: Array, turn: Array, place: Array) -> Array:
  return jax.random.fold_in(jax.random.fold_in(root, turn), place)


def _check_length(batch: Any) -> None:
  """Raise ValueError unless all leaves are `[B, ...]`."""
  lengths = {x.shape[:1] for x in jax.tree.leaves(batch)}
  if len(lengths) != 1 or () in lengths:
    raise ValueError(
      'make_reestimate expects a batch_fn that returns arrays [batch, ...] of '
      f'one length, got {describe(batch)}'
    )

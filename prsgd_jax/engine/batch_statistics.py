"""BATCH STATISTICS of the averaged model, re-estimated on training batches.

An averaged model has other activations than the models it averages, so the
average of their batch statistics may be wrong for it. Here BatchNorm estimates
them again, with the update that it uses in training.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import numpy as np

from prsgd_jax.base import AXIS_NAME
from prsgd_jax.checks import check_positive_int
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.mixing.payload import mix_inexact
from prsgd_jax.tracing.caller_functions import (
  BATCH,
  LOSS,
  check_signature,
  checked_loss,
)
from prsgd_jax.tracing.isolation import completing, isolated

# Because 0.9^64, with flax's momentum, leaves 0.1 % of the old statistics.
NUM_BATCHES = 64


def make_reestimate(
  mesh: ReplicaMesh,
  loss_fn: Callable[..., Any],
  batch_fn: Callable[..., Any],
  data: Any,
  *,
  num_batches: int = NUM_BATCHES,
) -> Callable[[Any], Any]:
  """Make the function that re-estimates the state of a model.

  Every device runs the loss, without a gradient, on batches of replicas in
  turn. Then the states of the devices are averaged. Pass the result to
  `make_evaluate(..., refresh=...)`.

  Args:
    mesh: placement of the replicas.
    loss_fn: loss function of training; it updates the model state.
    batch_fn: batch function of training, see `make_resident_train_steps`.
    data: for `batch_fn`, as `ReplicaMesh.replicate` places it.
    num_batches: batches per device, >= 1. With BatchNorm's momentum of 0.9,
      0.9^num_batches of the old state is left.

  Returns:
    `point -> point` with point = (params, model_state), leaves `[D, ...]`.

  Raises:
    ValueError: if `num_batches` is not an integer >= 1, `data` is not placed,
      or a function takes another number of arguments. The result raises it
      if `loss_fn` does not return what training expects.
  """
  check_positive_int('num_batches', num_batches)
  check_signature(LOSS, loss_fn)
  check_signature(BATCH, batch_fn)
  mesh.check_replicated(data)
  own_loss = isolated('loss_fn', checked_loss(loss_fn))
  own_batch = isolated('batch_fn', batch_fn)

  def move(point: Any, data: Any, turn: jax.Array) -> Any:
    params, model_state = point
    device = lax.axis_index(AXIS_NAME)
    replica = (turn * mesh.num_devices + device) % mesh.num_replicas
    # A fixed root, because the keys of training steps come from the run's seed.
    key = jax.random.fold_in(jax.random.key(0, impl='threefry2x32'), turn)
    batch_key, loss_key = jax.random.split(jax.random.fold_in(key, device))
    batch = own_batch(data, turn, replica, batch_key)
    _, (model_state, _) = own_loss(params, model_state, batch, loss_key)
    return params, model_state

  def average(point: Any) -> Any:
    params, model_state = point
    return params, mix_inexact(lambda x: lax.pmean(x, AXIS_NAME), model_state)

  mapped_move = completing(mesh.map(move), functions=2)
  mapped_average = mesh.map(average)

  def reestimate(point: Any) -> Any:
    # A loop on the host, because convolutions in a loop are slow on CPU.
    for turn in range(num_batches):
      point = mapped_move(point, data, mesh.replicate(np.int32(turn)))
    # Awaited, because a collective beside other programs can dead-lock.
    return mapped_average(jax.block_until_ready(point))

  return reestimate

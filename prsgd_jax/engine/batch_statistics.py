"""Batch statistics of the averaged model, estimated anew.

An average of models has other activations than the models had: their batch
statistics, averaged or not, need not be its own. Here they are taken from
training batches, as BatchNorm takes them in training.
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

# What is left of the old statistics with flax's momentum of 0.9: 0.1 %.
NUM_BATCHES = 64


def make_reestimate(
  mesh: ReplicaMesh,
  loss_fn: Callable[..., Any],
  batch_fn: Callable[..., Any],
  data: Any,
  *,
  num_batches: int = NUM_BATCHES,
) -> Callable[[Any], Any]:
  """Makes the function that estimates a model's state anew.

  Every device runs the loss on as many batches, those of replicas that take
  turns, without a gradient; then the devices' states are averaged. For
  `make_evaluate(..., refresh=...)`.

  Args:
    mesh: where the replicas live.
    loss_fn: that of training, whose model state moves with every batch.
    batch_fn: that of training.
    data: for `batch_fn`, as `ReplicaMesh.replicate` places it.
    num_batches: on every device. A state that moves by a tenth of what is
      missing forgets all but 0.9^num_batches of what it was.

  Returns:
    `point -> point` with point = (params, model_state), leaves `[D, ...]`.

  Raises:
    ValueError: if `num_batches` is not an integer >= 1, `data` is not placed,
      or a function takes another number of arguments; from the result, if
      `loss_fn` does not return what training expects.
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
    # Of no training step, whose keys come from the run's seed.
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
    # A loop on the host: convolutions are slow inside of one on CPU.
    for turn in range(num_batches):
      point = mapped_move(point, data, mesh.replicate(np.int32(turn)))
    return mapped_average(point)

  return reestimate

"""Losses and parameters that are numbers, or the end of the run."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running.records import records
from prsgd_jax.engine import checkpoints
from prsgd_jax.engine.run_state import State


class NonFinite(ValueError):
  """The loss or the parameters of a replica are no longer numbers.

  Attributes:
    step: the first at which they are not.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


def check_params(workdir: pathlib.Path, state: State) -> None:
  """Raises NonFinite unless all parameters of all replicas are finite."""
  # Looked at on the devices, because a flag is less to fetch than a model.
  finite = state.mesh.gather(_finite_replicas(state.on_devices.params))
  if not finite.all():
    raise _non_finite(workdir, 'parameters are', state.step - 1, finite)


@jax.jit
def _finite_replicas(params: Any) -> jax.Array:
  """bool[D, V]: whether all parameters of a replica are finite."""
  per_leaf = [
    jnp.isfinite(x).all(axis=tuple(range(2, x.ndim)))
    for x in jax.tree.leaves(params)
  ]
  return jnp.stack(per_leaf).all(axis=0)


def check_loss(
  workdir: pathlib.Path, first: int, metrics: dict[str, np.ndarray]
) -> None:
  """Raises NonFinite at the first step at which a replica's loss is."""
  finite = np.isfinite(metrics['loss'])
  if not finite.all():
    i = int(np.argmin(finite.all(axis=1)))
    raise _non_finite(workdir, 'loss is', first + i, finite[i])


def _non_finite(
  workdir: pathlib.Path, what: str, step: int, finite: np.ndarray
) -> NonFinite:
  directory = workdir / records.CHECKPOINTS
  kept = checkpoints.latest_step(directory)
  saved = (
    'there is no checkpoint yet'
    if kept is None
    else f'the last good checkpoint is {directory / str(kept)}'
  )
  return NonFinite(
    f'the {what} not finite at step {step} on replica '
    f'{int(np.argmin(finite))}; try a lower --learning_rate; {saved}',
    step,
  )

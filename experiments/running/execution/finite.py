"""Losses and parameters that are numbers, or the end of the run.

An algorithm with a robust average leaves out replicas that are not finite. Its
run ends only when no replica is finite any more.
"""

from collections.abc import Callable
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running.execution.parts import Parts
from experiments.running.process import messages
from experiments.running.records import records
from prsgd_jax.data.values import Resident
from prsgd_jax.engine import checkpoints
from prsgd_jax.engine.run_state import State
from prsgd_jax.stages.robust_averages import drops_replicas

# The most steps that run again to find the first replica.
MOST_AGAIN = 2000


class NonFinite(ValueError):
  """The loss or the parameters of a replica are no longer numbers.

  Attributes:
    step: the first at which they are not.
    replicas: on which they are not.
  """

  def __init__(self, message: str, step: int, replicas: tuple[int, ...]):
    super().__init__(message)
    self.step = step
    self.replicas = replicas


def check_params(workdir: pathlib.Path, parts: Parts, state: State) -> None:
  """Raise NonFinite unless the parameters of all replicas are finite."""
  # Looked at on the devices, because a flag is less to fetch than a model.
  finite = state.mesh.gather(_finite_replicas(state.on_devices.params))
  if not _enough(parts, finite):
    raise _non_finite(workdir, 'parameters are', state.step - 1, finite)


def _enough(parts: Parts, finite: np.ndarray) -> bool:
  """Whether the finite replicas, bool[N], are enough to continue."""
  robust = drops_replicas(parts.plan.algorithm)
  return bool(finite.any() if robust else finite.all())


@jax.jit
def _finite_replicas(params: Any) -> jax.Array:
  """bool[D, V]: whether all parameters of a replica are finite."""
  per_leaf = [
    jnp.isfinite(x).all(axis=tuple(range(2, x.ndim)))
    for x in jax.tree.leaves(params)
  ]
  return jnp.stack(per_leaf).all(axis=0)


def check_loss(
  workdir: pathlib.Path,
  parts: Parts,
  first: int,
  metrics: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Return the metrics, in which a replica that is left out is inactive.

  Raises:
    NonFinite: at the first step at which a loss is not finite.
  """
  finite = np.isfinite(metrics['loss'])
  if finite.all():
    return metrics
  for i in np.flatnonzero(~finite.all(axis=1)).tolist():
    if not _enough(parts, finite[i]):
      raise _non_finite(workdir, 'loss is', first + i, finite[i])
  active = metrics.get('active', np.ones(finite.shape, np.int32))

  def left_out(x: np.ndarray) -> np.ndarray:
    mask = finite.reshape(finite.shape + (1,) * (x.ndim - 2))
    return np.where(mask, x, 0)

  return jax.tree.map(left_out, {**metrics, 'active': active})


def first_cause(
  workdir: pathlib.Path,
  parts: Parts,
  restore: Callable[[], tuple[State, int]],
  error: NonFinite,
) -> NonFinite:
  """Return the error that names the first replica and step, if it is found.

  After an average all replicas are not finite. So the steps since the newest
  checkpoint run again, with a check of each replica.

  Args:
    workdir: of the run.
    parts: of the run.
    restore: returns the state of the newest checkpoint, and its step.
    error: what was found.
  """
  if len(error.replicas) == 1 or not isinstance(parts.data, Resident):
    return error
  state, start = restore()
  again = error.step + 1 - start
  if not 0 < again <= MOST_AGAIN:
    return error
  messages.warn(
    f'{len(error.replicas)} replicas are not finite at step {error.step}; the '
    f'steps since step {start} run again to find the first'
  )
  found = parts.trainer.find_non_finite(state, parts.data, again)
  if found is None:
    return error
  verb = 'are' if found.what == 'parameters' else 'is'
  n = parts.trainer.mesh.num_replicas
  finite = ~np.isin(np.arange(n), found.replicas)
  return _non_finite(workdir, f'{found.what} {verb}', found.step, finite)


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
  replicas = tuple(np.flatnonzero(~finite).tolist())
  return NonFinite(
    f'the {what} not finite at step {step} on replica {replicas[0]}; try a '
    f'lower --learning_rate; {saved}',
    step,
    replicas,
  )

"""What a run is made of, whether flags or a program made it.

Nothing that this imports defines a flag, so that a program may have its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.running.flags.run_config import RunConfig
import prsgd_jax as pr
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.values import Resident, check_resident
from prsgd_jax.engine.block_mapping import LOOP, UNROLLED, VMAP
from prsgd_jax.engine.run_state import State
from prsgd_jax.engine.trainer import Trainer

# Ways to compute the replicas of a device, as a sentence names them.
_BY = {VMAP: 'vmap', UNROLLED: 'unrolling', LOOP: 'a loop'}


class Plan(NamedTuple):
  """The chain of a run, its learning rate, and its length.

  Attributes:
    algorithm: the chain.
    schedule: the learning rate of a step, None if it is not known.
    num_steps: of the run.
    faultless: the chain without injected faults, None if it is `algorithm`.
  """

  algorithm: pr.base.ReplicaTransformation
  schedule: optax.Schedule | None
  num_steps: int
  faultless: pr.base.ReplicaTransformation | None = None


class Parts(NamedTuple):
  """The parts of a run, checked to fit together; no arrays on devices yet.

  Attributes:
    label: short name of the method, for people.
    description: what a checkpoint is compared by.
    called_with: what the run was called with, kept in its directory.
    data: the training data.
    test: tree of host arrays `[n, ...]`; None if the run is not evaluated.
    batch_size: examples per replica and step.
    seed: of the first point and the replicas' keys.
    init: `(key, batch) -> (params, model_state)`, for batches of `data`.
    plan, trainer, network, meter: as their types say.
    reestimate: whether evaluation takes batch statistics of training batches.
    config: the run as flags describe it, None if a program made it.
    measure: `state -> dict of floats`, further measures at each evaluation.
      Default: none.
    block: how the replicas of a device are computed, None if it is not known or
      a device has one replica.
  """

  label: str
  description: Mapping[str, Any]
  called_with: Mapping[str, Any]
  data: Resident | Pipeline
  test: Any
  batch_size: int
  seed: int
  init: Callable[..., Any]
  plan: Plan
  trainer: Trainer
  network: pr.ledger.Network
  meter: pr.ledger.Meter
  reestimate: bool = False
  config: RunConfig | None = None
  measure: Callable[[State], Mapping[str, float]] | None = None
  block: str | None = None

  def placement(self) -> str:
    """Return the layout, and how the replicas of a device are computed."""
    mesh = str(self.trainer.mesh)
    return mesh if self.block is None else f'{mesh} by {_BY[self.block]}'

  def epoch(self, gradients: int) -> float:
    """Return the passes over the data in that many gradients."""
    examples = gradients * self.batch_size
    if isinstance(self.data, Pipeline):
      return examples / self.data.num_examples
    return examples / len(jax.tree.leaves(self.data.arrays)[0])

  def example(self) -> Any:
    """Return a batch of one example, as it is before the transform."""
    if isinstance(self.data, Pipeline):
      return self.data.example()
    return jax.tree.map(lambda x: x[:1], self.data.arrays)

  def first_state(self) -> State:
    """Put the first state of the run on the devices."""
    example = jax.tree.map(jnp.asarray, self.example())
    key = jax.random.key(self.seed, impl='threefry2x32')
    point = jax.jit(self.init, compiler_options=quick())(key, example)
    return self.trainer.init(*point, seed=self.seed)


def quick() -> dict[str, bool | str] | None:
  """Return options of the compiler for a program that runs once.

  A third of the time or less, ResNet-20 on JAX 0.12 a tenth. The values are the
  same bits, because the level decides how the compiler vectorizes and not in
  which order it adds.
  """
  if jax.default_backend() != 'cpu':
    return None
  if jax.config.read('jax_disable_most_optimizations'):
    return None  # which is quicker still
  return {'xla_backend_optimization_level': '1'}


def chosen_block(
  trainer: Trainer, params: Any, model_state: Any, batch: Any
) -> str | None:
  """Return how the replicas of a device are computed, None if it has one.

  Args:
    trainer: the trainer of the run.
    params: shapes of the parameters of a replica.
    model_state: shapes of its model state.
    batch: shapes of a batch, as the loss reads it.
  """
  if trainer.mesh.block_size == 1:
    return None
  return trainer.block(params, model_state, batch)


def check_data(data: Resident | Pipeline, num_replicas: int) -> None:
  """Raise ValueError unless the data have a batch for every replica.

  The trainer would, too, but not before the directory of the run is made.
  """
  if isinstance(data, Pipeline):
    data.order(num_replicas)
  else:
    check_resident('a run', data).recipe.make(num_replicas)


def point_shapes(init: Callable[..., Any], arrays: Any) -> tuple[Any, Any]:
  """Return (params, model_state) of one replica, as shapes."""

  def example(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)

  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(init, key, jax.tree.map(example, arrays))

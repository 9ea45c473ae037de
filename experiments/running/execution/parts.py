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
from prsgd_jax.data.input_pipeline import Sampler, Transform
from prsgd_jax.engine import feeding
from prsgd_jax.models.classification import Task

EVAL_BATCH = 500


class Plan(NamedTuple):
  """The chain of a run, its learning rate, and its length.

  Attributes:
    algorithm: the chain.
    schedule: the learning rate of a step, None if it is not known.
    num_steps: of the run.
  """

  algorithm: pr.base.ReplicaTransformation
  schedule: optax.Schedule | None
  num_steps: int


class Parts(NamedTuple):
  """The parts of a run, checked to fit together; no arrays on devices yet.

  Attributes:
    label: short name of the method, for people.
    description: what a checkpoint is compared by.
    called_with: what the run was called with, kept in its directory.
    train, test: trees of host arrays `[n, ...]`; without a test split, None.
    batch_size: examples per replica and step.
    seed: of the first point, the order of the data, the replicas' keys.
    plan, sampler, mesh, network, task, meter: as their types say. A task
      without `eval_fn` is not evaluated.
    for_evaluation: what is done to a batch before it is evaluated.
    for_training: what is done to a batch before it is trained on, or None.
    reestimate: whether evaluation takes batch statistics of training batches.
    config: the run as flags describe it, None if a program made it.
  """

  label: str
  description: Mapping[str, Any]
  called_with: Mapping[str, Any]
  train: Any
  test: Any
  batch_size: int
  seed: int
  plan: Plan
  sampler: Sampler
  mesh: pr.engine.ReplicaMesh
  network: pr.ledger.Network
  task: Task
  meter: pr.ledger.Meter
  for_evaluation: Callable[[Any], Any] = lambda batch: batch
  for_training: Transform | None = None
  reestimate: bool = False
  config: RunConfig | None = None

  def epoch(self, gradients: int) -> float:
    """Returns the passes over the data in that many gradients."""
    examples = gradients * self.batch_size
    return examples / len(jax.tree.leaves(self.train)[0])


class Experiment(NamedTuple):
  """The objects of a run, ready to start.

  Attributes:
    evaluate: gives no values where there is nothing to evaluate on, or by.
  """

  parts: Parts
  state: pr.engine.TrainState
  train_steps: Callable[..., Any]
  evaluate: Callable[..., dict[str, float]]
  data: Any
  test_data: Any


def replica_shapes(
  algorithm: pr.base.ReplicaTransformation,
  num_replicas: int,
  params: Any,
  model_state: Any,
) -> pr.base.Replica:
  """One replica's shapes, from `init` on a block of one.

  Raises:
    ValueError: from `init`, if the algorithm does not fit N.
  """

  def block(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)

  def row(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

  start = jax.tree.map(
    block, pr.base.Replica(params=params, model_state=model_state)
  )
  made, _ = jax.eval_shape(
    lambda replica: algorithm.init(replica, num_replicas), start
  )
  return jax.tree.map(row, made._replace(grads=made.params))


def prepare(parts: Parts) -> Experiment:
  """Puts the data and the first state of a run on the devices."""
  mesh, algorithm, task = parts.mesh, parts.plan.algorithm, parts.task
  example = jax.tree.map(lambda x: jnp.asarray(x[:1]), parts.train)
  params, model_state = jax.jit(task.init)(
    jax.random.key(parts.seed, impl='threefry2x32'),
    parts.for_evaluation(example),
  )
  batch_fn = feeding.make_batch_fn(mesh, parts.sampler, parts.for_training)
  data = mesh.replicate(parts.train)
  refresh = None
  if parts.reestimate:
    refresh = pr.engine.make_reestimate(mesh, task.loss_fn, batch_fn, data)
  test_data = None
  if parts.test is not None:
    test_data = pr.engine.shard_examples(mesh, parts.test, EVAL_BATCH)
  return Experiment(
    parts=parts,
    state=pr.engine.create_train_state(
      mesh, algorithm, params, model_state, seed=parts.seed
    ),
    train_steps=pr.engine.make_resident_train_steps(
      mesh, algorithm, task.loss_fn, batch_fn
    ),
    evaluate=_make_evaluate(parts, refresh),
    data=data,
    test_data=test_data,
  )


def _make_evaluate(
  parts: Parts, refresh: Callable[[Any], Any] | None
) -> Callable[..., dict[str, float]]:
  """Evaluation on the test split, which gives nothing if there is none."""
  eval_fn = parts.task.eval_fn
  if parts.test is None or eval_fn is None:
    return lambda state, examples: {}
  return pr.engine.make_evaluate(
    parts.mesh,
    parts.plan.algorithm,
    lambda p, s, b: eval_fn(p, s, parts.for_evaluation(b)),
    refresh=refresh,
  )

"""What a run is made of: the objects that a config names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import algorithm_flags, averages, named
from experiments import config as configs
import prsgd_jax as pr
from prsgd_jax import augmentation, input_pipeline, ledger
from prsgd_jax.classification import Task, classifier
from prsgd_jax.datasets import Dataset
from prsgd_jax.input_pipeline import (
  Sampler,
  Transform,
  dirichlet,
  sharded,
  shared,
)
from prsgd_jax.language_modelling import language_model

# The value of --epoch_lengths that stands for the paper's own.
THEORY = 'theory'
EVAL_BATCH = 500


def build_schedule(
  config: configs.RunConfig, num_examples: int
) -> optax.Schedule:
  """The learning rate, a function of the engine's step."""
  drops: dict[int, float] = {}
  for epochs in config.learning_rate_drops:
    step = configs.steps_of_epochs(config, num_examples, epochs)
    drops[step] = 0.1 * drops.get(step, 1.0)
  constant = optax.piecewise_constant_schedule(config.learning_rate, drops)
  if not config.warmup_epochs:
    return constant
  rise = configs.warmup_steps(config, num_examples)
  return lambda step: constant(step) * jnp.minimum((step + 1) / rise, 1)


class Plan(NamedTuple):
  """The chain that the flags name, its learning rate, and its length."""

  algorithm: pr.ReplicaTransformation
  schedule: optax.Schedule
  num_steps: int


def build_plan(config: configs.RunConfig, num_examples: int) -> Plan:
  """Builds what does not depend on the data but for its size.

  Raises:
    ValueError: from the algorithm's factory.
  """
  num_steps = configs.total_steps(config, num_examples)
  schedule = build_schedule(config, num_examples)
  options = dict(config.options)
  if options.get('epoch_lengths') == THEORY:
    if config.learning_rate_drops or config.warmup_epochs:
      raise ValueError(
        f'--epoch_lengths={THEORY} has a learning rate of its own; leave out '
        '--learning_rate_drops and --warmup_epochs'
      )
    theory = pr.theory_schedule(
      config.num_replicas, num_steps, smoothness=1 / config.learning_rate
    )
    schedule = theory.learning_rate
    options['epoch_lengths'] = '+'.join(map(str, theory.epoch_lengths))
  provided: dict[str, Any] = {
    'learning_rate': schedule,
    'momentum': config.momentum,
    'num_steps': num_steps,
    'draw_seed': config.seed,
  }
  if 'when' in options:
    run = named.Run(
      num_steps,
      schedule,
      configs.warmup_steps(config, num_examples),
      config.seed,
    )
    keyword = algorithm_flags.scheduled(config.algorithm)
    provided[keyword or 'period'] = named.schedule('when', options['when'], run)
  # An algorithm with a momentum argument takes care of it.
  own = 'momentum' in algorithm_flags.keywords(config.algorithm)
  tx = build_optimizer(config, schedule, 0.0 if own else config.momentum)
  average = averages.build(config.algorithm, tx, options)
  if average is not None:
    provided['average'] = average
  local = (
    named.local('local', options['local'], tx) if 'local' in options else tx
  )
  algorithm = algorithm_flags.build(config.algorithm, local, options, provided)
  averages.check_codec(config.algorithm, algorithm, options)
  return Plan(algorithm, schedule, num_steps)


def build_optimizer(
  config: configs.RunConfig, schedule: optax.Schedule, momentum: float
) -> optax.GradientTransformation:
  """The optimizer of every replica."""
  if config.optimizer == 'adam':
    return optax.adam(schedule)
  if config.optimizer == 'adamw':
    return optax.adamw(schedule, weight_decay=config.weight_decay)
  if config.optimizer == 'muon':
    return optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      adam_weight_decay=config.weight_decay,
    )
  return optax.sgd(schedule, momentum or None, config.nesterov)


def build_task(
  config: configs.RunConfig, num_classes: int, batch: Mapping[str, Any]
) -> Task:
  """The model and the loss that the flags name.

  Args:
    config: the run.
    num_classes: of the labels, or the characters.
    batch: arrays of the shapes that the model reads, or their shapes.
  """
  build = configs.MODELS[config.model]
  dtype = configs.DTYPES[config.dtype]
  decoupled = config.optimizer in configs.DECOUPLED
  decay = 0.0 if decoupled else config.weight_decay
  if 'text' in batch:
    length = batch['text'].shape[1] - 1
    model = build(num_classes, max_length=length, dtype=dtype)
    return language_model(model, weight_decay=decay)
  return classifier(build(num_classes, dtype=dtype), weight_decay=decay)


def batch_shapes(dataset: Dataset) -> dict[str, jax.ShapeDtypeStruct]:
  """Of a batch of one example, as models read it: pixels are float32."""

  def shape(name: str, x: np.ndarray) -> jax.ShapeDtypeStruct:
    dtype = np.float32 if name == 'image' else x.dtype
    return jax.ShapeDtypeStruct((1, *x.shape[1:]), dtype)

  return {name: shape(name, x) for name, x in dataset.train.items()}


def build_transforms(
  config: configs.RunConfig, dataset: Dataset
) -> tuple[Callable[[Any], Any], Transform]:
  """What is done to a batch before evaluation, and before training."""
  if 'text' in dataset.train:
    return lambda batch: batch, lambda key, batch: batch
  statistics = augmentation.channel_statistics(dataset.train['image'])

  def normalised(batch: Any) -> Any:
    image = augmentation.normalise(batch['image'], *statistics)
    return {**batch, 'image': image}

  def augmented(key: jax.Array, batch: Any) -> Any:
    batch = normalised(batch)
    if not config.augment:
      return batch
    crop_key, flip_key = jax.random.split(key)
    image = augmentation.random_crop(crop_key, batch['image'], padding=4)
    return {**batch, 'image': augmentation.random_flip(flip_key, image)}

  return normalised, augmented


def build_sampler(config: configs.RunConfig, dataset: Dataset) -> Sampler:
  """Who gets which examples.

  Raises:
    ValueError: if there are too few examples for the replicas and the batch.
  """
  sizes = (config.num_replicas, config.batch_size)
  if config.partition == 'dirichlet':
    labels = dataset.train['label']
    return dirichlet(
      labels, *sizes, alpha=config.dirichlet_alpha or 0, seed=config.seed
    )
  sampler = {'shared': shared, 'sharded': sharded}[config.partition]
  return sampler(dataset.num_examples, *sizes, seed=config.seed)


class Parts(NamedTuple):
  """What a config names, checked to fit together; no arrays on devices yet."""

  config: configs.RunConfig
  description: dict[str, Any]  # what a checkpoint is compared by
  dataset: Dataset
  plan: Plan
  sampler: Sampler
  mesh: pr.ReplicaMesh
  network: pr.Network
  task: Task
  meter: pr.Meter

  def epoch(self, gradients: int) -> float:
    """Returns the passes over the data in that many gradients."""
    examples = gradients * self.config.batch_size
    return examples / self.dataset.num_examples


class Experiment(NamedTuple):
  """The objects of a run, ready to start."""

  parts: Parts
  state: pr.TrainState
  train_steps: Callable[..., Any]
  evaluate: Callable[..., dict[str, float]]
  data: Any
  test_data: Any


def assemble(
  config: configs.RunConfig,
  dataset: Dataset,
  num_devices: int | None,
  network: pr.Network,
) -> Parts:
  """Looks whether the parts of a run fit together.

  Args:
    config: the run.
    dataset: that it names.
    num_devices: D, or None for the most there are that fit.
    network: for the modelled time.

  Raises:
    ValueError: if they do not; the message says what to change.
  """
  n = config.num_replicas
  network = with_own_speeds(config, network)
  network.check(n)
  plan = build_plan(config, dataset.num_examples)
  batch = batch_shapes(dataset)
  task = build_task(config, dataset.num_classes, batch)
  params, model_state = jax.eval_shape(
    task.init, jax.eval_shape(lambda: jax.random.key(0)), batch
  )
  if 'batch_stats' in config.options and not jax.tree.leaves(model_state):
    raise ValueError(
      f'--batch_stats does nothing: --model={config.model} has none'
    )
  shapes = replica_shapes(plan.algorithm, n, params, model_state)
  meter = pr.meter(plan.algorithm, shapes, n, plan.num_steps, network)
  _check_epochs(
    config,
    lambda: ledger.working_share(plan.algorithm, shapes, n, plan.num_steps),
  )
  return Parts(
    config=config,
    description=config.description(dataset),
    dataset=dataset,
    plan=plan,
    sampler=build_sampler(config, dataset),
    mesh=pr.ReplicaMesh(n, num_devices),
    network=network,
    task=task,
    meter=meter,
  )


def with_own_speeds(
  config: configs.RunConfig, network: pr.Network
) -> pr.Network:
  """The network, with the replica speeds that the algorithm has of its own.

  Raises:
    ValueError: if it has others already.
  """
  if 'speeds' not in config.options:
    return network
  own = algorithm_flags.values(config.algorithm, config.options)['speeds']
  if not network.speeds:
    return network._replace(speeds=tuple(map(float, own)))
  same = len(own) == len(network.speeds)
  if not same or np.ptp(np.divide(own, network.speeds)) > 1e-6:
    raise ValueError(
      '--replica_speeds must be in the ratios of --speeds='
      f'{config.options["speeds"]}, got {network.speeds}; leave it out'
    )
  return network


def _check_epochs(
  config: configs.RunConfig, working_share: Callable[[], float]
) -> None:
  """Raises ValueError if epochs are counted and not all replicas work."""
  lengths = {
    'num_epochs': config.num_steps is None,
    'learning_rate_drops': config.learning_rate_drops,
    'warmup_epochs': config.warmup_epochs,
  }
  given = [f'--{name}' for name, value in lengths.items() if value]
  if given and (working := working_share()) < 0.999:
    raise ValueError(
      f'{" and ".join(given)} must be of replicas that all work at every step; '
      f'those of --algorithm={config.algorithm} do at {working:.0%} of them: '
      'give --num_steps, and a constant learning rate'
    )


def replica_shapes(
  algorithm: pr.ReplicaTransformation,
  num_replicas: int,
  params: Any,
  model_state: Any,
) -> pr.Replica:
  """One replica's shapes, from `init` on a block of one.

  Raises:
    ValueError: from `init`, if the algorithm does not fit so many replicas.
  """

  def block(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)

  def row(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

  start = jax.tree.map(
    block, pr.Replica(params=params, model_state=model_state)
  )
  made, _ = jax.eval_shape(
    lambda replica: algorithm.init(replica, num_replicas), start
  )
  return jax.tree.map(row, made._replace(grads=made.params))


def prepare(parts: Parts) -> Experiment:
  """Puts the data and the first state of a run on the devices."""
  config, dataset, mesh = parts.config, parts.dataset, parts.mesh
  algorithm, task = parts.plan.algorithm, parts.task
  normalised, transform = build_transforms(config, dataset)
  example = {name: jnp.asarray(x[:1]) for name, x in dataset.train.items()}
  params, model_state = jax.jit(task.init)(
    jax.random.key(config.seed, impl='threefry2x32'), normalised(example)
  )
  batch_fn = input_pipeline.make_batch_fn(mesh, parts.sampler, transform)
  data = mesh.replicate(dataset.train)
  refresh = None
  if config.options.get('batch_stats') == 'reestimate':
    refresh = pr.make_reestimate(mesh, task.loss_fn, batch_fn, data)
  return Experiment(
    parts=parts,
    state=pr.create_train_state(
      mesh, algorithm, params, model_state, seed=config.seed
    ),
    train_steps=pr.make_resident_train_steps(
      mesh, algorithm, task.loss_fn, batch_fn
    ),
    evaluate=pr.make_evaluate(
      mesh,
      algorithm,
      lambda p, s, b: task.eval_fn(p, s, normalised(b)),
      refresh=refresh,
    ),
    data=data,
    test_data=pr.shard_examples(mesh, dataset.test, EVAL_BATCH),
  )

"""What a run is made of: the objects that a config names."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from experiments.running.execution.parts import (
  Parts,
  Plan,
  check_data,
  chosen_block,
)
from experiments.running.flags import (
  algorithm_flags,
  averages,
  dotted,
  faults,
  learning_rates,
  named,
  optimizers,
  own_parts,
  saved_flags,
  tasks,
)
from experiments.running.flags.run_config import (
  RunConfig,
  total_steps,
  warmup_steps,
)
import prsgd_jax as pr
from prsgd_jax import ledger
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import Dataset, pixels
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Resident
from prsgd_jax.schedules import MOST_LISTED

# The value of --epoch_lengths that stands for the paper's own.
THEORY = 'theory'


def build_plan(config: RunConfig, num_examples: int) -> Plan:
  """Build what does not depend on the data but for its size.

  Raises:
    ValueError: from the algorithm's factory.
  """
  num_steps = total_steps(config, num_examples)
  schedule = learning_rates.build(config, num_examples)
  options = dict(config.options)
  theory = None
  if options.get('epoch_lengths') == THEORY:
    _check_theory(config)
    num_epochs = pr.schedules.theory_epochs(config.num_replicas, num_steps)
    if num_epochs > MOST_LISTED:
      raise ValueError(
        f'--epoch_lengths={THEORY} must be of a run of at most 2**24 = '
        f'{MOST_LISTED} epochs, got {num_epochs} for {num_steps} steps'
      )
    theory = pr.schedules.theory_schedule(
      config.num_replicas, num_epochs, smoothness=1 / config.learning_rate
    )
    schedule = theory.learning_rate
    del options['epoch_lengths']
  provided: dict[str, Any] = {
    'learning_rate': schedule,
    'momentum': config.momentum,
    'num_steps': num_steps,
    'draw_seed': config.seed,
  }
  if theory is not None:
    provided['epoch_lengths'] = theory.epoch_lengths
  if 'when' in options:
    run = named.Run(
      num_steps,
      schedule,
      warmup_steps(config, num_examples),
      config.seed,
    )
    keyword = algorithm_flags.scheduled(config.algorithm)
    provided[keyword or 'period'] = named.schedule('when', options['when'], run)
  tx = optimizers.build(config, schedule)
  average = averages.build(config.algorithm, tx, options)
  if average is not None:
    provided['average'] = average
  local = (
    named.local('local', options['local'], tx) if 'local' in options else tx
  )
  algorithm = algorithm_flags.build(config.algorithm, local, options, provided)
  averages.check_codec(config.algorithm, algorithm, options)
  faulty = faults.inject(algorithm, options, config.seed)
  return Plan(faulty, schedule, num_steps, algorithm)


def _check_theory(config: RunConfig) -> None:
  """Raise ValueError if the learning rate is not left to the theory."""
  others = {
    'learning_rate_drops': config.learning_rate_drops,
    'warmup_epochs': config.warmup_epochs,
    'lr_schedule': config.lr_schedule,
  }
  for name, given in others.items():
    if given:
      raise ValueError(
        f'--epoch_lengths={THEORY} has a learning rate of its own; leave out '
        f'--{name}'
      )


def batch_shapes(dataset: Dataset) -> dict[str, jax.ShapeDtypeStruct]:
  """Of a batch of one example, as models read it: pixels are float32."""

  def shape(name: str, x: np.ndarray) -> jax.ShapeDtypeStruct:
    dtype = np.float32 if name == 'image' else x.dtype
    return jax.ShapeDtypeStruct((1, *x.shape[1:]), dtype)

  return {name: shape(name, x) for name, x in dataset.example().items()}


def build_transforms(
  config: RunConfig, dataset: Dataset
) -> tuple[Callable[[Any], Any], Transform]:
  """What is done to a batch before evaluation, and before training."""
  if 'image' not in dataset.example():
    return lambda batch: batch, lambda key, batch: batch

  # Of all pixels, so that only a run that starts waits for it.
  @functools.cache
  def statistics() -> tuple[np.ndarray, np.ndarray]:
    if dataset.is_streamed:
      return pixels.statistics(dataset.train)
    return augmentation.channel_statistics(dataset.train['image'])

  def normalized(batch: Any) -> Any:
    image = augmentation.normalize(batch['image'], *statistics())
    return {**batch, 'image': image}

  def augmented(key: jax.Array, batch: Any) -> Any:
    batch = normalized(batch)
    if not config.augment:
      return batch
    crop_key, flip_key = jax.random.split(key)
    image = augmentation.random_crop(crop_key, batch['image'], padding=4)
    return {**batch, 'image': augmentation.random_flip(flip_key, image)}

  return normalized, augmented


def build_data(
  config: RunConfig, dataset: Dataset, transform: Transform
) -> Resident | Pipeline:
  """Who gets which examples.

  Raises:
    ValueError: if there are too few examples for the replicas and the batch.
  """
  alpha = config.dirichlet_alpha or 0
  partitions: dict[str, Callable[..., Resident | Pipeline]] = {
    'shared': pr.shared,
    'sharded': pr.sharded,
    'dirichlet': functools.partial(pr.dirichlet, alpha=alpha),
  }
  if config.stream:
    partitions[config.partition] = functools.partial(
      pr.pipeline,
      partition=config.partition,
      num_processes=config.stream_processes,
    )
  data = partitions[config.partition](
    dataset.train,
    batch_size=config.batch_size,
    seed=config.seed,
    transform=transform,
  )
  check_data(data, config.num_replicas)
  return data


def assemble(
  config: RunConfig,
  dataset: Dataset,
  num_devices: int | None,
  network: pr.ledger.Network,
  *,
  map_by: str = 'pmap',
  block: str | None = None,
) -> Parts:
  """Looks whether the parts of a run fit together.

  Args:
    config: the run.
    dataset: that it names.
    num_devices: D, or None for the most there are that fit.
    network: for the modeled time.
    map_by: function of JAX that maps over the devices, see `pr.trainer`.
    block: how the replicas of a device are computed, see `pr.trainer`.

  Raises:
    ValueError: if they do not; the message says what to change.
  """
  with dotted.named_errors(*config.own()):
    return _assemble(config, dataset, num_devices, network, map_by, block)


def _assemble(
  config: RunConfig,
  dataset: Dataset,
  num_devices: int | None,
  network: pr.ledger.Network,
  map_by: str,
  block: str | None,
) -> Parts:
  n = config.num_replicas
  network = with_own_speeds(config, network)
  network.check(n)
  own_parts.check_fit(config, dataset)
  plan = build_plan(config, dataset.num_examples)
  batch = batch_shapes(dataset)
  task = tasks.build(config, dataset.num_classes, batch)
  made = jax.eval_shape(
    task.init, jax.eval_shape(lambda: jax.random.key(0)), batch
  )
  own_parts.check_init(config, made)
  params, model_state = made
  if 'batch_stats' in config.options and not jax.tree.leaves(model_state):
    raise ValueError(
      f'--batch_stats does nothing: --model={config.model} has none'
    )
  own_parts.check_task(config, task, params, model_state, batch)
  normalized, augmented = build_transforms(config, dataset)

  def init(key: jax.Array, batch: Any) -> Any:
    return task.init(key, normalized(batch))

  def eval_fn(params: Any, model_state: Any, batch: Any) -> Any:
    return task.eval_fn(params, model_state, normalized(batch))

  trainer = pr.trainer(
    plan.algorithm,
    task.loss_fn,
    num_replicas=n,
    eval_fn=eval_fn,
    num_devices=num_devices,
    map_by=map_by,
    block=block,
  )
  shapes = trainer.shapes(params, model_state)
  meter = pr.ledger.meter(plan.algorithm, shapes, n, plan.num_steps, network)
  # An epoch is counted as if no replica crashed.
  whole = plan.faultless or plan.algorithm
  _check_epochs(
    config, lambda: ledger.working_share(whole, shapes, n, plan.num_steps)
  )
  return Parts(
    label=config.label(),
    description=config.description(dataset),
    called_with=saved_flags.of_run(config),
    data=build_data(config, dataset, augmented),
    test=dataset.test,
    batch_size=config.batch_size,
    seed=config.seed,
    init=init,
    plan=plan,
    trainer=trainer,
    network=network,
    meter=meter,
    reestimate=config.options.get('batch_stats') == 'reestimate',
    config=config,
    block=chosen_block(trainer, params, model_state, batch),
  )


def with_own_speeds(
  config: RunConfig, network: pr.ledger.Network
) -> pr.ledger.Network:
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
  config: RunConfig, working_share: Callable[[], float]
) -> None:
  """Raise ValueError if epochs are counted and not all replicas work."""
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

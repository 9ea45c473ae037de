"""One run: the objects that a config names, and the loop over them."""

from collections.abc import Callable, Iterator
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import config as configs
from experiments import records
import prsgd_jax as pr
from prsgd_jax import augmentation, checkpoints, input_pipeline
from prsgd_jax.datasets import Dataset

# Steps in one dispatch at most: more gain nothing and make the display jerky.
MAX_STEPS_PER_DISPATCH = 64
EVAL_BATCH = 500


class NonFinite(ValueError):
  """The loss or the parameters of a replica are no longer numbers."""


class Intervals(NamedTuple):
  """Steps between records, evaluations and checkpoints."""

  log_every: int
  eval_every: int
  checkpoint_every: int

  @classmethod
  def from_flags(cls, values: flags.FlagValues) -> 'Intervals':
    """The intervals that the flags name.

    Raises:
      ValueError: as `check`.
    """
    found = cls(values.log_every, values.eval_every, values.checkpoint_every)
    found.check()
    return found

  def check(self) -> None:
    """Raises ValueError unless all are positive multiples of `log_every`."""
    if self.log_every < 1:
      raise ValueError(f'--log_every must be >= 1, got {self.log_every}')
    for name, value in self._asdict().items():
      if value < 1 or value % self.log_every:
        raise ValueError(
          f'--{name} must be a multiple >= 1 of --log_every='
          f'{self.log_every}, got {value}'
        )


class _Clock(NamedTuple):
  """When the run began, and when its first dispatch was compiled and done."""

  begun: float
  first_steps: float | None = None
  counted_from: int = 0
  paused: float = 0.0  # in evaluations and checkpoints since


class Experiment(NamedTuple):
  """The objects of a run, ready to start."""

  config: configs.RunConfig
  description: dict[str, Any]
  mesh: pr.ReplicaMesh
  plan: configs.Plan
  state: pr.TrainState
  train_steps: Callable[..., Any]
  evaluate: Callable[..., dict[str, float]]
  data: Any
  test_data: Any
  num_examples: int

  def epoch(self, step: int) -> float:
    """Passes over the data after so many steps, all replicas together."""
    per_step = self.config.num_replicas * self.config.batch_size
    return step * per_step / self.num_examples


def check(
  config: configs.RunConfig, dataset: Dataset, num_devices: int | None
) -> None:
  """Looks whether a run can be prepared, without arrays on the devices.

  Raises:
    ValueError: if its parts do not fit together; the message says what to
      change.
  """
  plan = configs.build_plan(config, len(dataset.train['label']))
  configs.build_sampler(config, dataset)
  pr.ReplicaMesh(config.num_replicas, num_devices)
  params, model_state = jax.eval_shape(
    configs.build_task(config, dataset.num_classes).init,
    jax.eval_shape(lambda: jax.random.key(0)),
    jax.ShapeDtypeStruct((1, *dataset.train['image'].shape[1:]), jnp.float32),
  )
  if 'batch_stats' in config.options and not jax.tree.leaves(model_state):
    raise ValueError(
      f'--batch_stats does nothing: --model={config.model} has none'
    )
  block = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params
  )
  jax.eval_shape(
    lambda x: plan.algorithm.init(pr.Replica(params=x), config.num_replicas),
    block,
  )


def prepare(
  config: configs.RunConfig, dataset: Dataset, num_devices: int | None
) -> Experiment:
  """Builds the objects that a config names.

  Raises:
    ValueError: as `check`.
  """
  check(config, dataset, num_devices)
  num_examples = len(dataset.train['label'])
  plan = configs.build_plan(config, num_examples)
  sampler = configs.build_sampler(config, dataset)
  mesh = pr.ReplicaMesh(config.num_replicas, num_devices)
  task = configs.build_task(config, dataset.num_classes)
  statistics = augmentation.channel_statistics(dataset.train['image'])

  def normalised(batch: Any) -> Any:
    image = augmentation.normalise(batch['image'], *statistics)
    return {**batch, 'image': image}

  def transform(key: jax.Array, batch: Any) -> Any:
    batch = normalised(batch)
    if not config.augment:
      return batch
    crop_key, flip_key = jax.random.split(key)
    image = augmentation.random_crop(crop_key, batch['image'], padding=4)
    return {**batch, 'image': augmentation.random_flip(flip_key, image)}

  example = normalised({'image': jnp.asarray(dataset.train['image'][:1])})
  params, model_state = jax.jit(task.init)(
    jax.random.key(config.seed, impl='threefry2x32'), example['image']
  )
  return Experiment(
    config=config,
    description=config.description(dataset),
    mesh=mesh,
    plan=plan,
    state=pr.create_train_state(
      mesh, plan.algorithm, params, model_state, seed=config.seed
    ),
    train_steps=pr.make_resident_train_steps(
      mesh,
      plan.algorithm,
      task.loss_fn,
      input_pipeline.make_batch_fn(mesh, sampler, transform),
    ),
    evaluate=pr.make_evaluate(
      mesh, plan.algorithm, lambda p, s, b: task.eval_fn(p, s, normalised(b))
    ),
    data=mesh.replicate(dataset.train),
    test_data=pr.shard_examples(mesh, dataset.test, EVAL_BATCH),
    num_examples=num_examples,
  )


def open_workdir(
  experiment: Experiment,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  resume: bool,
) -> None:
  """Makes the directory of a run, or finds the one to go on with.

  Raises:
    ValueError: if another run is there, or it cannot be written.
  """
  records.open_workdir(
    workdir,
    describe(experiment.description, intervals),
    configs.all_flags(),
    num_steps=experiment.plan.num_steps,
    resume=resume,
  )


def describe(
  description: records.Record, intervals: Intervals
) -> records.Record:
  """What the directory of a run is compared by.

  With `log_every`, over which the losses of its records are means.
  """
  return {**description, 'log_every': intervals.log_every}


def execute(
  experiment: Experiment,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  progress: bool = True,
) -> records.Record:
  """Runs an experiment to its end, from its newest checkpoint if it has one.

  Args:
    experiment: as `prepare` made it; its state is used up.
    workdir: as `records.open_workdir` made it.
    intervals: between records, evaluations and checkpoints.
    progress: whether to show a progress bar.

  Returns:
    The summary, which is also in the directory.

  Raises:
    NonFinite: if the loss is; the last good checkpoint stays.
    CheckpointError: if the newest checkpoint cannot be used.
  """
  intervals.check()
  num_steps = experiment.plan.num_steps
  state, start = _restore(experiment, workdir)
  done_before = records.read_summary(workdir)
  if done_before is not None and done_before['step'] == num_steps == start:
    return done_before
  account = pr.account(
    experiment.plan.algorithm,
    pr.replica_shapes(state),
    experiment.mesh.num_replicas,
    num_steps,
  )
  log = records.Log(
    workdir,
    label=experiment.config.label(),
    start=start,
    num_steps=num_steps,
    progress=progress,
  )
  clock = _Clock(time.monotonic())
  means = _Means()
  record: records.Record = {}
  pending: tuple[int, Any] | None = None

  def take(first: int, metrics: Any) -> None:
    host = jax.tree.map(np.asarray, metrics)
    _check_loss(workdir, first, host)
    means.add(host)
    log.advance(host['loss'].shape[1])

  for first, stop in _dispatches(start, num_steps, intervals):
    state, metrics = experiment.train_steps(
      state, experiment.data, stop - first
    )
    if clock.first_steps is None:
      jax.block_until_ready(metrics)
      clock = clock._replace(first_steps=time.monotonic(), counted_from=stop)
    # While the devices work on this dispatch, the one before is looked at.
    if pending is not None:
      take(*pending)
    pending = (first, metrics)
    done = stop == num_steps
    if done or stop % intervals.log_every == 0:
      take(*pending)
      pending = None
      record = {
        'step': stop,
        'epoch': experiment.epoch(stop),
        **means.pop(),
        **_spent(experiment, account, stop),
      }
      working = time.monotonic()
      if done or stop % intervals.eval_every == 0:
        record |= _measure(experiment, state)
      log.write(record)
      if done or stop % intervals.checkpoint_every == 0:
        _save(experiment, workdir, state)
      spent = time.monotonic() - working
      clock = clock._replace(paused=clock.paused + spent)
  log.close()
  return _summarise(experiment, workdir, clock)


class _Means:
  """Means of the metrics over the steps and replicas that were active."""

  def __init__(self) -> None:
    self._sums: dict[str, float] = {}

  def add(self, metrics: dict[str, np.ndarray]) -> None:
    """Adds `[D, steps, V]` values, those of the inactive being zeros."""
    active = metrics.get('active', np.ones_like(metrics['loss']))
    for name, value in {**metrics, 'active': active}.items():
      total = self._sums.get(name, 0.0) + float(value.sum(dtype=np.float64))
      self._sums[name] = total

  def pop(self) -> dict[str, float]:
    """The means since the last call."""
    sums, self._sums = self._sums, {}
    active = sums.pop('active')
    return {name: value / active for name, value in sums.items()}


def _spent(
  experiment: Experiment, account: pr.Account, step: int
) -> records.Record:
  """The learning rate, and what was communicated, after so many steps."""
  learning_rate = np.float32(experiment.plan.schedule(step - 1))
  return {
    # The shortest digits of the float32: 0.02, not 0.019999999552965164.
    'learning_rate': float(str(learning_rate)),
    'rounds': int(account.rounds[step]),
    'bytes_sent': float(account.bytes_sent[step]),
    'bytes_by_tier': {
      tier: float(sent[step]) for tier, sent in account.bytes_by_tier.items()
    },
  }


def _dispatches(
  start: int, num_steps: int, intervals: Intervals
) -> Iterator[tuple[int, int]]:
  """(first, stop) of each dispatch, on a grid that does not know `start`.

  A resumed run makes the dispatches that the uninterrupted one would have made.
  """
  while start < num_steps:
    window = start - start % intervals.log_every
    piece = (start - window) // MAX_STEPS_PER_DISPATCH + 1
    stop = min(
      window + piece * MAX_STEPS_PER_DISPATCH,
      window + intervals.log_every,
      num_steps,
    )
    yield start, stop
    start = stop


def _restore(
  experiment: Experiment, workdir: pathlib.Path
) -> tuple[pr.TrainState, int]:
  directory = workdir / records.CHECKPOINTS
  if checkpoints.latest_step(directory) is None:
    return experiment.state, 0
  state = checkpoints.restore(
    directory,
    experiment.mesh,
    experiment.state,
    experiment.description,
  )
  return state, int(state.step[0])


def _save(
  experiment: Experiment, workdir: pathlib.Path, state: pr.TrainState
) -> None:
  """Saves a state whose parameters are all finite."""
  finite = experiment.mesh.gather(_finite_replicas(state.params))
  if not finite.all():
    step = int(state.step[0]) - 1
    raise _non_finite(workdir, 'parameters are', step, finite)
  directory = workdir / records.CHECKPOINTS
  checkpoints.save(directory, experiment.mesh, state, experiment.description)


@jax.jit
def _finite_replicas(params: Any) -> jax.Array:
  """bool[D, V]: whether all parameters of a replica are finite."""
  per_leaf = [
    jnp.isfinite(x).all(axis=tuple(range(2, x.ndim)))
    for x in jax.tree.leaves(params)
  ]
  return jnp.stack(per_leaf).all(axis=0)


def _check_loss(
  workdir: pathlib.Path, first: int, metrics: dict[str, np.ndarray]
) -> None:
  """Raises NonFinite at the first step at which a replica's loss is."""
  finite = np.isfinite(metrics['loss'])
  by_step = np.moveaxis(finite, 1, 0).reshape((finite.shape[1], -1))
  if not by_step.all():
    i = int(np.argmin(by_step.all(axis=1)))
    raise _non_finite(workdir, 'loss is', first + i, by_step[i])


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
    f'{int(np.argmin(finite))}; try a lower --learning_rate; {saved}'
  )


def _measure(experiment: Experiment, state: pr.TrainState) -> dict[str, float]:
  means = experiment.evaluate(state, experiment.test_data)
  return {
    'test_loss': means['loss'],
    'test_accuracy': means['accuracy'],
    'consensus_distance': means['consensus_distance'],
  }


def _summarise(
  experiment: Experiment, workdir: pathlib.Path, clock: _Clock
) -> records.Record:
  summary = {
    'label': experiment.config.label(),
    **records.read_records(workdir)[-1],
    'steps_per_second': None,
    'seconds_to_first_steps': None,
    'replicas': str(experiment.mesh),
    'device': experiment.mesh.devices[0].device_kind,
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
    'commit': records.commit(),
  }
  if clock.first_steps is not None:
    steps = experiment.plan.num_steps - clock.counted_from
    seconds = time.monotonic() - clock.first_steps - clock.paused
    summary['seconds_to_first_steps'] = clock.first_steps - clock.begun
    summary['steps_per_second'] = steps / seconds if steps else None
  records.write_summary(workdir, summary)
  return summary

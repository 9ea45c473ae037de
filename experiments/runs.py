"""One run: from its config to a directory that tells all of it.

The directory holds `config.json`, `metrics.jsonl` (a record every `log_every`
steps), `tensorboard/`, `checkpoints/` and, when the run is done,
`summary.json`.
"""

from collections.abc import Callable, Iterator
import dataclasses
import json
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboardX
import tqdm

from experiments import config as configs
import prsgd_jax as pr
from prsgd_jax import augmentation, checkpoints, input_pipeline
from prsgd_jax.classification import classifier
from prsgd_jax.datasets import Dataset

# Steps in one dispatch at most: more gain nothing and make the display jerky.
MAX_STEPS_PER_DISPATCH = 64
EVAL_BATCH = 500
CONFIG = 'config.json'
SUMMARY = 'summary.json'

Record = dict[str, Any]


class NonFinite(ValueError):
  """The loss or the parameters of a replica are no longer numbers."""


class Intervals(NamedTuple):
  """Steps between records, evaluations and checkpoints."""

  log_every: int
  eval_every: int
  checkpoint_every: int

  def check(self) -> None:
    """Raises ValueError unless all are positive multiples of `log_every`."""
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


class Experiment(NamedTuple):
  """The objects of a run, ready to start."""

  config: configs.RunConfig
  mesh: pr.ReplicaMesh
  algorithm: pr.ReplicaTransformation
  schedule: optax.Schedule
  state: pr.TrainState
  train_steps: Callable[..., Any]
  evaluate: Callable[..., dict[str, float]]
  data: Any
  test_data: Any
  num_examples: int
  num_steps: int

  def epoch(self, step: int) -> float:
    """Passes over the data after so many steps, all replicas together."""
    per_step = self.config.num_replicas * self.config.batch_size
    return step * per_step / self.num_examples


def prepare(
  config: configs.RunConfig, dataset: Dataset, num_devices: int | None
) -> Experiment:
  """Builds the objects that a config names.

  Raises:
    ValueError: if they do not fit together; the message says what to change.
  """
  num_examples = len(dataset.train['label'])
  num_steps = configs.total_steps(config, num_examples)
  schedule = configs.build_schedule(config, num_examples)
  algorithm = configs.build_algorithm(config, schedule, num_steps)
  sampler = configs.build_sampler(config, dataset)
  mesh = pr.ReplicaMesh(config.num_replicas, num_devices)
  model = configs.build_model(config, dataset.num_classes)
  task = classifier(model, weight_decay=config.weight_decay)
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
  if 'batch_stats' in config.options and not jax.tree.leaves(model_state):
    raise ValueError(
      f'--batch_stats does nothing: --model={config.model} has none'
    )
  return Experiment(
    config=config,
    mesh=mesh,
    algorithm=algorithm,
    schedule=schedule,
    state=pr.create_train_state(
      mesh, algorithm, params, model_state, seed=config.seed
    ),
    train_steps=pr.make_resident_train_steps(
      mesh,
      algorithm,
      task.loss_fn,
      input_pipeline.make_batch_fn(sampler, transform),
    ),
    evaluate=pr.make_evaluate(
      mesh, algorithm, lambda p, s, b: task.eval_fn(p, s, normalised(b))
    ),
    data=mesh.replicate(dataset.train),
    test_data=pr.shard_examples(mesh, dataset.test, EVAL_BATCH),
    num_examples=num_examples,
    num_steps=num_steps,
  )


def check_workdir(
  workdir: pathlib.Path, config: configs.RunConfig, *, resume: bool
) -> None:
  """Looks whether a run may be written here.

  Raises:
    ValueError: if there is a run and `resume` is not given, or the run is
      another, or there is something else.
  """
  path = workdir / CONFIG
  if not path.exists():
    if workdir.exists() and not workdir.is_dir():
      raise ValueError(f'{workdir} is a file; pass another --workdir')
    if workdir.is_dir() and any(workdir.iterdir()):
      raise ValueError(
        f'{workdir} is not empty and holds no run; pass another --workdir'
      )
    return
  if not resume:
    raise ValueError(
      f'{workdir} holds a run; pass --resume to go on with it, or another '
      '--workdir'
    )
  saved = json.loads(path.read_text())['description']
  this = json.loads(json.dumps(config.description()))
  for name in sorted({*saved, *this}):
    if saved.get(name) != this.get(name):
      raise ValueError(
        f'{workdir} holds a run with {name}={saved.get(name)!r}, this one has '
        f'{this.get(name)!r}; pass another --workdir'
      )


def open_workdir(
  workdir: pathlib.Path, config: configs.RunConfig, *, resume: bool
) -> None:
  """Makes the directory of a run, or finds the one to go on with.

  Raises:
    ValueError: as `check_workdir`.
  """
  check_workdir(workdir, config, resume=resume)
  workdir.mkdir(parents=True, exist_ok=True)
  whole = {
    'description': config.description(),
    'config': dataclasses.asdict(config),
  }
  _write(workdir / CONFIG, json.dumps(whole, indent=1) + '\n')


def execute(
  experiment: Experiment,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  progress: bool = True,
) -> Record:
  """Runs an experiment to its end, from its newest checkpoint if it has one.

  Returns:
    The summary, which is also in `summary.json`.

  Raises:
    NonFinite: if the loss is; the last good checkpoint stays.
    CheckpointError: if the newest checkpoint cannot be used.
  """
  intervals.check()
  state, start = _restore(experiment, workdir)
  summary = read_summary(workdir)
  if start == experiment.num_steps and summary is not None:
    return summary
  log = _Log(experiment, workdir, start, progress)
  clock = _Clock(time.monotonic())
  pending: tuple[int, Any] | None = None
  for first, stop in _dispatches(start, experiment.num_steps, intervals):
    state, metrics = experiment.train_steps(
      state, experiment.data, stop - first
    )
    if clock.first_steps is None:
      jax.block_until_ready(metrics)
      clock = clock._replace(first_steps=time.monotonic(), counted_from=stop)
    # While the devices work on this dispatch, the one before is written down.
    if pending is not None:
      log.add(*pending)
    pending = (first, metrics)
    done = stop == experiment.num_steps
    if done or stop % intervals.log_every == 0:
      log.add(*pending)
      pending = None
      measured: dict[str, float] = {}
      if done or stop % intervals.eval_every == 0:
        measured = _measure(experiment, state)
      log.write(stop, measured)
    if done or stop % intervals.checkpoint_every == 0:
      _save(experiment, workdir, state)
  log.close()
  return _summarise(experiment, workdir, clock)


def read_summary(workdir: pathlib.Path) -> Record | None:
  """The summary of a run that was done, None if there is none."""
  path = workdir / SUMMARY
  return json.loads(path.read_text()) if path.exists() else None


def read_records(workdir: pathlib.Path) -> list[Record]:
  """The records of a run; a last line that was cut off is left out."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = path.read_text().split('\n')[:-1]
  return [json.loads(line) for line in lines]


def _dispatches(
  start: int, num_steps: int, intervals: Intervals
) -> Iterator[tuple[int, int]]:
  """(first, stop) of each dispatch, on a grid that does not know `start`.

  A resumed run makes the dispatches that the uninterrupted one would have made.
  """
  longest = min(intervals.log_every, MAX_STEPS_PER_DISPATCH)
  size = max(d for d in range(1, longest + 1) if intervals.log_every % d == 0)
  while start < num_steps:
    stop = min(start - start % size + size, num_steps)
    yield start, stop
    start = stop


def _restore(
  experiment: Experiment, workdir: pathlib.Path
) -> tuple[pr.TrainState, int]:
  directory = workdir / 'checkpoints'
  if checkpoints.latest_step(directory) is None:
    return experiment.state, 0
  state = checkpoints.restore(
    directory,
    experiment.mesh,
    experiment.state,
    experiment.config.description(),
  )
  return state, int(state.step[0])


def _save(
  experiment: Experiment, workdir: pathlib.Path, state: pr.TrainState
) -> None:
  """Saves a state whose parameters are all finite."""
  finite = experiment.mesh.gather(_finite_replicas(state.params))
  step = int(state.step[0])
  if not finite.all():
    raise _non_finite(workdir, 'parameters are not finite', step - 1, finite)
  directory = workdir / 'checkpoints'
  checkpoints.save(
    directory, experiment.mesh, state, experiment.config.description()
  )


@jax.jit
def _finite_replicas(params: Any) -> jax.Array:
  """bool[D, V]: whether all parameters of a replica are finite."""
  per_leaf = [
    jnp.isfinite(x).all(axis=tuple(range(2, x.ndim)))
    for x in jax.tree.leaves(params)
  ]
  return jnp.stack(per_leaf).all(axis=0)


def _measure(experiment: Experiment, state: pr.TrainState) -> dict[str, float]:
  means = experiment.evaluate(state, experiment.test_data)
  return {
    'test_loss': means['loss'],
    'test_accuracy': means['accuracy'],
    'consensus_distance': means['consensus_distance'],
  }


def _non_finite(
  workdir: pathlib.Path, what: str, step: int, finite: np.ndarray
) -> NonFinite:
  kept = checkpoints.latest_step(workdir / 'checkpoints')
  saved = (
    'there is no checkpoint yet'
    if kept is None
    else f'the last good checkpoint is {workdir / "checkpoints" / str(kept)}'
  )
  return NonFinite(
    f'the {what} at step {step} on replica {int(np.argmin(finite))}; '
    f'try a lower --learning_rate; {saved}'
  )


class _Log:
  """Writes the records of a run to its directory and to the display."""

  def __init__(
    self,
    experiment: Experiment,
    workdir: pathlib.Path,
    start: int,
    progress: bool,
  ):
    self._experiment = experiment
    self._workdir = workdir
    self._account = pr.account(
      experiment.algorithm,
      pr.replica_shapes(experiment.state),
      experiment.mesh.num_replicas,
      experiment.num_steps,
    )
    kept = [r for r in read_records(workdir) if r['step'] <= start]
    lines = ''.join(json.dumps(record) + '\n' for record in kept)
    _write(workdir / 'metrics.jsonl', lines)
    self._file = open(workdir / 'metrics.jsonl', 'a')  # noqa: SIM115
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start + 1
    )
    self._sums: dict[str, float] = {}
    self._seconds = kept[-1]['seconds'] if kept else 0.0
    self._clock = time.monotonic()
    self._bar = tqdm.tqdm(
      total=experiment.num_steps,
      initial=start,
      unit='step',
      desc=experiment.config.label(),
      disable=not progress,
    )

  def add(self, first: int, metrics: Any) -> None:
    """Adds a dispatch's metrics; the first not finite one ends the run."""
    host = {k: np.asarray(v) for k, v in metrics.items()}
    active = host.pop('active')
    finite = np.isfinite(host['loss']) | (active == 0)
    for i in range(active.shape[1]):
      if not finite[:, i].all():
        per_replica = finite[:, i].reshape(-1)
        raise _non_finite(
          self._workdir, 'loss is not finite', first + i, per_replica
        )
    self._count('active', active.sum())
    for name, value in host.items():
      self._count(name, (value * active).sum())
    self._bar.update(active.shape[1])

  def _count(self, name: str, value: float) -> None:
    self._sums[name] = self._sums.get(name, 0.0) + float(value)

  def write(self, step: int, measured: dict[str, float]) -> None:
    """Writes the record of the steps since the last one."""
    active = self._sums.pop('active')
    means = {name: value / active for name, value in self._sums.items()}
    self._sums = {}
    now = time.monotonic()
    self._seconds, self._clock = self._seconds + now - self._clock, now
    record = {
      'step': step,
      'epoch': self._experiment.epoch(step),
      **means,
      # The shortest digits of the float32: 0.02, not 0.019999999552965164.
      'learning_rate': float(
        str(np.float32(self._experiment.schedule(step - 1)))
      ),
      'rounds': int(self._account.rounds[step]),
      'bytes_sent': float(self._account.bytes_sent[step]),
      'bytes_by_tier': {
        tier: float(sent[step])
        for tier, sent in self._account.bytes_by_tier.items()
      },
      'seconds': self._seconds,
      **measured,
    }
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in record.items():
      if isinstance(value, float | int):
        self._tensorboard.add_scalar(name, value, step)
    shown = {'loss': f'{means["loss"]:.4f}', 'rounds': record['rounds']}
    self._bar.set_postfix(shown, refresh=False)

  def close(self) -> None:
    """Ends the display and the files."""
    self._bar.close()
    self._file.close()
    self._tensorboard.close()


def _summarise(
  experiment: Experiment, workdir: pathlib.Path, clock: _Clock
) -> Record:
  summary = {
    'label': experiment.config.label(),
    **read_records(workdir)[-1],
    'steps_per_second': None,
    'seconds_to_first_steps': None,
    'replicas': str(experiment.mesh),
    'device': experiment.mesh.devices[0].device_kind,
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
  }
  if clock.first_steps is not None:
    steps = experiment.num_steps - clock.counted_from
    seconds = time.monotonic() - clock.first_steps
    summary['seconds_to_first_steps'] = clock.first_steps - clock.begun
    summary['steps_per_second'] = steps / seconds if steps else None
  _write(workdir / SUMMARY, json.dumps(summary, indent=1) + '\n')
  return summary


def format_summary(summary: Record, workdir: pathlib.Path) -> str:
  """The summary for a person to read."""
  rate = summary['steps_per_second']
  lines = [
    f'{summary["label"]}: {summary["replicas"]}',
    f'  steps          {summary["step"]} ({summary["epoch"]:.1f} epochs)',
    f'  train loss     {summary["loss"]:.4f}',
    f'  test loss      {summary["test_loss"]:.4f}',
    f'  test accuracy  {summary["test_accuracy"]:.2%}',
    f'  rounds         {summary["rounds"]}',
    f'  bytes sent     {format_bytes(summary["bytes_sent"])} per replica',
    f'  time           {summary["seconds"]:.1f} s'
    + (f', {rate:.0f} steps/s once compiled' if rate else ''),
    f'  written to     {workdir}',
  ]
  return '\n'.join(lines)


def format_bytes(count: float) -> str:
  """1536 -> '1.5 KiB'."""
  if count < 1:
    return '0 B'
  power = min(int(math.log(count, 1024)), 4)
  unit = ('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]
  return f'{count / 1024**power:.1f} {unit}'


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  staging = path.with_name(path.name + '.partial')
  staging.write_text(text)
  staging.rename(path)

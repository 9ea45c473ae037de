"""One run: the loop over the steps, and what it writes."""

from collections.abc import Iterator, Sequence
import contextlib
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import loggers, logs, messages, records, writing
from experiments.parts import Experiment, Parts
import prsgd_jax as pr
from prsgd_jax import checkpoints, ledger

# Steps in one dispatch at most: more gain nothing and make the display jerky.
MAX_STEPS_PER_DISPATCH = 64


class NonFinite(ValueError):
  """The loss or the parameters of a replica are no longer numbers.

  Attributes:
    step: the first at which they are not.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


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


def open_workdir(
  parts: Parts,
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
    describe(parts, intervals),
    dict(parts.called_with),
    label=parts.label,
    num_steps=parts.plan.num_steps,
    resume=resume,
  )


def describe(parts: Parts, intervals: Intervals) -> records.Record:
  """What the directory of a run is compared by.

  With `log_every`, over which the losses of its records are means, and the
  network on which their time is modelled.
  """
  return {
    **parts.description,
    'log_every': intervals.log_every,
    'network': parts.network._asdict(),
  }


def execute(
  experiment: Experiment,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  progress: bool = True,
  more_loggers: Sequence[loggers.Factory] = (),
) -> records.Record:
  """Runs an experiment to its end, from its newest checkpoint if it has one.

  Args:
    experiment: as `prepare` made it; its state is used up.
    workdir: as `records.open_workdir` made it.
    intervals: between records, evaluations and checkpoints.
    progress: whether to show a progress bar, or lines where no terminal is.
    more_loggers: functions of a `loggers.Run`; their loggers get each record.

  Returns:
    The summary, which is also in the directory.

  Raises:
    NonFinite: if the loss is; the last good checkpoint stays, and the directory
      says so.
    CheckpointError: if the newest checkpoint cannot be used.
    SaveError, WriteError: if a checkpoint or another file cannot be written.
  """
  intervals.check()
  records.write_failure(workdir, None)
  try:
    with contextlib.ExitStack() as closing:
      return _execute(
        experiment, workdir, intervals, progress, more_loggers, closing
      )
  except NonFinite as error:
    failure = {'step': error.step, 'failed': str(error)}
    try:
      records.write_failure(workdir, failure)
    except writing.WriteError as unwritten:  # the lesser of the two
      messages.warn(f'warning: {unwritten}')
    raise


def _execute(
  experiment: Experiment,
  workdir: pathlib.Path,
  intervals: Intervals,
  progress: bool,
  more_loggers: Sequence[loggers.Factory],
  closing: contextlib.ExitStack,
) -> records.Record:
  num_steps = experiment.parts.plan.num_steps
  state, start = _restore(experiment, workdir)
  done_before = records.read_summary(workdir)
  if done_before is not None and done_before['step'] == num_steps == start:
    return done_before
  meter = experiment.parts.meter
  position = meter.advance(meter.init(), start)
  log = logs.open_log(
    loggers.Run(
      workdir=workdir,
      label=experiment.parts.label,
      flags=records.read_config(workdir)['flags'],
      start=start,
      num_steps=num_steps,
    ),
    more_loggers,
    progress=progress,
  )
  # Before an error is printed, so that it is below the progress bar.
  closing.callback(log.close)
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
      position = meter.advance(position, stop)
      spent = meter.spent(position, state.algorithm_state)
      record = {
        'step': stop,
        'epoch': experiment.parts.epoch(spent.gradients),
        **means.pop(),
        **_spent(experiment, stop, spent),
      }
      working = time.monotonic()
      if done or stop % intervals.eval_every == 0:
        record |= _measure(experiment, state)
      log.write(record)
      if done or stop % intervals.checkpoint_every == 0:
        _save(experiment, workdir, state)
      paused = clock.paused + time.monotonic() - working
      clock = clock._replace(paused=paused)
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
    active = sums.pop('active') or math.nan  # nobody began a gradient
    return {name: value / active for name, value in sums.items()}


def _spent(
  experiment: Experiment, step: int, spent: ledger.Spent
) -> records.Record:
  """The learning rate, and what was spent so far."""
  schedule = experiment.parts.plan.schedule
  rate = {}
  if schedule is not None:
    # The shortest digits of the float32: 0.02, not 0.019999999552965164.
    rate = {'learning_rate': float(str(np.float32(schedule(step - 1))))}
  return {
    **rate,
    'rounds': spent.rounds,
    'bytes_sent': spent.bytes_sent,
    'bytes_by_tier': spent.bytes_by_tier,
    'modelled_seconds': spent.seconds,
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
    experiment.parts.mesh,
    experiment.state,
    experiment.parts.description,
  )
  return state, int(state.step[0])


def _save(
  experiment: Experiment, workdir: pathlib.Path, state: pr.TrainState
) -> None:
  """Saves a state whose parameters are all finite."""
  finite = experiment.parts.mesh.gather(_finite_replicas(state.params))
  if not finite.all():
    step = int(state.step[0]) - 1
    raise _non_finite(workdir, 'parameters are', step, finite)
  directory = workdir / records.CHECKPOINTS
  # A checkpoint is of use only with the records up to it.
  writing.sync(workdir / records.METRICS)
  checkpoints.save(
    directory, experiment.parts.mesh, state, experiment.parts.description
  )


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
    f'{int(np.argmin(finite))}; try a lower --learning_rate; {saved}',
    step,
  )


def _measure(experiment: Experiment, state: pr.TrainState) -> dict[str, float]:
  """The means over the test split, and the consensus distance."""
  means = experiment.evaluate(state, experiment.test_data)
  own = ('consensus_distance',)  # of the parameters, not of the examples
  return {n if n in own else f'test_{n}': v for n, v in means.items()}


def _summarise(
  experiment: Experiment, workdir: pathlib.Path, clock: _Clock
) -> records.Record:
  summary = {
    'label': experiment.parts.label,
    **records.read_records(workdir)[-1],
    'steps_per_second': None,
    'seconds_to_first_steps': None,
    'replicas': str(experiment.parts.mesh),
    'device': experiment.parts.mesh.devices[0].device_kind,
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
    'commit': records.commit(),
  }
  if clock.first_steps is not None:
    steps = experiment.parts.plan.num_steps - clock.counted_from
    seconds = time.monotonic() - clock.first_steps - clock.paused
    summary['seconds_to_first_steps'] = clock.first_steps - clock.begun
    summary['steps_per_second'] = steps / seconds if steps else None
  records.write_summary(workdir, summary)
  return summary

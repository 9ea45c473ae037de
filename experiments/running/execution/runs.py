"""One run: the loop over the steps, and what it writes."""

from collections.abc import Callable, Collection, Iterator, Sequence
import contextlib
import os
import pathlib
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments.running.execution import phases, sizes, waits, warm_start
from experiments.running.execution.finite import (
  NonFinite,
  check_loss,
  first_cause,
)
from experiments.running.execution.intervals import Intervals
from experiments.running.execution.parts import Parts
from experiments.running.execution.phases import Phases
from experiments.running.execution.saving import Saver
from experiments.running.logs import loggers, logs
from experiments.running.process import (
  locks,
  messages,
  peers,
  process_zero,
  signals,
  watchdog,
)
from experiments.running.records import goodput, json_files, records, writing
from experiments.running.records.progress import Progress, find_start
import prsgd_jax as pr
from prsgd_jax import ledger
from prsgd_jax.engine import checkpoints, processes, replica_mesh
from prsgd_jax.engine.run_state import State
from prsgd_jax.ledger import positions
from prsgd_jax.stages.robust_averages import counts_dropped, drops_replicas

# Steps in one dispatch at most: more gain nothing and make the display jerky.
MAX_STEPS_PER_DISPATCH = 64
# Checkpoints of a run that stay by default, the newest three.
KEEP = checkpoints.Retention()
# Name of the meter's position in the notes of a checkpoint.
LEDGER = 'ledger'


def stall_seconds_from_flags(values: flags.FlagValues) -> float:
  """Return --stall_seconds, or its default for the number of processes.

  Raises:
    ValueError: if it is out of range.
  """
  return watchdog.limit(values.stall_seconds, processes.count())


def hold(
  workdir: pathlib.Path,
) -> contextlib.AbstractContextManager[None]:
  """Hold the directory of a run for this process, before it is opened.

  Raises:
    LockError: when entered, if another process has it.
    ValueError: if there is something else than a run.
  """

  def lock() -> contextlib.AbstractContextManager[None]:
    records.check_place(workdir)
    return locks.hold(workdir)

  return process_zero.held(f'the lock of {workdir}', lock)


def open_workdir(
  parts: Parts,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  resume: bool,
  may_change: Collection[str] = (),
) -> None:
  """Make the directory of a run, or find the one to resume.

  Args:
    parts: of the run.
    workdir: of the run.
    intervals: between records, evaluations and checkpoints.
    resume: whether a saved run may be resumed.
    may_change: flags in which it may differ. Default: none.

  Raises:
    ValueError: if another run is there, it cannot be written, or the processes
      were started with different flags.
  """
  description = describe(parts, intervals)
  process_zero.check_equal(
    {
      **description,
      **description.get('options', {}),
      'options': None,  # compared one by one, for the message
      **intervals._asdict(),
      'num_steps': parts.plan.num_steps,
    }
  )
  process_zero.decide(
    f'the directory {workdir}',
    lambda: records.open_workdir(
      workdir,
      description,
      dict(parts.called_with),
      label=parts.label,
      num_steps=parts.plan.num_steps,
      resume=resume,
      may_change=may_change,
    ),
  )


def describe(parts: Parts, intervals: Intervals) -> records.Record:
  """Return what is kept of a run to compare it by.

  With `log_every`, over which the losses of its records are means, and the
  network on which their time is modeled. A resumed run may have another
  `log_every`.
  """
  return {
    **parts.description,
    'log_every': intervals.log_every,
    'network': parts.network._asdict(),
  }


def execute(
  parts: Parts,
  workdir: pathlib.Path,
  intervals: Intervals,
  *,
  start: warm_start.Start | None = None,
  progress: bool = True,
  more_loggers: Sequence[loggers.Factory] = (),
  keep: checkpoints.Retention = KEEP,
  stall_seconds: float = 0,
  survivors: Sequence[int] | None = None,
  age: Callable[[], float] | None = None,
) -> records.Record:
  """Train to the end of a run, from its newest checkpoint if it has one.

  A signal, if the program watches for them, ends it with a checkpoint at the
  next dispatch boundary.

  Args:
    parts: of the run.
    workdir: as `records.open_workdir` made it.
    intervals: between records, evaluations and checkpoints.
    start: the checkpoint that a new run starts from. Default: none.
    progress: whether to show a progress bar, or lines where no terminal is.
    more_loggers: functions of a `loggers.Run`; their loggers get each record.
    keep: the checkpoints that stay.
    stall_seconds: longest time without a step before the process ends; see
      `watchdog`. Default: 0, unlimited.
    survivors: if the number of replicas has changed, the saved ones that stay.
      Default: the first ones.
    age: function that returns the seconds since the program was started, for
      the summary. Default: it has no time of the start.

  Returns:
    The summary, which is also in the directory.

  Raises:
    NonFinite: if the loss is; the last good checkpoint stays, and the directory
      says so.
    CheckpointError: if the newest checkpoint cannot be used, or records before
      it are missing.
    DamagedFile: if another file of the run cannot be used.
    SaveError, WriteError: if a checkpoint or another file cannot be written.
    Stopped: if a signal ended it; the message names the checkpoint.
  """
  intervals.check()
  number = signals.requested()
  if number is not None:
    raise signals.Stopped('nothing was lost', number)
  process_zero.decide('the start', lambda: records.write_failure(workdir, None))
  try:
    with contextlib.ExitStack() as closing:
      clock = Phases(0)
      closing.enter_context(
        watchdog.watching(
          clock, stall_seconds, elsewhere=peers.describe, end=peers.end
        )
      )
      peers.follow(clock)
      return _execute(
        parts,
        workdir,
        intervals,
        start,
        progress,
        more_loggers,
        keep,
        clock,
        survivors,
        age,
        closing,
      )
  except NonFinite as found:
    error = first_cause(
      workdir,
      parts,
      lambda: _restore(parts, start, workdir, survivors)[:2],
      found,
    )
    failure = {'step': error.step, 'failed': str(error)}
    try:
      if processes.is_first():
        records.write_failure(workdir, failure)
    except writing.WriteError as unwritten:  # the lesser of the two
      messages.warn(f'warning: {unwritten}')
    raise error from None


def _execute(
  parts: Parts,
  workdir: pathlib.Path,
  intervals: Intervals,
  begin: warm_start.Start | None,
  progress: bool,
  more_loggers: Sequence[loggers.Factory],
  keep: checkpoints.Retention,
  clock: Phases,
  survivors: Sequence[int] | None,
  age: Callable[[], float] | None,
  closing: contextlib.ExitStack,
) -> records.Record:
  num_steps = parts.plan.num_steps
  state, start, means, history = _restore(parts, begin, workdir, survivors)
  done_before = process_zero.decide(
    'whether the run has finished',
    lambda: _finished_before(workdir, start, num_steps),
  )
  if done_before is not None:
    return done_before
  meter = history.counted(parts.meter)
  position = meter.advance(_position(parts, workdir, start), start)
  log = _open_log(parts, workdir, start, more_loggers, progress)
  # Before an error is printed, so that it is below the progress bar.
  closing.callback(log.close)
  life = _open_life(workdir, start)
  closing.callback(life.close)
  saver = closing.enter_context(Saver(parts, workdir, keep))
  counted_from = None  # the step after which the speed is measured
  started: records.Record = {}
  data_wait = waits.make_share(parts.trainer.waited)
  pending: tuple[int, Any] | None = None

  def take(first: int, metrics: Any) -> None:
    host = jax.tree.map(np.asarray, metrics)
    if not np.isfinite(host['loss']).all():
      saver.wait()  # because the message names the last good checkpoint
    host = check_loss(workdir, parts, first, host)
    means.add(host)
    log.advance(len(host['loss']))

  def note(step: int) -> None:
    clock.enter(clock.name, step)
    life.note(step, clock.seconds())

  def notes_at(state: State, step: int) -> dict[str, Any]:
    nonlocal position
    position = meter.advance(position, step)
    spent = meter.spent(position, state.on_devices.algorithm_state)
    return {
      **means.notes(),
      LEDGER: positions.to_json(position),
      **history.notes(spent),
    }

  def save(state: State, step: int) -> None:
    note(step)  # because the process may be killed before the note below
    clock.enter(phases.SAVE, step)
    saver.save(state, notes_at(state, step))
    note(step)

  def is_due(step: int, every: int) -> bool:
    return step == num_steps or step % every == 0

  def record(state: State, step: int) -> None:
    nonlocal position
    clock.enter(phases.RECORD, step)
    saver.poll()
    position = meter.advance(position, step)
    spent = meter.spent(position, state.on_devices.algorithm_state)
    measures = means.pop()
    found = {
      'step': step,
      'epoch': parts.epoch(spent.gradients),
      **history.record(),
      **measures,
      **_spent(parts, step, spent),
      'data_wait': data_wait(),
      **_lost(parts, state, spent),
    }
    if is_due(step, intervals.eval_every):
      clock.enter(phases.EVALUATE, step)
      tested = _measure(parts, state)
      measures, found = {**measures, **tested}, {**found, **tested}
      clock.enter(phases.RECORD, step)
    saver.measured(step, measures)
    log.write(found)
    note(step)

  directory = workdir / records.CHECKPOINTS
  if warm_start.NAME in parts.description and not process_zero.decide(
    'the first checkpoint', lambda: checkpoints.steps(directory)
  ):
    save(state, start)  # the run that it starts from may be removed
  if not means.is_recorded() and is_due(start, intervals.log_every):
    record(state, start)  # a signal came before its evaluation
  clock.enter(phases.COMPILE, start)
  for first, stop in _dispatches(start, num_steps, intervals):
    state, metrics = parts.trainer.run(state, parts.data, stop - first)
    if counted_from is None:
      jax.block_until_ready(metrics)
      counted_from = stop
      started = {'start_seconds': age()} if age else {}
      closing.enter_context(signals.deferred())  # there is something to save
    # While the devices work on this dispatch, the one before is looked at.
    if pending is not None:
      take(*pending)
    pending = (first, metrics)
    clock.enter(phases.TRAIN, stop)
    number = peers.requested()
    if number is not None or is_due(stop, intervals.log_every):
      take(*pending)
      pending = None
      evaluates = is_due(stop, intervals.eval_every)
      # An evaluation may take longer than a scheduler waits.
      if is_due(stop, intervals.log_every) and not (number and evaluates):
        record(state, stop)
        if is_due(stop, intervals.checkpoint_every):
          save(state, stop)
      number = number or peers.requested()
      if number and not (stop == num_steps and means.is_recorded()):
        clock.enter(phases.SAVE, stop)
        saver.wait()
        if stop != process_zero.decide(
          'the newest checkpoint', lambda: checkpoints.latest_step(directory)
        ):
          save(state, stop)
          saver.wait()
        saved = f'saved step {stop} of {num_steps} in {directory / str(stop)}'
        raise signals.Stopped(saved, number)
      clock.enter(phases.TRAIN, stop)
  clock.enter(phases.SAVE, num_steps)
  saver.wait()  # because a finished run has its last checkpoint
  note(num_steps)
  return process_zero.decide(
    'the summary',
    lambda: _summarize(
      parts, workdir, clock, counted_from, started, life.spent(), history
    ),
  )


def _finished_before(
  workdir: pathlib.Path, start: int, num_steps: int
) -> records.Record | None:
  """The summary of a run that has finished, else None, and it is set aside."""
  done_before = records.finished(workdir, num_steps)
  if done_before is not None and start in (0, num_steps):
    return done_before  # also where its checkpoints were removed since
  if start == 0 and records.read_summary(workdir) is not None:
    messages.warn(
      f'the checkpoints in {workdir / records.CHECKPOINTS} are gone; the run '
      'starts again from step 0'
    )
  records.set_summary_aside(workdir)
  return None


def _open_log(
  parts: Parts,
  workdir: pathlib.Path,
  start: int,
  more_loggers: Sequence[loggers.Factory],
  progress: bool,
) -> loggers.Logger:
  """The loggers of a run, in process 0; one that does nothing in the others."""
  if not processes.is_first():
    return loggers.Logger(lambda record: None)
  run = loggers.Run(
    workdir=workdir,
    label=parts.label,
    flags=records.read_config(workdir)['flags'],
    start=start,
    num_steps=parts.plan.num_steps,
  )
  return logs.open_log(run, more_loggers, progress=progress)


def _open_life(workdir: pathlib.Path, start: int) -> goodput.Life:
  """Start the notes of an attempt in process 0; the others keep none."""
  if processes.is_first():
    return goodput.open_life(workdir, start)
  return goodput.Life(lambda step, seconds: None, dict, lambda: None)


def _spent(parts: Parts, step: int, spent: ledger.Spent) -> records.Record:
  """The learning rate, and what was spent so far."""
  schedule = parts.plan.schedule
  rate = {}
  if schedule is not None:
    # The shortest digits of the float32: 0.02, not 0.019999999552965164.
    rate = {'learning_rate': float(str(np.float32(schedule(step - 1))))}
  return {
    **rate,
    'rounds': spent.rounds,
    'bytes_sent': spent.bytes_sent,
    'bytes_by_tier': spent.bytes_by_tier,
    'modeled_seconds': spent.seconds,
  }


def _lost(parts: Parts, state: State, spent: ledger.Spent) -> records.Record:
  """What was lost so far, of a run in which something may be."""
  found: records.Record = {}
  if spent.gradients_lost or spent.rounds_missed:
    found['gradients_lost'] = spent.gradients_lost
    found['rounds_missed'] = spent.rounds_missed
  if drops_replicas(parts.plan.algorithm):
    registers = state.on_devices.registers
    counts = {
      name: replica_mesh.first(registers[name])
      for name in filter(counts_dropped, registers)
    }
    found['replicas_dropped'] = pr.faults.dropped(counts)
  return found


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
  parts: Parts,
  begin: warm_start.Start | None,
  workdir: pathlib.Path,
  survivors: Sequence[int] | None,
) -> tuple[State, int, Progress, sizes.History]:
  state = warm_start.first_state(parts, begin)
  found = process_zero.decide(
    'the step to resume from', lambda: _find_start(workdir)
  )
  if found is None:
    n = parts.trainer.mesh.num_replicas
    return state, 0, Progress(), sizes.History(((0, n),))
  start, means = found['step'], Progress(found['sums'], found['num_records'])
  state, history = sizes.restore(parts, workdir, state, start, survivors)
  return state, start, means, history


def _find_start(workdir: pathlib.Path) -> records.Record | None:
  """The step to resume from and its progress, in JSON types."""
  found = find_start(workdir)
  return None if found is None else {'step': found[0], **found[1].notes()}


def _position(
  parts: Parts, workdir: pathlib.Path, start: int
) -> ledger.Position:
  """Return the latest saved position of the meter, at `start` or before it."""
  before = parts.meter.init()
  if start == 0:
    return before
  directory = workdir / records.CHECKPOINTS
  saved = process_zero.decide(
    'the position of the ledger',
    lambda: (checkpoints.read_notes(directory, start) or {}).get(LEDGER),
  )
  return positions.from_json(saved, before)


def _measure(parts: Parts, state: State) -> dict[str, float]:
  """The means over the test split, consensus distance, further measures."""
  more = {} if parts.measure is None else dict(parts.measure(state))
  if parts.test is None:
    return more
  means = parts.trainer.evaluate(
    state, parts.test, reestimate=parts.data if parts.reestimate else None
  )
  own = ('consensus_distance',)  # of the parameters, not of the examples
  return {
    **{n if n in own else f'test_{n}': v for n, v in means.items()},
    **more,
  }


def _last_record(workdir: pathlib.Path) -> records.Record:
  found = records.read_last_record(workdir)
  if found is None:
    raise json_files.damaged(workdir / records.METRICS, 'it has no record')
  return found


def _summarize(
  parts: Parts,
  workdir: pathlib.Path,
  clock: Phases,
  counted_from: int | None,
  started: records.Record,
  life: dict[str, float],
  history: sizes.History,
) -> records.Record:
  """Write the summary of a finished run, and return it.

  Args:
    parts: of the run.
    workdir: directory of the run.
    clock: seconds of this process.
    counted_from: step after the first dispatch; None if no step was left.
    started: seconds from the start of the program to the end of the first
      dispatch, by its key; empty if they were not measured.
    life: seconds of the whole run by kind.
    history: its numbers of replicas.
  """
  summary = {
    'label': parts.label,
    **_last_record(workdir),
    **history.summary(),
    'steps_per_second': None,
    'seconds_to_first_steps': None,
    **started,
    'goodput': goodput.goodput(life),
    'life_seconds': life,
    'replicas': parts.placement(),
    'device': parts.trainer.mesh.devices[0].device_kind,
    'cpus': os.cpu_count(),
    'jax': jax.__version__,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'commit': records.commit(),
  }
  if counted_from is not None:
    steps, seconds = parts.plan.num_steps - counted_from, clock.seconds()
    summary['data_wait'] = parts.trainer.waited() / sum(seconds.values())
    summary['seconds_to_first_steps'] = seconds[phases.COMPILE]
    if steps:
      summary['steps_per_second'] = steps / seconds[phases.TRAIN]
  records.write_summary(workdir, summary)
  return summary

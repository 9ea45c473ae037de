"""Write the records of a run to its file and to all loggers."""

from collections.abc import Sequence
import time

from experiments.running.logs import loggers
from experiments.running.logs.console import console
from experiments.running.records import records, writing


def open_log(
  run: loggers.Run,
  more: Sequence[loggers.Factory] = (),
  *,
  progress: bool = True,
) -> loggers.Logger:
  """Return a logger that writes to the run's directory and to all loggers.

  It adds `seconds`, the time spent so far, to each record. A record that cannot
  be written to the directory ends the run. Any other logger is dropped with one
  warning if it raises.

  Args:
    run: run that starts or resumes. Records after its `start` are deleted,
      because the run writes them again.
    more: functions that make additional loggers.
    progress: whether to show progress on stderr.

  Raises:
    WriteError: if the records cannot be written, now or by `write`.
  """
  seconds, file = _records(run)
  clock = time.monotonic()
  others = [loggers.guarded('the progress bar', console)] if progress else []
  others.append(loggers.guarded('TensorBoard', _tensorboard))
  others += [loggers.guarded(f'logger {_name(f)}', f) for f in more]
  made = [factory(run) for factory in others]

  def write(record: records.Record) -> None:
    nonlocal seconds, clock
    now = time.monotonic()
    seconds, clock = seconds + now - clock, now
    timed = {**record, 'seconds': seconds}
    for logger in (file, *made):
      logger.write(timed)

  def advance(num_steps: int) -> None:
    for logger in made:
      logger.advance(num_steps)

  def close() -> None:
    for logger in (*made, file):
      logger.close()

  return loggers.Logger(write, close, advance)


def _records(run: loggers.Run) -> tuple[float, loggers.Logger]:
  """Return the seconds of the kept records, and a logger that appends more."""
  path = run.workdir / records.METRICS
  seconds = 0.0
  # One record at a time, because a long run has more than fit into memory.
  with (
    writing.whole(path) as staging,
    open(staging, 'w', encoding='utf-8') as kept,
  ):
    for record in records.iterate_records(run.workdir):
      if record['step'] <= run.start:
        kept.write(writing.to_json(record, indent=None))
        seconds = record['seconds']
  with writing.reported(path):
    file = open(path, 'ab', buffering=0)  # noqa: SIM115

  def write(record: records.Record) -> None:
    with writing.reported(path):
      writing.append(file, writing.to_json(record, indent=None).encode())

  def close() -> None:
    with writing.reported(path):
      file.close()

  return seconds, loggers.Logger(write, close)


def _tensorboard(run: loggers.Run) -> loggers.Logger:
  # Imported here, because a run does not require tensorboardX.
  from experiments.running.logs import tensorboard_events

  return tensorboard_events.tensorboard(run)


def _name(factory: loggers.Factory) -> str:
  module = getattr(factory, '__module__', '')
  return f'{module}:{getattr(factory, "__name__", repr(factory))}'

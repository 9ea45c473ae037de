"""The log of a run: its file of records, and all that is told them."""

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
  """Writes records to the run's directory, to stderr, and to other loggers.

  To each record it adds the `seconds` spent so far. A record that cannot be
  written to the directory ends the run. All other loggers are dropped with one
  warning when they raise.

  Args:
    run: that starts or is resumed; records past its `start`, of a run that was
      cut off, are dropped, because they will be made again.
    more: loggers besides.
    progress: whether to show the progress on stderr.

  Raises:
    WriteError: if the records cannot be written, also by `write`.
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
  """The seconds that the kept records have, and what adds further ones."""
  path = run.workdir / records.METRICS
  kept = [
    record
    for record in records.read_records(run.workdir)
    if record['step'] <= run.start
  ]
  lines = [writing.to_json(record, indent=None) for record in kept]
  writing.write_text(path, ''.join(lines))
  with writing.reported(path):
    file = open(path, 'ab', buffering=0)  # noqa: SIM115

  def write(record: records.Record) -> None:
    with writing.reported(path):
      writing.append(file, writing.to_json(record, indent=None).encode())

  def close() -> None:
    with writing.reported(path):
      file.close()

  return kept[-1]['seconds'] if kept else 0.0, loggers.Logger(write, close)


def _tensorboard(run: loggers.Run) -> loggers.Logger:
  # Imported here because without tensorboardX, too, there is a run.
  from experiments.running.logs import tensorboard_events

  return tensorboard_events.tensorboard(run)


def _name(factory: loggers.Factory) -> str:
  module = getattr(factory, '__module__', '')
  return f'{module}:{getattr(factory, "__name__", repr(factory))}'

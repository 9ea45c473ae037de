"""Show the progress of a run on stderr: a bar, or a line for each record."""

import sys
import time

import tqdm

from experiments.running.logs import loggers
from experiments.running.records import records, units


def console(run: loggers.Run) -> loggers.Logger:
  """Return a bar on a terminal, else a logger of one line for each record.

  The lines have no carriage returns, because `tail -f` and the logs of
  schedulers do not show these.
  """
  terminal = sys.stderr is not None and sys.stderr.isatty()
  return bar(run) if terminal else lines(run)


def bar(run: loggers.Run) -> loggers.Logger:
  """Return a progress bar that shows the last record."""
  shown = tqdm.tqdm(
    total=run.num_steps, initial=run.start, unit='step', desc=run.label
  )
  kept: dict[str, str] = {}

  def write(record: records.Record) -> None:
    kept['loss'] = f'{record["loss"]:.4f}'
    if 'test_accuracy' in record:  # kept until the next evaluation
      kept['test_accuracy'] = f'{record["test_accuracy"]:.2%}'
    kept['rounds'] = str(record['rounds'])
    shown.set_postfix(kept, refresh=False)

  def advance(num_steps: int) -> None:
    shown.update(num_steps)

  return loggers.Logger(write, shown.close, advance)


def lines(run: loggers.Run) -> loggers.Logger:
  """Return a logger of one line for each record, with the current speed."""
  # None at first, because the time of the first record includes compilation.
  before: tuple[int, float] | None = None

  def write(record: records.Record) -> None:
    nonlocal before
    now, rate = time.monotonic(), None
    if before is not None and now > before[1]:
      rate = (record['step'] - before[0]) / (now - before[1])
    before = record['step'], now
    print(format_line(record, run, rate), file=sys.stderr, flush=True)

  return loggers.Logger(write)


def format_line(
  record: records.Record, run: loggers.Run, rate: float | None = None
) -> str:
  """Return a record as one line of text.

  Args:
    record: record of the run, with or without measures on the test split.
    run: the run.
    rate: speed in steps per second; None if unknown.
  """
  parts = [
    f'step {record["step"]}/{run.num_steps}',
    f'epoch {record["epoch"]:.2f}',
    f'loss {record["loss"]:.4f}',
  ]
  if 'test_loss' in record:
    parts.append(f'test loss {record["test_loss"]:.4f}')
  if 'test_accuracy' in record:
    parts.append(f'test accuracy {record["test_accuracy"]:.2%}')
  if rate is not None:
    parts.append(f'{rate:.4g} steps/s')
  parts.append(f'{units.size(record["bytes_sent"])} sent')
  return f'{run.label}: {", ".join(parts)}'

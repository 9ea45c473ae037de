"""What a run shows of itself on stderr: a progress bar, or a line a record."""

import sys
import time

import tqdm

from experiments.running.logs import loggers
from experiments.running.records import records, units


def console(run: loggers.Run) -> loggers.Logger:
  """A bar on a terminal; in a file or a pipe, one plain line for each record.

  The lines have no carriage returns, so that `tail -f` and the logs of
  schedulers show them.
  """
  terminal = sys.stderr is not None and sys.stderr.isatty()
  return bar(run) if terminal else lines(run)


def bar(run: loggers.Run) -> loggers.Logger:
  """A progress bar with the last record beside it."""
  shown = tqdm.tqdm(
    total=run.num_steps, initial=run.start, unit='step', desc=run.label
  )
  kept: dict[str, str] = {}

  def write(record: records.Record) -> None:
    kept['loss'] = f'{record["loss"]:.4f}'
    if 'test_accuracy' in record:  # stays until the next evaluation
      kept['test_accuracy'] = f'{record["test_accuracy"]:.2%}'
    kept['rounds'] = str(record['rounds'])
    shown.set_postfix(kept, refresh=False)

  def advance(num_steps: int) -> None:
    shown.update(num_steps)

  return loggers.Logger(write, shown.close, advance)


def lines(run: loggers.Run) -> loggers.Logger:
  """One line for each record, with the speed since the one before."""
  before: tuple[int, float] | None = None  # the first one has the compilation

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
  """A record for a person to read, on one line.

  Args:
    record: with the test loss and accuracy where they were measured.
    run: that it is of.
    rate: in steps per second, where it is known.
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

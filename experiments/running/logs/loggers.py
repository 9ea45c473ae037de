"""Loggers: functions that receive each record of a run.

The progress bar, the lines of a batch job, TensorBoard's events and your own
loggers have one form. A function of the run returns a `Logger` when it starts:

  def print_loss(run):
    def write(record):
      print(run.label, record['step'], record['loss'])
    return loggers.Logger(write)

Use it by `train.py --logger=my_module:print_loss` or `runs.execute(...,
more_loggers=[print_loss])`. If a logger raises, it is dropped with a warning
and the run continues.
"""

from collections.abc import Callable, Sequence
import pathlib
from typing import NamedTuple

from experiments.running.flags import dotted
from experiments.running.process import messages
from experiments.running.records import records


class Run(NamedTuple):
  """Facts about a run, known when it starts.

  Attributes:
    workdir: directory of the run.
    label: algorithm and options, such as 'pr_sgd period=4'.
    flags: value of every flag, by name.
    start: number of steps already done; > 0 if the run was resumed.
    num_steps: total number of steps.
  """

  workdir: pathlib.Path
  label: str
  flags: records.Record
  start: int
  num_steps: int


def _ignore_steps(num_steps: int) -> None:
  del num_steps


def _nothing() -> None:
  pass


class Logger(NamedTuple):
  """Functions that receive the records of a run.

  Attributes:
    write: called with each record, a dictionary of JSON types that it must not
      change: `step`, `epoch`, `loss`, `rounds`, `bytes_sent` and more; after
      an evaluation also `test_loss` and `test_accuracy`.
    close: called once at the end of the run, even if the run failed.
    advance: called more often than `write`, with the number of steps since the
      previous call.
  """

  write: Callable[[records.Record], None]
  close: Callable[[], None] = _nothing
  advance: Callable[[int], None] = _ignore_steps


Factory = Callable[[Run], Logger]
_LONGEST = 300  # characters of an error in a warning


def load(names: Sequence[str]) -> list[Factory]:
  """Return the functions that --logger names.

  Args:
    names: values such as 'my_module:my_logger', imported by `dotted.load`.

  Raises:
    ValueError: if a module or function does not exist.

  Example:
    >>> load(['experiments.running.logs.console:lines'])[0].__name__
    'lines'
  """
  return [_load(name) for name in names]


def _load(name: str) -> Factory:
  factory = dotted.load('logger', name)
  if not callable(factory):
    raise ValueError(f'--logger={name} must be a function, got {factory!r}')
  return factory


def guarded(name: str, factory: Factory) -> Factory:
  """Return a logger that is dropped with one warning if it raises.

  Args:
    name: name of the logger, for the warning.
    factory: function that makes the logger.
  """

  def make(run: Run) -> Logger:
    logger: Logger | None = None

    def drop(error: Exception) -> None:
      nonlocal logger
      logger = None
      what = ' '.join(str(error).split())[:_LONGEST]
      messages.warn(
        f'warning: {name} failed and is dropped, the run continues '
        f'({type(error).__name__}: {what})'
      )

    # Every Exception, because a user's code may raise any.
    def attempt(call: Callable[[Logger], object]) -> None:
      if logger is not None:
        try:
          call(logger)
        except Exception as error:
          drop(error)

    def close() -> None:
      nonlocal logger
      attempt(lambda kept: kept.close())
      logger = None

    try:
      logger = _checked(factory(run))
    except Exception as error:
      drop(error)
    return Logger(
      lambda record: attempt(lambda kept: kept.write(dict(record))),
      close,
      lambda num_steps: attempt(lambda kept: kept.advance(num_steps)),
    )

  return make


def _checked(made: object) -> Logger:
  if not isinstance(made, Logger):
    raise TypeError(f'expected a loggers.Logger, got {made!r}')
  return made

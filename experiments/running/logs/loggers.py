"""A logger: what is told each record of a run.

The progress bar, the lines of a batch job, TensorBoard's events and the loggers
of users are all one pair of functions, made when the run starts:

  def print_loss(run):
    def write(record):
      print(run.label, record['step'], record['loss'])
    return loggers.Logger(write)

`train.py --logger=my_module:print_loss` uses it, and so does `runs.execute(...,
more_loggers=[print_loss])`. A logger that raises is dropped with a warning, and
the run continues.
"""

from collections.abc import Callable, Sequence
import pathlib
from typing import NamedTuple

from experiments.running.flags import dotted
from experiments.running.process import messages
from experiments.running.records import records


class Run(NamedTuple):
  """What a logger may know of a run when it starts.

  Attributes:
    workdir: its directory.
    label: its algorithm with the options.
    flags: all flags, by name.
    start: the step that the run starts from, > 0 if it was resumed.
    num_steps: the step that it ends with.
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
  """What gets the records of a run.

  Attributes:
    write: called with each record, a dictionary of JSON types that it must not
      change: `step`, `epoch`, `loss`, `rounds`, `bytes_sent`, ..., and where
      the model was evaluated `test_loss` and `test_accuracy`.
    close: called once, at the end of the run, also of one that failed.
    advance: called with the number of steps done since it was called last, more
      often than `write`.
  """

  write: Callable[[records.Record], None]
  close: Callable[[], None] = _nothing
  advance: Callable[[int], None] = _ignore_steps


Factory = Callable[[Run], Logger]
_LONGEST = 300  # letters of an error in a warning


def load(names: Sequence[str]) -> list[Factory]:
  """The factories that --logger names, from modules found as Python does.

  Args:
    names: such as 'my_module:my_logger', found as `dotted.load` does.

  Raises:
    ValueError: if there is no such module or function.

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
  """A logger that is dropped with one warning when it raises.

  Args:
    name: of the logger, for the warning.
    factory: of the logger to guard.
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

    # A logger is anybody's code, which may raise anything.
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

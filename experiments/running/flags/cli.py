"""Flags, one-line errors and exit codes that all programs share.

A program exits with a code of `exit_codes`, on failure after one line on
stderr. Lost output does not end a program: a closed pipe is silent, and a full
disk that holds stdout causes a line on stderr.
"""

from collections.abc import Callable, Iterator
import contextlib
import inspect
import pathlib
import sys
from typing import NoReturn

from absl import app, flags, logging
import jax

from experiments.running.flags import help_pages
from experiments.running.process import (
  exit_codes,
  imports,
  interrupts,
  messages,
  process_zero,
  streams,
)
from experiments.running.records import records, writing
from prsgd_jax.engine import processes
from prsgd_jax.engine.checkpoints import SaveError

# Largest number of simulated devices.
MOST_DEVICES = 1024

flags.DEFINE_string(
  'data_dir',
  None,
  'Directory of the datasets, in TFDS layout. Default: $TFDS_DATA_DIR, or '
  '~/tensorflow_datasets.',
)
flags.DEFINE_string(
  'workdir',
  None,
  'Directory to write runs to. Required by compare.py and sweep.py. Default: '
  'runs/<time>-<run> in train.py, runs/reproduce in reproduce, and none in '
  'costs.py --plan, which then saves no pilots.',
)


def fail(error: object, code: int = exit_codes.ERROR) -> NoReturn:
  """End the program with one line on stderr and an exit code."""
  messages.warn(f'error: {error}')
  sys.exit(code)


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
  """End the program with one line, no traceback, on errors of these kinds."""
  try:
    yield
  except kinds as error:
    fail(error)


@contextlib.contextmanager
def one_line_write_errors(workdir: pathlib.Path, again: str) -> Iterator[None]:
  """End the program with one line if a run cannot write its files.

  Args:
    workdir: directory of the run.
    again: flags to add to the command to resume the run; may be empty.
  """
  try:
    yield
  except (OSError, SaveError) as error:
    fail(writing.explain_stopped(error, workdir / records.CHECKPOINTS, again))


def check_output() -> None:
  """End the program with an error if its output could not be written."""
  if lost := streams.lost_output():
    fail(f'stdout cannot be written ({lost.strerror})')


def run(main: Callable[..., None]) -> None:
  """Parse the flags and run `main`; print one line for an invalid flag.

  Args:
    main: function whose parameters are the positional arguments of the
      program; `*paths` accepts any number of them.
  """
  parameters = inspect.signature(main).parameters.values()
  names = [p.name.upper() for p in parameters]
  any_number = any(p.kind == p.VAR_POSITIONAL for p in parameters)

  def parse(argv: list[str]) -> list[str]:
    try:
      answer = help_pages.answer(argv, main)
      if answer is not None:
        print(answer)
        sys.exit(0)
      rest = flags.FLAGS(argv)
    except flags.CantOpenFlagFileError as error:
      path = str(error).rsplit(': ', 1)[-1]
      fail(help_pages.explain_missing_preset(path))
    except UnicodeDecodeError:
      fail('--flagfile is not text; give a file of experiments/presets')
    except flags.UnrecognizedFlagError as error:
      said = help_pages.explain_unknown_flag(error.flagname, argv)
      fail(f'{said}; see --help')
    except (flags.Error, ValueError) as error:
      fail(f'{error}; see --help')
    if len(rest) != 1 + len(names) and not any_number:
      wanted = ' '.join((*names, '--flag=value ...'))
      got = ' '.join(rest[1:]) or 'no name'
      fail(f'expected {wanted}, got {got!r}; see --help')
    return rest

  def call(argv: list[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    interrupts.restore()
    with process_zero.leaving():
      try:
        main(*argv[1:])
      except KeyboardInterrupt:
        fail('interrupted', exit_codes.INTERRUPTED)
      except OSError as error:
        fail(writing.explain(error))
    if lost := streams.lost_output():
      messages.warn(f'warning: stdout cannot be written ({lost.strerror})')

  imports.end()
  streams.install()
  app.run(call, flags_parser=parse)


def make_fake_devices(num_devices: int | None) -> None:
  """Set the number of simulated CPU devices; accelerators are not affected.

  Call this before JAX initializes its devices, and after `processes.join`.

  Args:
    num_devices: number of devices, which the processes of the run share
      equally; out of 1 to `MOST_DEVICES` or None, it is ignored.

  Raises:
    ValueError: if the processes cannot share the devices equally.
  """
  # A number that does not divide the replicas is refused later, in one line.
  if num_devices is not None and 0 < num_devices <= MOST_DEVICES:
    own, rest = divmod(num_devices, processes.count())
    if rest:
      raise ValueError(
        f'--num_devices must be a multiple of the {processes.count()} '
        f'processes, got {num_devices}'
      )
    jax.config.update('jax_num_cpu_devices', own)

"""What the binaries share: flags read, errors in one line, exit codes.

A program ends with 0 when its work is done, with 1 and one line on stderr when
it is not, and with 130 when Ctrl-C interrupted it. Lost output ends none: a
closed pipe is silent, and a full disk below stdout is a line on stderr.
"""

from collections.abc import Callable, Iterator
import contextlib
import inspect
import pathlib
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
import jax

from experiments.running.flags import help_pages
from experiments.running.process import interrupts, messages, streams
from experiments.running.records import records, writing
from prsgd_jax.engine.checkpoints import SaveError

# Fake devices that are made at most.
MOST_DEVICES = 1024

flags.DEFINE_string(
  'data_dir',
  None,
  'Where TFDS directories are [TFDS_DATA_DIR or ~/tensorflow_datasets].',
)
flags.DEFINE_string(
  'workdir', None, 'The directory to write; train.py has [runs/<time>-<what>].'
)


def fail(error: object, code: int = 1) -> NoReturn:
  """Ends the program with one line on stderr and an exit code."""
  messages.warn(f'error: {error}')
  sys.exit(code)


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Errors of these kinds are the user's to mend: no traceback."""
  try:
    yield
  except kinds as error:
    fail(error)


@contextlib.contextmanager
def one_line_write_errors(workdir: pathlib.Path, again: str) -> Iterator[None]:
  """A failed write ends a run with what is left of it and what to type.

  Args:
    workdir: of the run.
    again: the flags that the same command needs to resume it, or nothing.
  """
  try:
    yield
  except (OSError, SaveError) as error:
    fail(writing.explain_stopped(error, workdir / records.CHECKPOINTS, again))


def check_output() -> None:
  """Ends a program whose output is its work, if that could not be written."""
  if lost := streams.lost_output():
    fail(f'stdout cannot be written ({lost.strerror})')


def run(main: Callable[..., None]) -> None:
  """Parses the flags and runs `main`; a wrong flag or file is one line.

  The parameters of `main` are the arguments that are no flags; `*paths` are any
  number of them.
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
      fail('--flagfile is no text; give one of experiments/presets')
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
    try:
      main(*argv[1:])
    except KeyboardInterrupt:
      fail('interrupted', interrupts.CODE)
    except OSError as error:
      fail(writing.explain(error))
    if lost := streams.lost_output():
      messages.warn(f'warning: stdout cannot be written ({lost.strerror})')

  streams.install()
  sys.unraisablehook = _without_stragglers
  app.run(call, flags_parser=parse)


def _without_stragglers(unraisable: Any) -> None:
  """Shows what cannot be raised, but for the rest of a checkpoint that failed.

  When one array cannot be written orbax closes its event loop, and each array
  that tensorstore's threads still finish prints a traceback that says so.
  """
  if 'Event loop is closed' not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)


def make_fake_devices(num_devices: int | None) -> None:
  """Asks for that many CPU devices; those of another kind are what they are.

  To be called before JAX looks at its devices.
  """
  # More than a run has replicas are refused later, in one line.
  if num_devices is not None and 0 < num_devices <= MOST_DEVICES:
    jax.config.update('jax_num_cpu_devices', num_devices)

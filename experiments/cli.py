"""What the binaries share: flags read, errors in one line."""

from collections.abc import Callable, Iterator
import contextlib
import inspect
import os
import pathlib
import sys
from typing import NoReturn

from absl import app, flags, logging
import jax

flags.DEFINE_string(
  'data_dir',
  None,
  'Where TFDS directories are [TFDS_DATA_DIR or ~/tensorflow_datasets].',
)
flags.DEFINE_string(
  'workdir', None, 'The directory to write; train.py has [runs/<time>-<what>].'
)


def warn(message: object) -> None:
  """Prints one line on stderr, with the program's name."""
  program = os.path.basename(sys.argv[0])
  line = ' '.join(str(message).split())
  print(f'{program}: {line}', file=sys.stderr, flush=True)


def fail(error: object) -> NoReturn:
  """Ends the program with one line on stderr and exit code 1."""
  warn(f'error: {error}')
  sys.exit(1)


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Errors of these kinds are the user's to mend: no traceback."""
  try:
    yield
  except kinds as error:
    fail(error)


def run(main: Callable[..., None]) -> None:
  """Parses the flags and runs `main`; a wrong flag is one line.

  The parameters of `main` are the arguments that are no flags; `*paths` are any
  number of them.
  """
  parameters = inspect.signature(main).parameters.values()
  names = [p.name.upper() for p in parameters]
  any_number = any(p.kind == p.VAR_POSITIONAL for p in parameters)

  def parse(argv: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(argv)
    except flags.CantOpenFlagFileError as error:
      path = str(error).rsplit(': ', 1)[-1]
      fail(f'there is no preset {path}; there are {_presets()}')
    except flags.Error as error:
      fail(f'{error}; see --help')
    if len(rest) != 1 + len(names) and not any_number:
      wanted = ' '.join((*names, '--flag=value ...'))
      got = ' '.join(rest[1:]) or 'no name'
      fail(f'expected {wanted}, got {got!r}; see --help')
    return rest

  def call(argv: list[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    try:
      main(*argv[1:])
    except KeyboardInterrupt:
      fail('interrupted')

  app.run(call, flags_parser=parse)


def _presets() -> str:
  here = pathlib.Path(__file__).parent / 'presets'
  paths = sorted(here.glob('*.flags'))
  return ', '.join(os.path.relpath(path) for path in paths)


def make_fake_devices(num_devices: int | None) -> None:
  """Asks for that many CPU devices; those of another kind are what they are.

  To be called before JAX looks at its devices.
  """
  if num_devices is not None and num_devices > 0:
    jax.config.update('jax_num_cpu_devices', num_devices)

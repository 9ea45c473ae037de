"""What the binaries share: flags read, errors in one line."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import sys
from typing import NoReturn

from absl import app, flags, logging
import jax


def fail(error: object) -> NoReturn:
  """Ends the program with one line on stderr and exit code 1."""
  program = os.path.basename(sys.argv[0])
  line = ' '.join(str(error).split())
  print(f'{program}: error: {line}', file=sys.stderr)
  sys.exit(1)


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Errors of these kinds are the user's to mend: no traceback."""
  try:
    yield
  except kinds as error:
    fail(error)


def run(main: Callable[[], None]) -> None:
  """Parses the flags and runs `main`; a wrong flag is one line."""

  def parse(argv: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(argv)
    except flags.CantOpenFlagFileError as error:
      path = str(error).rsplit(': ', 1)[-1]
      fail(f'there is no preset {path}; there are {_presets()}')
    except flags.Error as error:
      fail(error)
    if len(rest) > 1:
      fail(f'expected flags only, got {rest[1]!r}; write --name=value')
    return rest

  def call(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    main()

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

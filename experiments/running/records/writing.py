"""Files that are written whole or not at all, and JSON that is JSON."""

from collections.abc import Iterator
import contextlib
import errno
import io
import json
import math
import os
import pathlib
from typing import Any

from prsgd_jax import system_errors
from prsgd_jax.engine import checkpoints

PARTIAL = '.partial'
# What to do about the system's errors; a last resort for the rest.
_REMEDIES = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some space',
  errno.EACCES: 'make it writable',
  errno.EPERM: 'make it writable',
  errno.EROFS: 'make it writable',
}
_REMEDY = 'mend that'


class WriteError(OSError):
  """A file cannot be written; the message names it and says why."""

  def __str__(self) -> str:
    return f'{self.filename} cannot be written ({self.strerror})'


@contextlib.contextmanager
def reported(path: pathlib.Path) -> Iterator[None]:
  """Errors of writing a file name it, with the words of the system.

  Args:
    path: the file or directory that is being written.

  Raises:
    WriteError: instead of any other OSError.
  """
  try:
    yield
  except WriteError:
    raise
  except OSError as error:
    number = error.errno or errno.EIO
    why = system_errors.reason(error)
    raise WriteError(number, why, str(path)) from error


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Has a file written beside, then puts it into place by one rename.

  A link keeps pointing to the file that is replaced. What is no file, such as
  /dev/stdout, is written directly.

  Args:
    path: of the file; its directory exists.

  Yields:
    The path to write to.

  Raises:
    WriteError: if it cannot be written; what was there before stays.

  Example:

    with whole(pathlib.Path('table.csv')) as staging:
      staging.write_text('a,b\\n')
  """
  with reported(path):
    target = path.resolve()
    if target.exists() and not target.is_file():
      yield target
      return
    staging = target.with_name(target.name + PARTIAL)
    if staging.is_symlink() or (staging.exists() and not staging.is_file()):
      # To open a pipe is to wait for its reader; a link leads elsewhere.
      with reported(staging):
        staging.unlink()
    try:
      yield staging
      _fsync(staging)
      os.replace(staging, target)
    except BaseException:
      with contextlib.suppress(OSError):
        staging.unlink(missing_ok=True)
      raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, in UTF-8, whole or not at all.

  Raises:
    WriteError: if it cannot be written; what was there before stays.
  """
  with whole(path) as staging:
    staging.write_text(text, encoding='utf-8')


def append(file: io.FileIO, data: bytes) -> None:
  """Writes all bytes to an unbuffered file, which may take them in parts."""
  rest = memoryview(data)
  while rest:
    rest = rest[file.write(rest) :]


def sync(path: pathlib.Path) -> None:
  """Waits until a file is on the disk.

  Raises:
    WriteError: if it cannot be written there.
  """
  with reported(path):
    _fsync(path)


def _fsync(path: pathlib.Path) -> None:
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


def to_json(value: Any, *, indent: int | None = 1) -> str:
  """JSON with a newline at its end; what is no number becomes null.

  NaN and the infinities are not JSON: most programs refuse a file that has
  them. The readers of records take null for NaN.

  Example:

    >>> to_json({'loss': math.nan, 'step': 3}, indent=None)
    '{"loss": null, "step": 3}\\n'
  """
  return json.dumps(_finite(value), indent=indent, allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: _finite(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(inner) for inner in value]
  return value


def with_nan(value: Any) -> Any:
  """The inverse of `to_json`, after `json.loads`: null is NaN again.

  Example:

    >>> with_nan({'loss': None, 'by_tier': [1.0, None]})
    {'loss': nan, 'by_tier': [1.0, nan]}
  """
  if value is None:
    return math.nan
  if isinstance(value, dict):
    return {name: with_nan(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return [with_nan(inner) for inner in value]
  return value


def explain(error: OSError | checkpoints.SaveError) -> str:
  """One line for an error of a file: which, and why.

  Example:

    >>> explain(FileNotFoundError(errno.ENOENT, 'x', 'runs/a'))
    'runs/a: No such file or directory'
  """
  if isinstance(error, WriteError | checkpoints.SaveError):
    return str(error)
  why = system_errors.reason(error)
  return why if error.filename is None else f'{error.filename}: {why}'


def explain_stopped(
  error: OSError | checkpoints.SaveError, directory: pathlib.Path, again: str
) -> str:
  """One line for a run that a failed write ended: what is left, what to type.

  Args:
    error: as caught.
    directory: of the checkpoints of the run.
    again: the flags that the same command needs besides, or nothing.
  """
  newest = None
  with contextlib.suppress(OSError):
    newest = checkpoints.latest_step(directory)
  left = (
    'there is no checkpoint yet'
    if newest is None
    else f'the checkpoint of step {newest} is whole'
  )
  remedy = _REMEDIES.get(system_errors.error_number(error) or 0, _REMEDY)
  command = 'run the same command' + (f' with {again}' if again else ' again')
  return f'{explain(error)}; {left}; {remedy} and {command}'

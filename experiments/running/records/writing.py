"""Write files atomically, and JSON without NaN."""

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
# System error -> remedy to suggest; `_REMEDY` for all other errors.
_REMEDIES = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some space',
  errno.EACCES: 'make it writable',
  errno.EPERM: 'make it writable',
  errno.EROFS: 'make it writable',
}
_REMEDY = 'fix that'


class WriteError(OSError):
  """A file cannot be written; the message names it and the reason."""

  def __str__(self) -> str:
    return f'{self.filename} cannot be written ({self.strerror})'


@contextlib.contextmanager
def reported(path: pathlib.Path) -> Iterator[None]:
  """Turn an OSError of the block into a WriteError that names the file.

  Args:
    path: file or directory that the block writes.

  Raises:
    WriteError: in place of any OSError.
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
  """Yield a temporary path, and rename it to the target after the block.

  If `path` is a link, the file it points to is replaced. A device, such as
  /dev/stdout, is written directly.

  Args:
    path: target file, in an existing directory.

  Yields:
    The path to write to.

  Raises:
    WriteError: if it cannot be written; an existing target is not changed.

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
      # Because opening a pipe waits for its reader, and a link leads elsewhere.
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
  """Write a text file atomically, in UTF-8.

  Args:
    path: target file, in an existing directory.
    text: content of the file.

  Raises:
    WriteError: if it cannot be written; an existing file is not changed.
  """
  with whole(path) as staging:
    staging.write_text(text, encoding='utf-8')


def append(file: io.FileIO, data: bytes) -> None:
  """Write all bytes to an unbuffered file, which may accept them in parts."""
  rest = memoryview(data)
  while rest:
    rest = rest[file.write(rest) :]


def sync(path: pathlib.Path) -> None:
  """Wait until a file is on disk.

  Raises:
    WriteError: if it cannot be written to disk.
  """
  with reported(path):
    _fsync(path)


def _fsync(path: pathlib.Path) -> None:
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


def to_json(value: Any, *, indent: int | None = 1) -> str:
  """Return JSON with a final newline, and null for NaN and infinities.

  NaN and infinities are not JSON, and most programs refuse a file with them.
  The readers of records read null as NaN.

  Args:
    value: value to convert.
    indent: number of spaces per level; None for one line.

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
  """Return a value from JSON with NaN in place of null.

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
  """Return the file and the reason of an error, as one line.

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
  """Return one line on a failed write: the newest checkpoint and a remedy.

  Args:
    error: error of the write.
    directory: directory of the checkpoints.
    again: flags to add to the command to resume the run; may be empty.
  """
  newest = None
  with contextlib.suppress(OSError):
    newest = checkpoints.latest_step(directory)
  left = (
    'the run has no checkpoint yet'
    if newest is None
    else f'the checkpoint of step {newest} is complete'
  )
  remedy = _REMEDIES.get(system_errors.error_number(error) or 0, _REMEDY)
  command = 'repeat the command' + (f' with {again}' if again else '')
  return f'{explain(error)}; {left}; {remedy} and {command}'

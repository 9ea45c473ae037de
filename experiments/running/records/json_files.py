"""Read JSON files that may be damaged, and check their form.

A form states the names that an object requires and the kind of each value. A
file that has another form or cannot be read raises `DamagedFile`, whose one
line states what was expected and what was found.

Example:
  >>> check_step = object_of({'step': count})
  >>> check_step({'step': 4})
  >>> check_step({'step': '4'})
  'step: expected an integer >= 0, got "4"'
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import pathlib
import re
import stat
from typing import IO, Any

# Size of a file or a line, limited because it must fit into memory.
MAX_BYTES = 2**26
# Nesting of lists and objects, limited because Python's recursion is.
MAX_DEPTH = 32
_FIRST_TAIL = 2**12  # bytes; a record is a few hundred
# Names to replace, because runs of version 0.1 have them in British spelling.
_RENAMED = re.compile(
  r'"(?:modelled_seconds|neighbour)"|'  # codespell:ignore neighbour
  r'\brandom_neighbour\b|\bindependent_neighbours\b'
)

# Returns what is wrong with a value, None if nothing is.
Check = Callable[[Any], str | None]


class DamagedFile(ValueError):
  """An unusable file; the message names it, the reason and a remedy."""


def text(value: Any) -> str | None:
  """Accept a string that is not empty."""
  if isinstance(value, str) and value:
    return None
  return _expected('text', value)


def string(value: Any) -> str | None:
  """Accept a string."""
  return None if isinstance(value, str) else _expected('text', value)


def integer(value: Any) -> str | None:
  """Accept an integer, but no bool."""
  if isinstance(value, int) and not isinstance(value, bool):
    return None
  return _expected('an integer', value)


def count(value: Any) -> str | None:
  """Accept an integer in 0..2^63 - 1."""
  if integer(value) is None and 0 <= value < 2**63:
    return None
  return _expected('an integer >= 0', value)


def number(value: Any) -> str | None:
  """Accept a number in the range of a float, or null, which stands for NaN."""
  if value is None or isinstance(value, float):
    return None
  if integer(value) is None and abs(value) < 2**1023:
    return None
  return _expected('a number', value)


def anything(value: Any) -> str | None:
  """Accept every value."""
  del value
  return None


def optional(check: Check) -> Check:
  """Accept null and the values that `check` accepts."""
  return lambda value: None if value is None else check(value)


def one_of(*names: str) -> Check:
  """Accept only the given strings."""

  def check(value: Any) -> str | None:
    if isinstance(value, str) and value in names:
      return None
    return _expected(f'one of {", ".join(names)}', value)

  return check


def list_of(check_item: Check) -> Check:
  """Accept a list if `check_item` accepts each of its items."""

  def check(value: Any) -> str | None:
    if not isinstance(value, list):
      return _expected('a list', value)
    for i, item in enumerate(value):
      if reason := check_item(item):
        return f'[{i}]: {reason}'
    return None

  return check


def values_of(check_value: Check) -> Check:
  """Accept an object with any names if `check_value` accepts each value."""

  def check(value: Any) -> str | None:
    if not isinstance(value, dict):
      return _expected('an object', value)
    return object_of(dict.fromkeys(value, check_value))(value)

  return check


def object_of(
  required: Mapping[str, Check], extra: Mapping[str, Check] | None = None
) -> Check:
  """Accept an object with the required names; it may have more names.

  Args:
    required: required name -> check of its value.
    extra: optional name -> check of its value.
  """

  def check(value: Any) -> str | None:
    if not isinstance(value, dict):
      return _expected('an object', value)
    if missing := [name for name in required if name not in value]:
      return f'it has no {", ".join(missing)}'
    for name, check_value in {**required, **(extra or {})}.items():
      if name in value and (reason := check_value(value[name])):
        return f'{name}{"" if reason.startswith("[") else ": "}{reason}'
    return None

  return check


def read(path: pathlib.Path, check: Check) -> Any:
  """Return the checked value in a file, None if the file does not exist.

  Raises:
    DamagedFile: if it cannot be read or has another form.
  """
  data = read_bytes(path)
  return None if data is None else parse(data, check, path)


def read_bytes(path: pathlib.Path) -> bytes | None:
  """Return the content of a file, None if the file does not exist.

  Raises:
    DamagedFile: if it cannot be read, or has more than `MAX_BYTES`.
  """
  with _opened(path) as file:
    data = None if file is None else file.read(MAX_BYTES + 1)
  if data is not None and len(data) > MAX_BYTES:
    raise damaged(path, f'it has more than {MAX_BYTES} bytes')
  return data


def read_lines(path: pathlib.Path, check: Check) -> Iterator[Any]:
  """Yield the checked values of a file with one value per line.

  A last line without a newline is omitted, because its writer was interrupted.
  A missing file has no lines.

  Raises:
    DamagedFile: if it cannot be read, or a line has another form.
  """
  with _opened(path) as file:
    lines = () if file is None else _whole_lines(file)
    for i, line in enumerate(lines, 1):
      yield parse(line, check, path, f'line {i}: ')


def read_last_line(path: pathlib.Path, check: Check) -> Any:
  """Return the last value of `read_lines`, or None; read only the last line.

  Raises:
    DamagedFile: if it cannot be read, or the line has another form.
  """
  with _opened(path) as file:
    if file is None:
      return None
    end, size = file.seek(0, os.SEEK_END), _FIRST_TAIL
    while True:
      start = max(0, end - size)
      file.seek(start)
      # Without the last piece, which has no newline, and without the first
      # piece unless the file starts with it, because it is a part of a line.
      lines = file.read(end - start).split(b'\n')[min(start, 1) : -1]
      if lines:
        return parse(lines[-1], check, path, 'last line: ')
      if start == 0:
        return None
      if size > MAX_BYTES:
        raise damaged(path, f'a line has more than {MAX_BYTES} bytes')
      size *= 16


def _renamed(found: re.Match[str]) -> str:
  return found[0].replace('modelled', 'modeled').replace('bour', 'bor')


def parse(
  data: bytes, check: Check, path: pathlib.Path, place: str = ''
) -> Any:
  """Return the checked value of JSON text.

  Args:
    data: JSON in UTF-8.
    check: check of the value.
    path: file of the data, for the message.
    place: place in the file, for the message, such as 'line 2: '.

  Raises:
    DamagedFile: if the data are not JSON, or `check` refuses the value.
  """
  if len(data) > MAX_BYTES:
    raise damaged(path, f'{place}it has more than {MAX_BYTES} bytes')
  try:
    written = _RENAMED.sub(_renamed, data.decode())
    value = json.loads(written)
    if '\\u' in written:  # because half a surrogate pair cannot be printed
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError as error:
    raise damaged(path, f'{place}it is nested too deeply') from error
  except ValueError as error:
    raise damaged(path, f'{place}{error}') from error
  if written.count('[') + written.count('{') > MAX_DEPTH and _is_deep(value):
    raise damaged(path, f'{place}it is nested too deeply')
  if reason := check(value):
    raise damaged(path, place + reason)
  return value


def damaged(path: pathlib.Path, reason: str) -> DamagedFile:
  """Return the error for a file whose content is wrong."""
  return DamagedFile(
    f'{path} is damaged ({reason}); restore it from a copy, or repeat the run '
    'in another directory'
  )


def remove(path: pathlib.Path) -> None:
  """Remove a file if it exists.

  Raises:
    DamagedFile: if it cannot be removed, for example because it is a directory.
  """
  try:
    path.unlink(missing_ok=True)
  except OSError as error:
    raise DamagedFile(
      f'{path} cannot be removed ({error.strerror}); move it away'
    ) from error


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[IO[bytes] | None]:
  """Yield an open regular file, None if it does not exist.

  The file is opened with O_NONBLOCK, because opening a named pipe would
  otherwise wait for its writer.
  """
  try:
    with open(path, 'rb', opener=_without_waiting) as file:
      if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise DamagedFile(f'{path} is not a regular file; move it away')
      yield file
  except (FileNotFoundError, NotADirectoryError):
    yield None
  except IsADirectoryError as error:
    raise DamagedFile(f'{path} is a directory; move it away') from error
  except OSError as error:
    raise DamagedFile(
      f'{path} cannot be read ({error.strerror}); make it readable'
    ) from error


def _without_waiting(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK)


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
  while line := file.readline(MAX_BYTES + 1):
    if line.endswith(b'\n') or len(line) > MAX_BYTES:
      yield line.removesuffix(b'\n')


def _is_deep(value: Any) -> bool:
  """Whether lists and objects are nested more deeply than `MAX_DEPTH`."""
  level: list[Any] = [[value]]
  for _ in range(MAX_DEPTH):
    inner = [v.values() if isinstance(v, dict) else v for v in level]
    level = [
      v for values in inner for v in values if isinstance(v, dict | list)
    ]
    if not level:
      return False
  return True


def _expected(what: str, value: Any) -> str:
  return f'expected {what}, got {_shown(value)}'


def _shown(value: Any) -> str:
  shown = json.dumps(value)
  return shown if len(shown) <= 60 else shown[:57] + '...'

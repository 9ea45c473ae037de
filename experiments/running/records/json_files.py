"""JSON files that may be damaged, read as checked values.

The reader of a file states its form: the names that an object must hold and
the kind of each value. A file of another form, or one that cannot be read, is a
`DamagedFile` with one line on what was expected and what came.

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

# Of a file or a line. A longer one is not ours, and it must fit into memory.
MAX_BYTES = 2**26
# Of lists and objects in each other: below what Python can recurse into.
MAX_DEPTH = 32
_FIRST_TAIL = 2**12  # bytes; a record is a few hundred
# Version 0.1 had names in British spelling. Its runs are read by the names of
# now.
_RENAMED = re.compile(
  r'"(?:modelled_seconds|neighbour)"|\brandom_neighbour\b|'
  r'\bindependent_neighbours\b'
)

# Returns what is wrong with a value, None if nothing is.
Check = Callable[[Any], str | None]


class DamagedFile(ValueError):
  """A file cannot be used; one line names it, the reason and what to do."""


def text(value: Any) -> str | None:
  """Accepts a string that is not empty."""
  if isinstance(value, str) and value:
    return None
  return _expected('text', value)


def string(value: Any) -> str | None:
  """Accepts a string."""
  return None if isinstance(value, str) else _expected('text', value)


def integer(value: Any) -> str | None:
  """Accepts an integer; `True` is none."""
  if isinstance(value, int) and not isinstance(value, bool):
    return None
  return _expected('an integer', value)


def count(value: Any) -> str | None:
  """Accepts an integer in 0..2^63 - 1."""
  if integer(value) is None and 0 <= value < 2**63:
    return None
  return _expected('an integer >= 0', value)


def number(value: Any) -> str | None:
  """Accepts what is a float, null among them, which stands for NaN.

  An integer of 400 digits is none.
  """
  if value is None or isinstance(value, float):
    return None
  if integer(value) is None and abs(value) < 2**1023:
    return None
  return _expected('a number', value)


def anything(value: Any) -> str | None:
  """Accepts every value."""
  del value
  return None


def optional(check: Check) -> Check:
  """Accepts null, and what `check` accepts."""
  return lambda value: None if value is None else check(value)


def one_of(*names: str) -> Check:
  """Accepts some strings only."""

  def check(value: Any) -> str | None:
    if isinstance(value, str) and value in names:
      return None
    return _expected(f'one of {", ".join(names)}', value)

  return check


def list_of(check_item: Check) -> Check:
  """Accepts a list all of whose items `check_item` accepts."""

  def check(value: Any) -> str | None:
    if not isinstance(value, list):
      return _expected('a list', value)
    for i, item in enumerate(value):
      if reason := check_item(item):
        return f'[{i}]: {reason}'
    return None

  return check


def values_of(check_value: Check) -> Check:
  """Accepts an object with any names, all of whose values are accepted."""

  def check(value: Any) -> str | None:
    if not isinstance(value, dict):
      return _expected('an object', value)
    return object_of(dict.fromkeys(value, check_value))(value)

  return check


def object_of(
  required: Mapping[str, Check], extra: Mapping[str, Check] | None = None
) -> Check:
  """Accepts an object with some names; it may have others besides.

  Args:
    required: the check of each name that must be there.
    extra: the check of each name that may be missing.
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
  """The checked value in a file, None where there is no such file.

  Raises:
    DamagedFile: if it cannot be read or has another form.
  """
  data = read_bytes(path)
  return None if data is None else parse(data, check, path)


def read_bytes(path: pathlib.Path) -> bytes | None:
  """What is in a file of `MAX_BYTES` at most, None where there is none.

  Raises:
    DamagedFile: if it cannot be read, or is longer.
  """
  with _opened(path) as file:
    data = None if file is None else file.read(MAX_BYTES + 1)
  if data is not None and len(data) > MAX_BYTES:
    raise damaged(path, f'it has more than {MAX_BYTES} bytes')
  return data


def read_lines(path: pathlib.Path, check: Check) -> list[Any]:
  """The checked values of a file that has one on each line.

  A last line without its end was cut off while it was written; it is left out.
  No file is one without lines.

  Raises:
    DamagedFile: if it cannot be read, or a line has another form.
  """
  with _opened(path) as file:
    lines = () if file is None else _whole_lines(file)
    return [
      parse(line, check, path, f'line {i}: ') for i, line in enumerate(lines, 1)
    ]


def read_last_line(path: pathlib.Path, check: Check) -> Any:
  """The last of `read_lines`, or None; the time is that of reading a line."""
  with _opened(path) as file:
    if file is None:
      return None
    end, size = file.seek(0, os.SEEK_END), _FIRST_TAIL
    while True:
      start = max(0, end - size)
      file.seek(start)
      # The last piece was cut off, and so is the first one inside of a file.
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
  """The checked value of some JSON.

  Args:
    data: the JSON, in UTF-8.
    check: of the value.
    path: of the file, for the message.
    place: where in the file, for the message.

  Raises:
    DamagedFile: if it is another value, or none.
  """
  if len(data) > MAX_BYTES:
    raise damaged(path, f'{place}it has more than {MAX_BYTES} bytes')
  try:
    written = _RENAMED.sub(_renamed, data.decode())
    value = json.loads(written)
    if '\\u' in written:  # half of a surrogate pair can never be printed
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
  """The error for a file that holds something else than it should."""
  return DamagedFile(
    f'{path} is damaged ({reason}); restore it from a copy, or make it again '
    'in another directory'
  )


def remove(path: pathlib.Path) -> None:
  """Removes a file, if there is one.

  Raises:
    DamagedFile: if it cannot be removed, such as a directory.
  """
  try:
    path.unlink(missing_ok=True)
  except OSError as error:
    raise DamagedFile(
      f'{path} cannot be removed ({error.strerror}); move it away'
    ) from error


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[IO[bytes] | None]:
  """A regular file, None where there is none.

  Without O_NONBLOCK opening a named pipe would wait for its writer.
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
  """Whether lists and objects are inside each other more than `MAX_DEPTH`."""
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

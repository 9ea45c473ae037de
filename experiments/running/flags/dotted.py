"""Load objects of the user's own modules, which a flag names `my.module:name`.

A module is searched in the working directory first, then on Python's path. An
error of the user's code is reported in one line with its file and line number;
`--verbosity=1` also prints the traceback.
"""

from collections.abc import Iterator
import contextlib
import difflib
import importlib
import os
import pathlib
import re
import sys
import traceback
import types
from typing import Any

from absl import logging

_OURS = pathlib.Path(__file__).resolve().parents[2]
_directories: dict[str, None] = {}  # directories of the imported modules


class OwnError(ValueError):
  """An error of the user's own code; the message names file and line."""


def is_dotted(text: str) -> bool:
  """Whether a value names an object of a module.

  Example:
    >>> is_dotted('my.module:name'), is_dotted('mlp')
    (True, False)
  """
  return ':' in text


def load(flag: str, text: str) -> Any:
  """Return the object that a flag names.

  Args:
    flag: name of the flag, for messages.
    text: module, colon, and a name in the module, which may have dots.

  Raises:
    ValueError: if the module or name does not exist, or the import fails.

  Example:
    >>> load('algorithm', 'math:pi')
    3.141592653589793
    >>> load('algorithm', 'math:pie')
    Traceback (most recent call last):
    ValueError: --algorithm=math:pie: module math has no pie; did you mean pi?
  """
  given = f'--{flag}={text}'
  path, _, name = text.partition(':')
  if path.endswith('.py') or '/' in path:
    module = path.removesuffix('.py').strip('./').replace('/', '.')
    raise ValueError(
      f'{given}: expected a module, not a file; write --{flag}={module}:{name}'
    )
  if not re.fullmatch(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.\w+)*', text):
    raise ValueError(f'{given}: expected MODULE:NAME, such as my.module:name')
  found: Any = _import(given, path)
  for part in name.split('.'):
    if not hasattr(found, part):
      what = f'module {path}' if found is sys.modules[path] else name
      raise ValueError(f'{given}: {what} has no {part}{_close(part, found)}')
    found = getattr(found, part)
  return found


def _import(given: str, path: str) -> types.ModuleType:
  here = os.getcwd()
  if sys.path[:1] != [here]:
    # In front of the program's folder, because modules there may have the
    # name of a user's module.
    sys.path.insert(0, here)
  importlib.invalidate_caches()
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    if error.name is None or not f'{path}.'.startswith(f'{error.name}.'):
      raise _failure(f'{given}: importing {path}', error) from error
    raise ValueError(
      f'{given}: no module {error.name} in {here} or on PYTHONPATH'
    ) from None
  except (Exception, SystemExit) as error:
    raise _failure(f'{given}: importing {path}', error) from error
  if file := getattr(module, '__file__', None):
    _directories[str(pathlib.Path(file).resolve().parent)] = None
  return module


def _close(name: str, thing: object) -> str:
  """Return a similar name of a module or class as a question, or its names."""
  close = difflib.get_close_matches(name, dir(thing), n=1)
  if close:
    return f'; did you mean {close[0]}?'
  public = [n for n in vars(thing) if not n.startswith('_')][:12]
  return f'; it has {", ".join(public)}' if public else ''


@contextlib.contextmanager
def named_errors(*texts: str) -> Iterator[None]:
  """Turn an error of the user's code into an OwnError with file and line.

  Args:
    *texts: values of flags that may name user's objects. If none does, errors
      are not changed.
  """
  own = [text for text in texts if is_dotted(text)]
  try:
    yield
  except (Exception, SystemExit) as error:
    if own and type(error) is ValueError and _own_frame(error) is None:
      # The library refused a value that the user's code returned.
      logging.info('%s', ''.join(traceback.format_exception(error)))
      raise OwnError(str(error)) from error
    if not own or _is_of_another(error):
      raise
    raise _failure(' or '.join(own), error) from error


def _is_of_another(error: BaseException) -> bool:
  """Whether an error was raised outside the user's code."""
  kinds = (ValueError, OSError, MemoryError, RuntimeError, SystemExit)
  return isinstance(error, kinds) and _own_frame(error) is None


def _failure(who: str, error: BaseException) -> OwnError:
  logging.info('%s', ''.join(traceback.format_exception(error)))
  what = ' '.join(str(error).split())
  what = what if len(what) <= 300 else f'{what[:300]} ...'
  if isinstance(error, SyntaxError):  # because the traceback lacks its place
    return OwnError(f'{who} raised {type(error).__name__}: {what}')
  frame = _own_frame(error) or traceback.extract_tb(error.__traceback__)[-1]
  place = f'{os.path.relpath(frame.filename)}:{frame.lineno}'
  return OwnError(
    f'{who} raised {type(error).__name__} at {place}'
    + (f': {what}' if what else '')
  )


def _own_frame(error: BaseException) -> traceback.FrameSummary | None:
  """Return the innermost frame in the user's code, None if none is."""
  found = None
  for frame in traceback.extract_tb(error.__traceback__):
    file = pathlib.Path(frame.filename).resolve()
    own = any(file.is_relative_to(d) for d in (*_directories, os.getcwd()))
    if own and not _is_library(file):
      found = frame
  return found


def _is_library(file: pathlib.Path) -> bool:
  ours = file.is_relative_to(_OURS) or file.is_relative_to(
    _OURS.parent / 'prsgd_jax'
  )
  return ours or 'site-packages' in file.parts

"""Parse options in the form `NAME=VALUE,NAME=VALUE`.

The type of an option is the annotation of its parameter, or the type of the
parameter's default. A list has + between its values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
import inspect
import re
import types
from typing import Any, Union, get_args, get_origin

from experiments.running.flags import named

_TRUTHS = {'true': True, '1': True, 'false': False, '0': False}


def parse(flag: str, pairs: Iterable[str]) -> dict[str, str]:
  """Split options into names and values.

  Args:
    flag: name of the flag, for messages.
    pairs: texts of the form NAME=VALUE.

  Raises:
    ValueError: if a text has another form, or a name is given twice.

  Example:
    >>> parse('model_options', ['width=64', 'num_heads=2'])
    {'width': '64', 'num_heads': '2'}
  """
  found: dict[str, str] = {}
  for pair in pairs:
    name, equals, value = pair.partition('=')
    if not (name and equals and value):
      raise ValueError(
        f'--{flag}: expected NAME=VALUE,NAME=VALUE, got {pair!r}'
      )
    if name in found:
      raise ValueError(f'--{flag}: {name} is given twice')
    found[name] = value
  return found


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Return the parameters of a function that can be passed by name.

  Annotations in quotes become types if they can be evaluated.

  Raises:
    ValueError: if the function has no signature.
  """
  try:
    signature = inspect.signature(make, eval_str=True)
  except Exception:  # because an annotation may be any text
    signature = inspect.signature(make)
  unnamed = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
  )
  return {
    n: p for n, p in signature.parameters.items() if p.kind not in unnamed
  }


def kind(parameter: inspect.Parameter) -> Any:
  """Return the type of an option: `[type]` for a sequence, None for any.

  For a union it is the first member. Without an annotation it is the type of
  the default.
  """
  found = parameter.annotation
  if found is parameter.empty or isinstance(found, str) or found is Any:
    found = type(parameter.default)
    if parameter.default is parameter.empty or parameter.default is None:
      return None
    if found in (tuple, list):
      return [type(parameter.default[0]) if parameter.default else str]
  if get_origin(found) in (types.UnionType, Union):
    found = get_args(found)[0]
  if get_origin(found) in (Sequence, tuple, list):
    return [get_args(found)[0]]
  return found


def value(flag: str, name: str, wanted: Any, text: str) -> Any:
  """Return the value of an option from its text.

  Args:
    flag: name of the flag, for messages.
    name: name of the option.
    wanted: type of the option, from `kind`.
    text: text of the value.

  Raises:
    ValueError: if the text does not fit the type, or text cannot give the type.

  Example:
    >>> value('model_options', 'hidden', [int], '64+32')
    (64, 32)
    >>> value('model_options', 'width', int, '6.5')
    Traceback (most recent call last):
    ValueError: --model_options: width must be int, got '6.5'
  """
  if isinstance(wanted, list):
    return tuple(value(flag, name, wanted[0], t) for t in text.split('+'))
  if wanted in named.READERS:
    return named.READERS[wanted][0](f'{flag}={name}', text)
  if wanted is None:
    return _literal(text)
  try:
    if wanted is bool:
      return _TRUTHS[text.lower()]
    if wanted in (int, float, str):
      return wanted(text)
  except (ValueError, KeyError):
    raise ValueError(
      f'--{flag}: {name} must be {wanted.__name__}, got {text!r}'
    ) from None
  raise ValueError(
    f'--{flag}: {name} is {getattr(wanted, "__name__", wanted)}, which no text '
    'gives; annotate it as int, float, bool, str or a Sequence of one'
  )


def _literal(text: str) -> Any:
  """Return a number, bool or list if the text is one, else the text."""
  if re.search(r'\w\+\w', text) and not re.fullmatch(r'[\d.]+e\+\d+', text):
    return tuple(_literal(part) for part in text.split('+'))
  if text.lower() in ('true', 'false'):
    return _TRUTHS[text.lower()]
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      continue
  return text


def check_names(
  flag: str, what: str, given: Iterable[str], known: Mapping[str, Any]
) -> None:
  """Check that all options are known.

  Args:
    flag: name of the flag, for messages.
    what: owner of the options, for messages.
    given: names of the options.
    known: mapping whose keys are the known names.

  Raises:
    ValueError: if a name is unknown.
  """
  for name in given:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      meant = f'did you mean {close[0]}? ' if close else ''
      has = f'it has {", ".join(known)}' if known else 'it has none'
      raise ValueError(f'--{flag}: {what} has no {name}; {meant}{has}')

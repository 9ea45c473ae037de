"""The algorithms by name, and a flag for each keyword that they have.

Flags and their help are made from the signatures and docstrings of the library:
an algorithm that is added there is in every binary. A value is a number, a list
such as 1,2,4 (1+2+4 inside of --run), or a name with numbers, such as
erdos_renyi:0.5.
"""

from collections.abc import Callable, Mapping
import difflib
import inspect
import re
import types
from typing import Any, get_args, get_origin

from absl import flags
import optax

import prsgd_jax as pr
from prsgd_jax import algorithms, compression

FAMILIES = (
  'averaging',
  'hierarchical',
  'decentralized',
  'exact',
  'relay',
  'outer',
  'diloco',
  'delayed',
  'robust',
  'streaming',
  'elastic',
  'federated',
  'compressed',
  'dion',
  'corrected',
)


def _by_family() -> dict[str, Callable[..., pr.ReplicaTransformation]]:
  """All algorithms, family by family and as they stand in the files."""
  found = {
    name: getattr(algorithms, name)
    for name in algorithms.__all__
    if name != 'local_sgd'  # an alias
  }

  def place(name: str) -> tuple[int, int]:
    family = found[name].__module__.rpartition('.')[2]
    return FAMILIES.index(family), found[name].__code__.co_firstlineno

  return {name: found[name] for name in sorted(found, key=place)}


def _whole(number: Any) -> Any:
  """A whole number as an int; any other as it is, for the library to refuse."""
  is_whole = isinstance(number, float) and number.is_integer()
  return int(number) if is_whole else number


ALGORITHMS = _by_family()
MIXINGS: dict[str, Callable[..., pr.Mixing]] = {
  'ring': pr.ring,
  'torus': lambda num_rows=None: pr.torus(_whole(num_rows)),
  'exponential': pr.exponential,
  'hypercube': pr.hypercube,
  'star': pr.star,
  'complete': pr.complete,
  'erdos_renyi': lambda p, seed=0: pr.erdos_renyi(p, seed=_whole(seed)),
  'one_peer_exponential': pr.one_peer_exponential,
  'random_matching': pr.random_matching,
  'random_neighbour': pr.random_neighbour,
  'mean': pr.mean,
}
COMPRESSORS: dict[str, Callable[..., compression.Compressor]] = {
  'uncompressed': compression.uncompressed,
  'stochastic_levels': lambda levels: compression.stochastic_levels(
    _whole(levels)
  ),
  'ternary': compression.ternary,
  'signs': compression.signs,
  'top_k': compression.top_k,
  'random_k': compression.random_k,
}
OUTER: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': lambda rate=1.0, momentum=0.0: optax.sgd(rate, momentum or None),
  'nesterov': lambda rate=0.7, momentum=0.9: optax.sgd(
    rate, momentum, nesterov=True
  ),
  'adam': lambda rate=1e-2: optax.adam(rate, b2=0.99, eps=1e-3),
  'yogi': lambda rate=1e-2: optax.yogi(rate, b2=0.99, eps=1e-3),
  'adagrad': lambda rate=1e-2: optax.adagrad(rate, eps=1e-3),
}
# What a keyword's type is named from.
NAMED: dict[type, Mapping[str, Callable[..., Any]]] = {
  pr.Mixing: MIXINGS,
  compression.Compressor: COMPRESSORS,
  optax.GradientTransformation: OUTER,
}
# Keywords that other flags or the length of the run decide.
PROVIDED = ('what', 'reset', 'learning_rate', 'momentum', 'num_steps')
# Keyword -> flag, where another flag has that name.
RENAMED = {'nesterov': 'block_nesterov'}


def keywords(algorithm: str) -> dict[str, inspect.Parameter]:
  """The keyword parameters of an algorithm."""
  parameters = inspect.signature(ALGORITHMS[algorithm]).parameters
  return {n: p for n, p in parameters.items() if p.kind == p.KEYWORD_ONLY}


def options(algorithm: str) -> list[str]:
  """The flags of an algorithm's own."""
  names = [n for n in keywords(algorithm) if n not in PROVIDED]
  return [RENAMED.get(name, name) for name in names]


def check_name(algorithm: str) -> None:
  """Raises ValueError if there is no algorithm of that name."""
  if algorithm not in ALGORITHMS:
    close = difflib.get_close_matches(algorithm, ALGORITHMS, n=1)
    meant = f'did you mean {close[0]}? ' if close else ''
    raise ValueError(
      f'unknown --algorithm={algorithm}; {meant}use one of '
      f'{", ".join(ALGORITHMS)}'
    )


def build(
  algorithm: str,
  tx: optax.GradientTransformation,
  options: Mapping[str, Any],
  provided: Mapping[str, Any],
) -> pr.ReplicaTransformation:
  """The algorithm with the values of its flags.

  Args:
    algorithm: its name.
    tx: the optimizer of every replica.
    options: by flag, as parsed.
    provided: by keyword, what no flag of the algorithm's own gives; what it
      does not have is left out.

  Raises:
    ValueError: if a value is not what the keyword takes, or the factory's own.
  """
  taken = keywords(algorithm)
  arguments = {n: provided[n] for n in taken if n in provided}
  return ALGORITHMS[algorithm](
    tx, **{**values(algorithm, options), **arguments}
  )


def values(algorithm: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """What an algorithm's keywords are given, from its flags as parsed.

  Raises:
    ValueError: if a value is not what the keyword takes.
  """
  return {
    name: _value(flag, _kind(parameter), options[flag])
    for name, parameter in keywords(algorithm).items()
    if (flag := RENAMED.get(name, name)) in options
  }


def check(algorithm: str, options: Mapping[str, Any]) -> None:
  """Raises ValueError if a flag does nothing for it, or one is missing."""
  taken = {RENAMED.get(n, n): p for n, p in keywords(algorithm).items()}
  for flag in options:
    if flag not in taken:
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}; leave it out'
      )
  for flag, parameter in taken.items():
    required = parameter.default is parameter.empty
    if required and flag not in options and flag not in PROVIDED:
      raise ValueError(
        f'--algorithm={algorithm} needs --{flag}; for example '
        f'--{flag}={_example(_kind(parameter))}'
      )


def _kind(parameter: inspect.Parameter) -> Any:
  """The type of a keyword, without `| None`; a sequence as `[type]`."""
  kind = parameter.annotation
  if isinstance(kind, types.UnionType):
    kind = next(k for k in get_args(kind) if k is not type(None))
  if get_origin(kind) is not None:  # Sequence[int]
    return [get_args(kind)[0]]
  return kind


def _example(kind: Any) -> str:
  if isinstance(kind, list):
    return '4,8'
  return next(iter(NAMED[kind])) if kind in NAMED else '4'


def _value(flag: str, kind: Any, given: Any) -> Any:
  """What the keyword takes, from what the flag holds."""
  if isinstance(kind, list):
    return [_number(flag, kind[0], n) for n in re.split('[,+]', given)]
  if kind not in NAMED:
    return given
  table = NAMED[kind]
  name, *numbers = given.split(':')
  if name not in table:
    raise ValueError(f'unknown --{flag}={given}; use one of {", ".join(table)}')
  values = [_number(flag, float, n) for n in numbers]
  try:
    inspect.signature(table[name]).bind(*values)
  except TypeError as error:
    raise ValueError(f'--{flag}={given}: {error}') from None
  if table is OUTER and not all(v > 0 for v in values):
    raise ValueError(f'--{flag}={given}: the numbers must be > 0')
  return table[name](*values)


def _number(flag: str, kind: type, text: str) -> Any:
  try:
    return kind(text)
  except ValueError:
    raise ValueError(
      f'--{flag} expects {kind.__name__} numbers, got {text!r}'
    ) from None


def _documented(algorithm: str, keyword: str) -> str:
  """What the docstring of an algorithm says of a keyword, on one line."""
  doc = inspect.getdoc(ALGORITHMS[algorithm]) or ''
  found = re.search(rf'^  {keyword}: (.*(?:\n    .*)*)', doc, re.MULTILINE)
  return ' '.join(found.group(1).split()) if found else ''


def define_flags() -> list[str]:
  """Defines a flag for every keyword; returns their names.

  Raises:
    TypeError: if two algorithms have a keyword of different types.
  """
  kinds: dict[str, Any] = {}
  helps: dict[str, dict[str, list[str]]] = {}
  for algorithm in ALGORITHMS:
    for keyword, parameter in keywords(algorithm).items():
      if keyword in PROVIDED:
        continue
      flag = RENAMED.get(keyword, keyword)
      kind = _kind(parameter)
      if kinds.setdefault(flag, kind) != kind:
        raise TypeError(f'--{flag} would be {kinds[flag]} and {kind}')
      text = _documented(algorithm, keyword)
      helps.setdefault(flag, {}).setdefault(text, []).append(algorithm)
  for flag, kind in kinds.items():
    text = ' '.join(f'{", ".join(a)}: {t}' for t, a in helps[flag].items())
    if not isinstance(kind, list) and kind in NAMED:
      text += f' One of {", ".join(NAMED[kind])}.'
    _define(flag, kind, text)
  return list(kinds)


def _define(flag: str, kind: Any, text: str) -> None:
  if kind is int:
    flags.DEFINE_integer(flag, None, text)
  elif kind is float:
    flags.DEFINE_float(flag, None, text)
  elif kind is bool:
    flags.DEFINE_bool(flag, None, text)
  else:
    flags.DEFINE_string(flag, None, text)

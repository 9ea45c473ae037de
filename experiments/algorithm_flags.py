"""The algorithms by name, and a flag for each keyword that they have.

Flags and their help are made from the signatures and docstrings of the library:
an algorithm that is added there is in every binary. A value is a number, a list
such as 1,2,4 (1+2+4 inside of --run), or a name of `named`.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import inspect
import re
import types
from typing import Any, Union, get_args, get_origin

from absl import flags
import optax

from experiments import named
import prsgd_jax as pr
from prsgd_jax import algorithms
from prsgd_jax.base import Schedule

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
  'sparse',
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


ALGORITHMS = _by_family()
# Keywords that other flags or the length of the run decide.
PROVIDED = ('average', 'draw_seed', 'learning_rate', 'momentum', 'num_steps')
# Keyword -> flag, where another flag has that name.
RENAMED = {'nesterov': 'block_nesterov'}
LISTS = ([int], [float])


def keywords(algorithm: str) -> dict[str, inspect.Parameter]:
  """The keyword parameters of an algorithm."""
  parameters = inspect.signature(ALGORITHMS[algorithm]).parameters
  return {n: p for n, p in parameters.items() if p.kind == p.KEYWORD_ONLY}


def own_flags(algorithm: str) -> list[str]:
  """The flags of an algorithm's own."""
  names = [n for n in keywords(algorithm) if n not in PROVIDED]
  found = [RENAMED.get(name, name) for name in names]
  found += ['when'] * (scheduled(algorithm) is not None)
  found += ['local'] * takes_local(algorithm)
  return found


def scheduled(algorithm: str) -> str | None:
  """The keyword that --when gives in place of its own flag, None if none.

  It is `period`, or else the only keyword that is a number of steps or a
  schedule.
  """
  found = [n for n, p in keywords(algorithm).items() if _may_be_schedule(p)]
  if 'period' in found:
    return 'period'
  return found[0] if len(found) == 1 else None


def _may_be_schedule(parameter: inspect.Parameter) -> bool:
  members = get_args(parameter.annotation)
  return int in members and Schedule in members


def takes_local(algorithm: str) -> bool:
  """Whether an algorithm may have another one as its local step."""
  return 'local' in inspect.signature(ALGORITHMS[algorithm]).parameters


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
  local: optax.GradientTransformation | pr.ReplicaTransformation,
  options: Mapping[str, Any],
  provided: Mapping[str, Any],
) -> pr.ReplicaTransformation:
  """The algorithm with the values of its flags.

  Args:
    algorithm: its name.
    local: the optimizer of every replica, or the local step.
    options: by flag, as parsed.
    provided: by keyword, what no flag of the algorithm's own gives; what it
      does not have is left out.

  Raises:
    ValueError: if a value is not what the keyword takes, or the factory's own.
  """
  taken = keywords(algorithm)
  arguments = {n: provided[n] for n in taken if n in provided}
  return ALGORITHMS[algorithm](
    local, **{**values(algorithm, options), **arguments}
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
  own = own_flags(algorithm)
  for flag in options:
    if flag not in own:
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}; leave it out'
      )
  replaced = scheduled(algorithm) if 'when' in options else None
  if replaced in options:
    raise ValueError(
      f'--when takes the place of --{replaced}; give one of them'
    )
  for keyword, parameter in keywords(algorithm).items():
    flag = RENAMED.get(keyword, keyword)
    required = parameter.default is parameter.empty
    if required and flag not in (*options, *PROVIDED, replaced):
      raise ValueError(
        f'--algorithm={algorithm} needs --{flag}; for example '
        f'--{flag}={_example(_kind(parameter))}'
      )


def _kind(parameter: inspect.Parameter) -> Any:
  """The type that a flag has of those of a keyword; a sequence as `[type]`.

  Of several it is the first: a flag is a number where a schedule may be, too.
  """
  kind = parameter.annotation
  if get_origin(kind) in (types.UnionType, Union):
    kinds = get_args(kind)
    kind = pr.Codec if pr.Codec in kinds else kinds[0]
  if get_origin(kind) is Sequence:
    return [get_args(kind)[0]]
  return kind


def _example(kind: Any) -> str:
  if isinstance(kind, list):
    return '4,8'
  return named.READERS[kind][1][0] if kind in named.READERS else '4'


def _value(flag: str, kind: Any, given: Any) -> Any:
  """What the keyword takes, from what the flag holds."""
  if isinstance(kind, list):
    return [named.number(flag, kind[0], n) for n in re.split('[,+]', given)]
  if kind in named.READERS:
    return named.READERS[kind][0](flag, given)
  return given


def _documented(algorithm: str, keyword: str) -> str:
  """What the docstring of an algorithm says of a keyword, on one line."""
  doc = inspect.getdoc(ALGORITHMS[algorithm]) or ''
  found = re.search(rf'^  {keyword}: (.*(?:\n    .*)*)', doc, re.MULTILINE)
  return ' '.join(found.group(1).split()) if found else ''


def define_flags() -> list[str]:
  """Defines a flag for every keyword; returns their names.

  Raises:
    TypeError: if two algorithms have a keyword of different types, or one has
      a type that no flag has.
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
    if not isinstance(kind, list) and kind in named.READERS:
      text += f' One of {", ".join(named.READERS[kind][1])}.'
    _define(flag, kind, text)
  return list(kinds)


def _define(flag: str, kind: Any, text: str) -> None:
  if kind is int:
    flags.DEFINE_integer(flag, None, text)
  elif kind is float:
    flags.DEFINE_float(flag, None, text)
  elif kind is bool:
    flags.DEFINE_bool(flag, None, text)
  elif kind is str or kind in (*LISTS, *named.READERS):
    flags.DEFINE_string(flag, None, text)
  else:
    raise TypeError(
      f'--{flag} would be {kind}, which no flag is; give it a reader in '
      '`named`, or provide the keyword in `experiment`'
    )

"""Algorithms by name, and a flag for each of their keyword arguments.

The flags and their help come from the signatures and docstrings of the library,
so that every program has each algorithm of the library. A value is a number, a
list such as 1,2,4 (1+2+4 in --run), or a name from `named`.

An algorithm may also be the user's own function `my.module:fn`, with the
signature of a library algorithm. --algorithm_options sets its keyword
arguments; a flag with the name of an argument also sets it.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import inspect
import re
import types
from typing import Any, Union, get_args, get_origin

from absl import flags
import optax

from experiments.running.flags import dotted, named, typed_options
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


# Second name of an algorithm -> first name.
ALIASES = {
  name: getattr(algorithms, name).__name__
  for name in algorithms.__all__
  if getattr(algorithms, name).__name__ != name
}


def _by_family() -> dict[str, Callable[..., pr.base.ReplicaTransformation]]:
  """Return all algorithms, by family and in the order of the files."""
  found = {
    name: getattr(algorithms, name)
    for name in algorithms.__all__
    if name not in ALIASES
  }

  def place(name: str) -> tuple[int, int]:
    family = found[name].__module__.rpartition('.')[2]
    return FAMILIES.index(family), found[name].__code__.co_firstlineno

  return {name: found[name] for name in sorted(found, key=place)}


ALGORITHMS = _by_family()
# Keywords that other flags or the length of the run determine.
PROVIDED = ('average', 'draw_seed', 'learning_rate', 'momentum', 'num_steps')
# Keyword -> flag, if another flag already has the name of the keyword.
RENAMED = {'nesterov': 'block_nesterov', 'clip_norm': 'outer_clip_norm'}
LISTS = ([int], [float])


def factory(algorithm: str) -> Callable[..., pr.base.ReplicaTransformation]:
  """Return the function that makes an algorithm.

  Args:
    algorithm: name of the library, or MODULE:NAME of the user's own function.

  Raises:
    ValueError: if the user's own object cannot be imported or is not a
      function.
  """
  if not dotted.is_dotted(algorithm):
    return ALGORITHMS[algorithm]
  make = dotted.load('algorithm', algorithm)
  if not callable(make) or not typed_options.parameters(make):
    raise ValueError(
      f'--algorithm={algorithm} is {type(make).__name__}; expected a function '
      'fn(tx, *, period, ...) of an optimizer, which returns an algorithm'
    )
  return make


def keywords(algorithm: str) -> dict[str, inspect.Parameter]:
  """Return the keyword parameters of an algorithm.

  For the user's own algorithm these are all parameters except the first, the
  optimizer.
  """
  make = factory(algorithm)
  if dotted.is_dotted(algorithm):
    return dict([*typed_options.parameters(make).items()][1:])
  parameters = inspect.signature(make).parameters
  return {n: p for n, p in parameters.items() if p.kind == p.KEYWORD_ONLY}


def own_flags(algorithm: str) -> list[str]:
  """Return the options of an algorithm, as names of flags.

  Example:
    >>> own_flags('k_avg')
    ['period', 'when', 'local']
  """
  names = [n for n in keywords(algorithm) if n not in PROVIDED]
  found = [flag_of(algorithm, name) for name in names]
  found += ['when'] * (scheduled(algorithm) is not None)
  found += ['local'] * takes_local(algorithm)
  return found


def flag_of(algorithm: str, keyword: str) -> str:
  """Return the name of the option that sets a keyword."""
  if dotted.is_dotted(algorithm):
    return keyword
  return RENAMED.get(keyword, keyword)


def scheduled(algorithm: str) -> str | None:
  """Return the keyword that --when replaces, None if the algorithm has none.

  It is `period`, or the only keyword that accepts a number of steps or a
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
  """Whether an algorithm accepts another algorithm as its local step."""
  return 'local' in inspect.signature(factory(algorithm)).parameters


def find(algorithm: str) -> str:
  """Return the first name of an algorithm.

  Args:
    algorithm: first or second name, or MODULE:NAME.

  Raises:
    ValueError: if no algorithm has this name.

  Example:
    >>> find('local_sgd'), find('k_avg')
    ('k_avg', 'k_avg')
  """
  if algorithm in ALIASES or algorithm in ALGORITHMS:
    return ALIASES.get(algorithm, algorithm)
  if dotted.is_dotted(algorithm):
    factory(algorithm)
    return algorithm
  names = [*ALGORITHMS, *ALIASES]
  close = difflib.get_close_matches(algorithm.lower(), names, n=1)
  meant = f'did you mean {close[0]}? ' if close else ''
  raise ValueError(
    f'unknown --algorithm={algorithm}; {meant}use one of '
    f'{", ".join(ALGORITHMS)}, or MODULE:NAME of your own'
  )


def build(
  algorithm: str,
  local: optax.GradientTransformation | pr.base.ReplicaTransformation,
  options: Mapping[str, Any],
  provided: Mapping[str, Any],
) -> pr.base.ReplicaTransformation:
  """Return the algorithm with the values of its flags.

  Args:
    algorithm: name of the algorithm.
    local: optimizer of every replica, or local step.
    options: flag -> parsed value.
    provided: keyword -> value that no flag of the algorithm sets. Keywords that
      the algorithm does not have are ignored.

  Raises:
    ValueError: if a value has the wrong type, or the algorithm refuses it.
  """
  taken = keywords(algorithm)
  arguments = {n: provided[n] for n in taken if n in provided}
  average = taken.get('average')
  if average and average.default is average.empty and 'average' not in provided:
    raise ValueError(
      f'--algorithm={algorithm} needs a default for average, such as '
      'average=pr.sync(pr.mixing.mean())'
    )
  made = factory(algorithm)(
    local, **{**values(algorithm, options), **arguments}
  )
  if not isinstance(made, pr.base.ReplicaTransformation):
    raise ValueError(
      f'--algorithm={algorithm} gave {type(made).__name__}; expected an '
      'algorithm, such as prsgd_jax.chain(...)'
    )
  return made


def values(algorithm: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return the keyword arguments of an algorithm.

  Args:
    algorithm: name of the algorithm.
    options: flag -> parsed value.

  Raises:
    ValueError: if a value has the wrong type.
  """
  taken = keywords(algorithm)
  if dotted.is_dotted(algorithm):
    return {
      name: typed_options.value(
        'algorithm_options',
        name,
        typed_options.kind(parameter),
        _as_text(options[name]),
      )
      for name, parameter in taken.items()
      if name in options
    }
  return {
    name: _value(flag, _kind(parameter), options[flag])
    for name, parameter in taken.items()
    if (flag := flag_of(algorithm, name)) in options
  }


def _as_text(option: Any) -> str:
  return str(option).replace(',', '+')


def canonical(algorithm: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return options in a canonical form, so that equal options compare equal.

  Options of the user's own algorithm may be text, or values of a flag of
  another type. Numbers and bools are converted; all other values become text.

  Args:
    algorithm: name of the algorithm.
    options: flag -> value.

  Raises:
    ValueError: if a value has the wrong type.
  """
  if not dotted.is_dotted(algorithm):
    return dict(options)
  parsed = values(algorithm, options)
  return {
    name: parsed[name]
    if isinstance(parsed.get(name), bool | int | float)
    else _as_text(given)
    if name in parsed
    else given
    for name, given in options.items()
  }


def check(algorithm: str, options: Mapping[str, Any]) -> None:
  """Check that each option has an effect and none is missing.

  Args:
    algorithm: name of the algorithm.
    options: flag -> value.

  Raises:
    ValueError: if an option does nothing for the algorithm, or a required one
      is missing.
  """
  own = own_flags(algorithm)
  if dotted.is_dotted(algorithm):
    what = f'--algorithm={algorithm}'
    flagged = (*FLAG_KINDS, 'when', 'local')
    named_ones = [n for n in options if n not in flagged]
    typed_options.check_names(
      'algorithm_options', what, named_ones, dict.fromkeys(own)
    )
  for flag in options:
    if flag not in own:
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}; leave it out'
      )
  replaced = scheduled(algorithm) if 'when' in options else None
  if replaced in options:
    raise ValueError(f'--when replaces --{replaced}; give one of them')
  for keyword, parameter in keywords(algorithm).items():
    flag = flag_of(algorithm, keyword)
    required = parameter.default is parameter.empty
    if required and flag not in (*options, *PROVIDED, replaced):
      raise ValueError(_missing(algorithm, flag, parameter))


def _missing(algorithm: str, flag: str, parameter: inspect.Parameter) -> str:
  what = f'--algorithm={algorithm} needs'
  if flag in FLAG_KINDS:
    example = _example(FLAG_KINDS[flag])
    return f'{what} --{flag}; for example --{flag}={example}'
  example = _example(typed_options.kind(parameter))
  return f'{what} {flag}; for example --algorithm_options={flag}={example}'


def _kind(parameter: inspect.Parameter) -> Any:
  """Return the type of the flag of a keyword; a sequence as `[type]`.

  Of a union it is the first type: the flag of a number or schedule is a number.
  """
  kind = parameter.annotation
  if get_origin(kind) in (types.UnionType, Union):
    kinds = get_args(kind)
    kind = pr.codecs.Codec if pr.codecs.Codec in kinds else kinds[0]
  if get_origin(kind) is Sequence:
    return [get_args(kind)[0]]
  return kind


def _example(kind: Any) -> str:
  if isinstance(kind, list):
    return '4,8'
  return named.READERS[kind][1][0] if kind in named.READERS else '4'


def _value(flag: str, kind: Any, given: Any) -> Any:
  """Return the argument of a keyword from the value of its flag."""
  if isinstance(kind, list):
    return [named.number(flag, kind[0], n) for n in re.split('[,+]', given)]
  if kind in named.READERS:
    return named.READERS[kind][0](flag, given)
  return given


def documented(algorithm: str, keyword: str) -> str:
  """Return the entry of a keyword in the docstring, on one line.

  Example:
    >>> documented('slowmo', 'slow_momentum')
    'beta, in [0, 1).'
  """
  doc = inspect.getdoc(factory(algorithm)) or ''
  found = re.search(rf'^  {keyword}: (.*(?:\n    .*)*)', doc, re.MULTILINE)
  return ' '.join(found.group(1).split()) if found else ''


def _kinds() -> dict[str, Any]:
  """Return the type of each flag of the algorithms.

  Raises:
    TypeError: if the type of a keyword differs between two algorithms.
  """
  kinds: dict[str, Any] = {}
  for algorithm in ALGORITHMS:
    for keyword, parameter in keywords(algorithm).items():
      if keyword in PROVIDED:
        continue
      flag, kind = flag_of(algorithm, keyword), _kind(parameter)
      if kinds.setdefault(flag, kind) != kind:
        raise TypeError(f'--{flag} would be {kinds[flag]} and {kind}')
  return kinds


FLAG_KINDS = _kinds()


def define_flags() -> None:
  """Define a flag for every keyword of the algorithms.

  Raises:
    TypeError: if the type of a keyword has no kind of flag.
  """
  helps: dict[str, dict[str, list[str]]] = {}
  for algorithm in ALGORITHMS:
    for keyword in keywords(algorithm):
      text = documented(algorithm, keyword)
      texts = helps.setdefault(flag_of(algorithm, keyword), {})
      texts.setdefault(text, []).append(algorithm)
  for flag, kind in FLAG_KINDS.items():
    text = ' '.join(f'{", ".join(a)}: {t}' for t, a in helps[flag].items())
    if not isinstance(kind, list) and kind in named.READERS:
      text += f' One of {", ".join(named.READERS[kind][1])}.'
    _define(flag, kind, text)


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
      f'--{flag} would be {kind}, which no flag can hold; give it a reader in '
      '`named`, or provide the keyword in `experiment`'
    )

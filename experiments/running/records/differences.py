"""What differs between the run in a directory and the one that is asked for."""

from collections.abc import Mapping
import pathlib
from typing import Any

# What a resumed run may have otherwise than before.
MAY_CHANGE = ('log_every',)


def check(
  workdir: pathlib.Path, saved: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
  """Compares the descriptions of two runs.

  Args:
    workdir: that holds the run.
    saved: description of that run, as JSON has it.
    asked: of the run that is to be made.

  Raises:
    ValueError: if they differ, with the first difference as flags.
  """
  one, other = _flat(saved), _flat(asked)
  for name in sorted({*one, *other} - set(MAY_CHANGE)):
    if one.get(name) != other.get(name):
      raise ValueError(refusal(workdir, name, one.get(name), other.get(name)))


def refusal(
  workdir: pathlib.Path, name: str, saved: object, asked: object
) -> str:
  """Returns the message about one flag that differs.

  Example:
    >>> print(refusal(pathlib.Path('runs/a'), 'period', 4, None)[:60])
    runs/a holds a run with --period=4, this one has no --period
  """
  if name == 'data':
    return (
      f'{workdir} holds a run on other data; pass its --data_dir or another '
      '--workdir'
    )
  return (
    f'{workdir} holds a run with {_text(name, saved)}, this one has '
    f'{_text(name, asked)}; pass another --workdir'
  )


def flag_text(name: str, value: object) -> str:
  """Returns a flag as the command line has it.

  Example:
    >>> flag_text('learning_rate_drops', [40, 80]), flag_text('augment', False)
    ('--learning_rate_drops=40,80', '--noaugment')
  """
  if isinstance(value, bool):
    return f'--{name}' if value else f'--no{name}'
  if isinstance(value, list | tuple):
    return f'--{name}={",".join(map(str, value))}'
  return f'--{name}={value}'


def _text(name: str, value: object) -> str:
  return f'no --{name}' if value is None else flag_text(name, value)


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
  """A description by the names of flags."""
  parts = ('options', 'network')
  rest = {n: v for n, v in description.items() if n not in parts}
  rest |= _network_flags(description.get('network', {}))
  # A keyword of the user's own algorithm may have the name of another flag.
  options = {
    f'algorithm_options={n}' if n in rest else n: v
    for n, v in description.get('options', {}).items()
  }
  return {**rest, **options}


def _network_flags(network: Mapping[str, Any]) -> dict[str, Any]:
  names = {'speeds': 'replica_speeds', 'seed': 'network_seed'}
  found = {names.get(n, n): v for n, v in network.items() if n != 'links'}
  for tier, link in network.get('links', {}).items():
    prefix = '' if tier == 'global' else f'{tier}_'
    for name, value in zip(('latency', 'bandwidth'), link):
      found[prefix + name] = value
  return found

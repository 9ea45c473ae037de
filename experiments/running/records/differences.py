"""Compare the run saved in a directory with the requested run."""

from collections.abc import Collection, Mapping
import pathlib
from typing import Any

# Parts of a description that may change when a run is resumed.
MAY_CHANGE = ('log_every',)


def check(
  workdir: pathlib.Path,
  saved: Mapping[str, Any],
  asked: Mapping[str, Any],
  may_change: Collection[str] = (),
) -> None:
  """Compare the descriptions of two runs.

  Args:
    workdir: directory of the saved run, for the message.
    saved: description of the saved run, as read from JSON.
    asked: description of the requested run.
    may_change: names of flags that may differ. Default: only `MAY_CHANGE`.

  Raises:
    ValueError: if they differ; the message shows the first difference as flags.
  """
  one, other = _flat(saved), _flat(asked)
  for name in sorted({*one, *other} - {*MAY_CHANGE, *may_change}):
    if one.get(name) != other.get(name):
      raise ValueError(refusal(workdir, name, one.get(name), other.get(name)))


def refusal(
  workdir: pathlib.Path, name: str, saved: object, asked: object
) -> str:
  """Return the message about a flag that differs.

  Args:
    workdir: directory of the saved run.
    name: name of the flag.
    saved: value in the saved run; None if unset.
    asked: value in the requested run; None if unset.

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
  """Return a flag in the form of the command line.

  Args:
    name: name of the flag.
    value: its value; a bool, list, number or string.

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
  """Return a description as a flat mapping from flag names to values."""
  parts = ('options', 'network')
  rest = {n: v for n, v in description.items() if n not in parts}
  rest |= _network_flags(description.get('network', {}))
  # An argument of the user's own algorithm may have the name of another flag.
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

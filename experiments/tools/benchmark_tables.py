"""Tables of what `benchmark.py` measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.running.records import json_files
from experiments.tools import disturbances, tables
from experiments.tools.benchmark_loops import ENGINE, HAND, PEER, STREAMED
from experiments.tools.tables import Column

_NUMBERS = json_files.list_of(json_files.number)
_CONTESTANT = json_files.object_of(
  {
    'label': json_files.text,
    'kind': json_files.one_of(ENGINE, HAND, PEER, STREAMED),
    'steps': json_files.count,
    'seconds': _NUMBERS,
    **dict.fromkeys(
      ('waited', 'loss', 'first_seconds', 'difference'), json_files.number
    ),
  }
)
FORM = json_files.object_of(
  {
    'case': json_files.text,
    **dict.fromkeys(('replicas', 'batch_size', 'period'), json_files.count),
    'machine': json_files.object_of({}),
    'date': json_files.text,
    'others': _NUMBERS,
    'contestants': json_files.list_of(_CONTESTANT),
  }
)


class Spread(NamedTuple):
  """A median, and the quartiles around it."""

  median: float
  low: float
  high: float


def spread(values: Any) -> Spread:
  """Return the median and the quartiles of some values.

  Args:
    values: at least one number.

  Example:
    >>> spread([1.0, 2.0, 3.0])
    Spread(median=2.0, low=1.5, high=2.5)
  """
  low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
  return Spread(float(median), float(low), float(high))


def images_per_second(
  measured: Mapping[str, Any], contestant: Mapping[str, Any]
) -> np.ndarray:
  """Return the images per second of a contestant in each round that counts."""
  kept = disturbances.undisturbed(measured['others'])
  seconds = np.array(contestant['seconds'])[kept]
  images = measured['replicas'] * measured['batch_size'] * contestant['steps']
  return images / seconds


def ratio(
  measured: Mapping[str, Any], contestant: Mapping[str, Any], kind: str
) -> Spread | None:
  """Return the ratio to the fastest contestant of a kind, round by round.

  Args:
    measured: the measurement of a case.
    contestant: one of its contestants.
    kind: kind of the fastest one, by the median.

  Returns:
    Median and quartiles, None if no contestant is of this kind.
  """
  rates = [
    images_per_second(measured, one)
    for one in measured['contestants']
    if one['kind'] == kind
  ]
  if not rates:
    return None
  return spread(
    images_per_second(measured, contestant) / max(rates, key=np.median)
  )


def rows(measured: Mapping[str, Any]) -> list[dict[str, str]]:
  """Return a row for each contestant of a case."""
  return [_row(measured, one) for one in measured['contestants']]


def _row(
  measured: Mapping[str, Any], contestant: Mapping[str, Any]
) -> dict[str, str]:
  kind = contestant['kind']
  rates = spread(images_per_second(measured, contestant))
  row = {
    'contestant': contestant['label'],
    'rate': _shown(rates, three_digits),
  }
  compared = {ENGINE: (HAND, PEER), STREAMED: (ENGINE,)}.get(kind, ())
  for other in compared:
    found = ratio(measured, contestant, other)
    if found is not None:
      row[other] = _shown(found, '{:.2f}'.format)
  if kind == STREAMED:
    share = contestant['waited'] / sum(contestant['seconds'])
    row['waited'] = f'{share:.1%}'
  return row


def _shown(found: Spread, show: Any) -> str:
  median, low, high = map(show, found)
  return f'{median} ({low} to {high})'


def three_digits(value: float) -> str:
  """Return a number with three digits, or more before the point.

  Example:
    >>> three_digits(1234.5), three_digits(0.5)
    ('1,230', '0.50')
  """
  rounded = float(f'{value:.3g}')
  digits = 0 if rounded >= 100 else 1 if rounded >= 10 else 2
  return f'{rounded:,.{digits}f}'


def conditions(measured: Mapping[str, Any]) -> str:
  """Return a line on the machine, the rounds and the disturbances."""
  machine, others = measured['machine'], measured['others']
  kept = disturbances.undisturbed(others)
  largest = max(one['difference'] for one in measured['contestants'])
  words = (
    f'{measured["replicas"]} replicas, batches of {measured["batch_size"]}, an '
    f'average every {measured["period"]} steps. {len(kept)} of {len(others)} '
    f'rounds count. Parameters differ by at most {largest:.1g} after the first '
    f'steps. {measured["date"]}, {machine["cpus"]} {machine["processor"]} '
    f'cores, JAX {machine["jax"]}, '
    + ''.join(
      f'{name} {machine[name]}, '
      for name in ('torch', 'drjax')
      if name in machine
    )
    + f'Python {machine["python"]}, commit {machine["commit"]}.'
  )
  if disturbances.is_disturbed(others):
    words += f' Other programs used up to {max(others):.0%} of the processors.'
  return words


COLUMNS = (
  Column('contestant'),
  Column('rate', 'images/s (quartiles)', is_number=True),
  Column(HAND, 'ratio to the best by hand', is_number=True),
  Column(PEER, 'ratio to the best peer', is_number=True),
  Column(ENGINE, 'ratio to resident', is_number=True),
  Column('waited', 'without data', is_number=True),
)


def terminal(measured: Mapping[str, Any]) -> str:
  """Return the table of a case for a terminal."""
  table = tables.aligned(rows(measured), COLUMNS)
  return f'{measured["case"]}: {conditions(measured)}\n\n{table}'


def markdown(measured: Mapping[str, Any]) -> str:
  """Return the table of a case in Markdown, without empty columns."""
  found = rows(measured)
  columns = [c for c in COLUMNS if any(row.get(c.name) for row in found)]
  table = tables.markdown(found, columns)
  return f'**`{measured["case"]}`**: {conditions(measured)}\n\n{table}'

"""Measured numbers with their unit and their spread, and tables of them."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

# Significant digits of a value, and of the ends of its range.
DIGITS, SPREAD_DIGITS = 4, 3
# Unit of a number of seeds for which something holds; see `count`.
SEEDS = 'seeds'
# Whole numbers from which only significant digits are shown.
_LARGE = 1e7
# JSON has no infinity.
_INFINITIES = {'inf': math.inf, '-inf': -math.inf}


class Measurement(NamedTuple):
  """One number.

  Attributes:
    value: the number itself, by default the mean over the seeds. Infinity
      stands for an event that never happened, NaN for a missing number.
    seeds: the number of each seed; empty if only the value is known.
    error: the standard error of the value, if it was estimated.
  """

  value: float
  seeds: tuple[float, ...] = ()
  error: float | None = None

  def __str__(self) -> str:
    """Return the value, with its standard error or its range over the seeds.

    Example:
      >>> str(of_seeds([1.0, 1.5]))
      '1.25 (1 to 1.5)'
    """
    if self.error is not None:
      return f'{_shown(self.value)} ± {_shown(self.error, SPREAD_DIGITS)}'
    if len(self.seeds) < 2:
      return _shown(self.value)
    ends = (_shown(f(self.seeds), SPREAD_DIGITS) for f in (min, max))
    return f'{_shown(self.value)} ({" to ".join(ends)})'


class Quantity(NamedTuple):
  """One quantity, measured in one or more cases.

  Attributes:
    cases: case -> measurement. A quantity without cases has one, named ''.
    unit: unit of all values; empty for a number without a unit.
  """

  cases: Mapping[str, Measurement]
  unit: str = ''


# The quantities of a claim, by their names.
Measured = Mapping[str, Quantity]


class Table(NamedTuple):
  """A small table of text."""

  head: tuple[str, ...]
  rows: list[tuple[str, ...]]


def of_seeds(values: Any, value: float | None = None) -> Measurement:
  """Return the measurement of several seeds.

  Args:
    values: [seeds].
    value: the number to report, the mean of `values` by default.
  """
  seeds = tuple(float(v) for v in np.asarray(values, float))
  return Measurement(float(np.mean(seeds) if value is None else value), seeds)


def count(holds: Any) -> Measurement:
  """Return the number of seeds for which something holds.

  Its quantity has the unit `SEEDS`, so that it is shown as what it is, and not
  as a mean with a range. Its seeds are 0 or the number of seeds, because the
  count is then their mean, also when they are drawn again.

  Args:
    holds: [seeds], whether it holds.

  Example:
    >>> m = count([True, False, True])
    >>> m.value, m.seeds
    (2.0, (3.0, 0.0, 3.0))
  """
  flags = np.asarray(holds, bool)
  return of_seeds(flags * float(flags.size))


def number(value: Any, unit: str = '') -> Quantity:
  """Return a quantity without cases.

  Args:
    value: a number, a sequence with one of each seed, or a `Measurement`.
    unit: unit of the value. Default: none.
  """
  return by_case({'': value}, unit)


def by_case(values: Mapping[Any, Any], unit: str = '') -> Quantity:
  """Return a quantity from a value for each case.

  Args:
    values: case -> a number, a sequence with one of each seed, or a
      `Measurement`.
    unit: unit of all values. Default: none.

  Example:
    >>> by_case({'I = 4': 1.5}, 's').cases['I = 4'].value
    1.5
  """
  return Quantity({str(k): _measurement(v) for k, v in values.items()}, unit)


def _measurement(value: Any) -> Measurement:
  if isinstance(value, Measurement):
    return value
  return of_seeds(value) if np.ndim(value) else Measurement(float(value))


def _shown(value: float, digits: int = DIGITS) -> str:
  if math.isnan(value):
    return 'unknown'
  if math.isinf(value):
    return 'never'
  if value == int(value) and abs(value) < _LARGE:
    return str(int(value))
  if value == float(short := f'{value:g}'):
    return short  # a constant, such as a learning rate
  return f'{value:#.{digits}g}'


def with_unit(text: str, unit: str) -> str:
  """Append a unit to a number."""
  return text + ('' if unit in ('', '%') else ' ') + unit


def tables(measured: Measured) -> list[Table]:
  """Arrange quantities in small tables.

  Quantities with cases in common are columns of one table, whose rows are the
  cases. All quantities without cases are rows of the first table.
  """
  single = {k: q for k, q in measured.items() if list(q.cases) == ['']}
  made = [_list(single)] if single else []
  groups: list[dict[str, Quantity]] = []
  for name, quantity in measured.items():
    if name in single:
      continue
    for group in groups:
      if any(q.cases.keys() & quantity.cases.keys() for q in group.values()):
        group[name] = quantity
        break
    else:
      groups.append({name: quantity})
  return [*made, *map(_crossed, groups)]


def _list(quantities: Measured) -> Table:
  rows = [(n, _cell(q, ''), q.unit) for n, q in quantities.items()]
  return Table(('quantity', 'value', 'unit'), [*rows])


def _crossed(quantities: Measured) -> Table:
  # The longest first, because it has the complete order of the cases.
  longest = sorted(quantities.values(), key=lambda q: -len(q.cases))
  cases = dict.fromkeys(case for q in longest for case in q.cases)
  head = [n + (f', {q.unit}' if q.unit else '') for n, q in quantities.items()]

  rows = [(c, *(_cell(q, c) for q in quantities.values())) for c in cases]
  return Table(('case', *head), rows)


def _cell(quantity: Quantity, case: str) -> str:
  found = quantity.cases.get(case)
  if found is None:
    return ''
  if quantity.unit == SEEDS and found.seeds:
    return f'{_shown(found.value)} of {len(found.seeds)}'
  return str(found)


def to_json(measured: Measured) -> dict[str, Any]:
  """Encode quantities; a measurement without seeds or error is a number."""

  def one(m: Measurement) -> Any:
    rest = {'seeds': [_encoded(s) for s in m.seeds]} if m.seeds else {}
    error = {} if m.error is None else {'error': _encoded(m.error)}
    value = _encoded(m.value)
    return {'value': value, **rest, **error} if rest or error else value

  return {
    name: {'unit': q.unit, 'cases': {c: one(m) for c, m in q.cases.items()}}
    for name, q in measured.items()
  }


def from_json(value: Any) -> dict[str, Quantity]:
  """Decode quantities.

  Raises:
    ValueError: if the value has another form.
  """
  return {name: _quantity(name, own) for name, own in _object(value).items()}


def _quantity(name: str, value: Any) -> Quantity:
  own = _object(value)
  unit = own.get('unit', '')
  if not isinstance(unit, str) or 'cases' not in own:
    raise ValueError(f'{name!r} must have a unit and cases')
  cases = {c: _decoded(m) for c, m in _object(own['cases']).items()}
  return Quantity(cases, unit)


def _decoded(value: Any) -> Measurement:
  if not isinstance(value, dict):
    return Measurement(_number(value))
  seeds, error = value.get('seeds', []), value.get('error')
  if not isinstance(seeds, Sequence) or isinstance(seeds, str):
    raise ValueError('the seeds of a measurement must be a list')
  return Measurement(
    _number(value.get('value')),
    tuple(_number(seed) for seed in seeds),
    None if error is None else _number(error),
  )


def _encoded(value: float) -> float | str | None:
  if math.isnan(value):
    return None
  return str(value) if math.isinf(value) else value


def _number(value: Any) -> float:
  if value is None:
    return math.nan
  if isinstance(value, str) and value in _INFINITIES:
    return _INFINITIES[value]
  if isinstance(value, int | float) and not isinstance(value, bool):
    return float(value)
  raise ValueError(f'expected a number, got {value!r:.60}')


def _object(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f'expected an object, got {value!r:.60}')
  return value

"""Conditions on measured quantities, as data.

Example:
  >>> from experiments.papers import quantities
  >>> measured = {'gain': quantities.by_case({'I = 4': 1.7, 'I = 8': 2.1})}
  >>> holds(every(at_least('gain', 2.0)), measured)
  False
  >>> holds(some(at_least('gain', 2.0)), measured)
  True
"""

from collections.abc import Iterator, Sequence
import itertools
import operator
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from experiments.papers.quantities import Measured, Measurement

Relation = Literal['<', '<=', '>', '>=']
Seeds = Literal['mean', 'each', 'all']
Direction = Literal['rise', 'fall']

# Fraction of the pairs of seeds from which one method is called better.
LIKELY = 0.95

_RELATIONS = {
  '<': operator.lt,
  '<=': operator.le,
  '>': operator.gt,
  '>=': operator.ge,
}


class Ref(NamedTuple):
  """A measured number.

  Attributes:
    quantity: name of the quantity.
    case: one of its cases. None is the current case of `Every` or `Some`, and
      elsewhere the only case of a quantity without cases. Default: None.
    times: factor of the number. Default: 1.
  """

  quantity: str
  case: str | None = None
  times: float = 1.0


class Compare(NamedTuple):
  """A number is below or above another.

  Attributes:
    left: the number on the left.
    relation: the relation between left and right.
    right: the number on the right.
    seeds: 'mean' compares the values, 'each' the numbers seed by seed, 'all'
      every seed on the left with every seed on the right. Default: 'mean'.
    share: smallest fraction of the comparisons of 'each' or of 'all' that must
      hold, in (0, 1]. Default: 1.
  """

  left: Ref
  relation: Relation
  right: Ref | float
  seeds: Seeds = 'mean'
  share: float = 1.0


class Within(NamedTuple):
  """A number is close to another, by the widest of the given tolerances.

  Attributes:
    left: the measured number.
    target: the number that it should be close to.
    absolute: the largest difference.
    relative: the largest difference as a fraction of the target.
    errors: the largest difference in standard errors of `left`.
  """

  left: Ref
  target: Ref | float
  absolute: float = 0.0
  relative: float = 0.0
  errors: float = 0.0


class Order(NamedTuple):
  """A quantity strictly rises or falls through its cases.

  Attributes:
    quantity: name of the quantity.
    cases: its cases, in order.
    direction: 'rise' or 'fall'.
    seeds: 'mean' orders the values; 'each' orders the numbers of every seed;
      'all' orders every seed of a case and every seed of the next case.
      Default: 'mean'.
  """

  quantity: str
  cases: tuple[str, ...]
  direction: Direction
  seeds: Seeds = 'mean'


class All(NamedTuple):
  """All conditions hold."""

  conditions: tuple['Condition', ...]


class Either(NamedTuple):
  """One of the conditions holds, or more."""

  conditions: tuple['Condition', ...]


class Every(NamedTuple):
  """A condition holds in every case, and there is one.

  Attributes:
    condition: its references without a case refer to the current case.
    cases: cases to check. Default: all that its quantities have in common.
  """

  condition: 'Condition'
  cases: tuple[str, ...] = ()


class Some(NamedTuple):
  """A condition holds in at least one case; attributes are as in `Every`."""

  condition: 'Condition'
  cases: tuple[str, ...] = ()


Condition = Compare | Within | Order | All | Either | Every | Some


def below(left: str | Ref, right: Any, seeds: Seeds = 'mean') -> Compare:
  """Return the condition left < right; a string names a quantity."""
  return Compare(_ref(left), '<', _term(right), seeds)


def at_most(left: str | Ref, right: Any, seeds: Seeds = 'mean') -> Compare:
  """Return the condition left <= right; a string names a quantity."""
  return Compare(_ref(left), '<=', _term(right), seeds)


def above(left: str | Ref, right: Any, seeds: Seeds = 'mean') -> Compare:
  """Return the condition left > right; a string names a quantity."""
  return Compare(_ref(left), '>', _term(right), seeds)


def at_least(left: str | Ref, right: Any, seeds: Seeds = 'mean') -> Compare:
  """Return the condition left >= right; a string names a quantity."""
  return Compare(_ref(left), '>=', _term(right), seeds)


def mostly(condition: Compare, share: float = LIKELY) -> Compare:
  """Return a comparison that holds for a fraction of the pairs of seeds.

  Args:
    condition: comparison of two measured numbers.
    share: smallest fraction of the pairs. Default: `LIKELY`.
  """
  return condition._replace(seeds='all', share=share)


def within(left: str | Ref, target: Any, **tolerances: float) -> Within:
  """Return the condition that two numbers are close; see `Within`."""
  return Within(_ref(left), _term(target), **tolerances)


def every(condition: Condition, cases: Sequence[Any] = ()) -> Every:
  """Return the condition that another one holds in every case."""
  return Every(condition, tuple(map(str, cases)))


def some(condition: Condition, cases: Sequence[Any] = ()) -> Some:
  """Return the condition that another one holds in some case."""
  return Some(condition, tuple(map(str, cases)))


def _ref(of: str | Ref) -> Ref:
  return of if isinstance(of, Ref) else Ref(of)


def _term(of: Any) -> Ref | float:
  return _ref(of) if isinstance(of, str | Ref) else float(of)


def holds(condition: Condition, measured: Measured, case: str = '') -> bool:
  """Evaluate a condition; a comparison with NaN does not hold.

  Args:
    condition: condition to evaluate.
    measured: the quantities.
    case: case of the references that name none. Default: ''.

  Raises:
    ValueError: if a quantity or a case is missing.
  """
  match condition:
    case Compare():
      return _compare(condition, measured, case)
    case Within(left, target, absolute, relative, errors):
      own = _read(left, measured, case)
      goal = _read(target, measured, case).value
      error = 0.0 if own.error is None else own.error
      allowed = max(absolute, relative * abs(goal), errors * error)
      return bool(abs(own.value - goal) <= allowed)
    case Order(quantity, cases, direction, seeds):
      relation: Relation = '<' if direction == 'rise' else '>'
      pairs = itertools.pairwise(Ref(quantity, c) for c in cases)
      compared = [Compare(a, relation, b, seeds) for a, b in pairs]
      return bool(compared) and all(
        _compare(one, measured, case) for one in compared
      )
    case All(conditions):
      return all(holds(c, measured, case) for c in conditions)
    case Either(conditions):
      return any(holds(c, measured, case) for c in conditions)
    case Every(inner, cases):
      chosen = cases or _common_cases(inner, measured)
      return bool(chosen) and all(holds(inner, measured, c) for c in chosen)
    case Some(inner, cases):
      chosen = cases or _common_cases(inner, measured)
      return any(holds(inner, measured, c) for c in chosen)


def _compare(condition: Compare, measured: Measured, case: str) -> bool:
  compare = _RELATIONS[condition.relation]
  left = _read(condition.left, measured, case)
  right = _read(condition.right, measured, case)
  if condition.seeds == 'mean':
    return bool(compare(left.value, right.value))
  ours = np.array(left.seeds or (left.value,))
  theirs = np.array(right.seeds or (right.value,))
  if condition.seeds == 'all':
    ours = ours[:, None]
  elif 1 not in (ours.size, theirs.size) and ours.size != theirs.size:
    raise ValueError(f'{condition.left.quantity!r} has other seeds')
  return bool(compare(ours, theirs).mean() >= condition.share)


def _read(term: Ref | float, measured: Measured, case: str) -> Measurement:
  """Return the measurement that a term refers to."""
  if not isinstance(term, Ref):
    return Measurement(term)
  place = case if term.case is None else term.case
  if term.quantity not in measured:
    raise ValueError(f'the rule needs {term.quantity!r}, which is not measured')
  cases = measured[term.quantity].cases
  if place not in cases:
    raise ValueError(f'{term.quantity!r} has no case {place!r}')
  own, k = cases[place], term.times
  error = None if own.error is None else k * own.error
  return Measurement(k * own.value, tuple(k * s for s in own.seeds), error)


def _references(condition: Condition) -> Iterator[Ref]:
  """Yield the references without a case of their own."""
  for field in condition:
    if isinstance(field, Ref) and field.case is None:
      yield field
    elif isinstance(field, Compare | Within):
      yield from _references(field)
    elif isinstance(field, tuple) and isinstance(condition, All | Either):
      for inner in cast(tuple[Condition, ...], field):
        yield from _references(inner)


def _common_cases(condition: Condition, measured: Measured) -> list[str]:
  """Return the cases that all quantities of a condition have, in order."""
  names = [ref.quantity for ref in _references(condition)]
  if not names:
    raise ValueError('the cases of a condition must be named')
  for name in names:
    if name not in measured:
      raise ValueError(f'the rule needs {name!r}, which is not measured')
  known = [measured[name].cases for name in names]
  return [c for c in known[0] if all(c in own for own in known)]

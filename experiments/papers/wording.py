"""Conditions in words.

Example:
  >>> from experiments.papers.conditions import at_least, every
  >>> in_words(every(at_least('gain', 2.0), ['I = 4', 'I = 8']))
  'for each of I = 4 and I = 8: gain ≥ 2'
"""

from collections.abc import Sequence

from experiments.papers.conditions import (
  All,
  Compare,
  Condition,
  Either,
  Every,
  Order,
  Ref,
  Some,
  Within,
)
from experiments.papers.quantities import Measured, with_unit

_SIGNS = {'<': '<', '<=': '≤', '>': '>', '>=': '≥'}


def in_words(condition: Condition, measured: Measured | None = None) -> str:
  """Return a condition as a part of a sentence.

  Args:
    condition: condition to put into words.
    measured: quantities whose units the numbers get. Default: no units.
  """
  match condition:
    case Compare():
      return _compared(condition, measured)
    case Within(left, target):
      tolerance = _tolerance(condition, measured)
      goal = _told(target, measured, left)
      return f'{_told(left)} is within {tolerance} of {goal}'
    case Order():
      return _ordered([condition])
    case All(conditions):
      orders = [c for c in conditions if isinstance(c, Order)]
      alike = {o[1:] for o in orders}
      if len(orders) == len(conditions) and len(alike) == 1:
        return _ordered(orders)
      return ' and '.join(_part(c, measured) for c in conditions)
    case Either(conditions):
      return ' or '.join(_part(c, measured) for c in conditions)
    case Every(inner, cases):
      each = 'for' if len(cases) == 1 else 'for each of'
      where = f'{each} {_listed(cases)}' if cases else 'in every case'
      return f'{where}: {in_words(inner, measured)}'
    case Some(inner, cases):
      one = 'for' if len(cases) == 1 else 'for one of'
      where = f'{one} {_listed(cases, "or")}' if cases else 'in some case'
      return f'{where}: {in_words(inner, measured)}'


def _compared(condition: Compare, measured: Measured | None) -> str:
  left, relation, right, seeds, share = condition
  goal = _told(right, measured, left)
  if isinstance(right, Ref) and right.quantity == left.quantity:
    goal = goal.replace(right.quantity, 'that', 1)
  ours = _told(left)
  after = ', seed by seed' if seeds == 'each' else ''
  if share < 1:
    what = 'pairs of seeds' if isinstance(right, Ref) else 'seeds'
    after = f' for at least {share:.0%} of the {what}'
  elif seeds == 'all':
    ours = f'every seed of {ours}'
    goal = f'every seed of {goal}' if isinstance(right, Ref) else goal
  return f'{ours} {_SIGNS[relation]} {goal}{after}'


def _ordered(orders: Sequence[Order]) -> str:
  names = _listed([order.quantity for order in orders])
  _, cases, direction, seeds = orders[0]
  what = 'all seeds' if seeds == 'all' else 'the values'
  after = ', seed by seed' if seeds == 'each' else ''
  through = _listed(cases, 'then')
  return f'{what} of {names} {direction} through {through}{after}'


def _part(condition: Condition, measured: Measured | None) -> str:
  told = in_words(condition, measured)
  nested = isinstance(condition, All | Either | Every | Some)
  return f'({told})' if nested else told


def _told(
  term: Ref | float, measured: Measured | None = None, like: Ref | None = None
) -> str:
  """Return a term in words, a number with the unit of what it is like."""
  if isinstance(term, Ref):
    factor = '' if term.times == 1 else f'{term.times:g} times '
    case = f' for {term.case}' if term.case else ''
    return f'{factor}{term.quantity}{case}'
  known = measured and like and measured.get(like.quantity)
  return with_unit(f'{term:.4g}', known.unit if known else '')


def _tolerance(condition: Within, measured: Measured | None) -> str:
  own = _told(condition.absolute, measured, condition.left)
  told = [own] if condition.absolute else []
  if condition.relative:
    told.append(f'{100 * condition.relative:g}%')
  if condition.errors:
    told.append(f'{condition.errors:g} standard errors')
  return ' or '.join(told)


def _listed(cases: Sequence[str], last: str = 'and') -> str:
  mark = '; ' if any(',' in case for case in cases) else ', '
  if len(cases) < 2:
    return ''.join(cases)
  return f'{mark.join(cases[:-1])} {last} {cases[-1]}'

"""Rules of reproduction as data, which are evaluated and put into words.

A rule decides from measured quantities whether a claim is reproduced, partly
or not. The verdict and the sentence come from one object, so they cannot
disagree.

Example:
  >>> from experiments.papers import quantities
  >>> from experiments.papers.conditions import at_least, every, some
  >>> rule = Rule(every(at_least('gain', 2.0)), some(at_least('gain', 2.0)))
  >>> print(rule.sentence())
  yes if in every case: gain ≥ 2; partly if in some case: gain ≥ 2; otherwise no
  >>> rule.verdict({'gain': quantities.by_case({'I = 4': 1.7, 'I = 8': 2.1})})
  'partly'
"""

from typing import Any, Literal, NamedTuple, get_args

from experiments.papers.conditions import (
  Condition,
  Direction,
  Ref,
  Relation,
  Seeds,
  holds,
)
from experiments.papers.quantities import Measured
from experiments.papers.wording import in_words

Verdict = Literal['yes', 'partly', 'no']

CONDITIONS = get_args(Condition)
_KINDS = {kind.__name__.lower(): kind for kind in (Ref, *CONDITIONS)}
# Our rules have five levels. The bound is for files that are damaged.
_MAX_DEPTH = 10


class Rule(NamedTuple):
  """The conditions under which a claim is reproduced.

  Attributes:
    yes: the condition of 'yes'.
    partly: the condition of 'partly'; None if that is no outcome.
  """

  yes: Condition
  partly: Condition | None = None

  def verdict(self, measured: Measured) -> Verdict:
    """Return the outcome for some measured quantities.

    Raises:
      ValueError: if the rule names a quantity or a case that is missing.
    """
    if holds(self.yes, measured):
      return 'yes'
    partly = self.partly is not None and holds(self.partly, measured)
    return 'partly' if partly else 'no'

  def sentence(self, measured: Measured | None = None) -> str:
    """Return the rule in words; numbers have the units of `measured`."""
    told = [f'yes if {in_words(self.yes, measured)}']
    if self.partly is not None:
      told.append(f'partly if {in_words(self.partly, measured)}')
    return '; '.join([*told, 'otherwise no'])


def to_json(rule: Any) -> Any:
  """Encode a rule, or a part of one; defaults are left out.

  Example:
    >>> from experiments.papers.conditions import at_least
    >>> to_json(at_least('gain', 2.0))
    {'kind': 'compare', 'left': 'gain', 'relation': '>=', 'right': 2.0}
  """
  if isinstance(rule, Ref) and rule == Ref(rule.quantity):
    return rule.quantity
  if not hasattr(rule, '_fields'):
    return [to_json(r) for r in rule] if isinstance(rule, tuple) else rule
  kind = {} if isinstance(rule, Rule) else {'kind': type(rule).__name__.lower()}
  defaults = rule._field_defaults
  fields = {k: v for k, v in rule._asdict().items() if defaults.get(k) != v}
  if isinstance(rule, Rule):
    fields = {k: v for k, v in fields.items() if v is not None}
  return {**kind, **{k: to_json(v) for k, v in fields.items()}}


def from_json(value: Any) -> Rule:
  """Decode a rule.

  Raises:
    ValueError: if the value has another form.
  """
  if not isinstance(value, dict) or 'yes' not in value:
    raise ValueError('a rule must say when the answer is yes')
  partly = value.get('partly')
  return Rule(
    _condition(value['yes']), None if partly is None else _condition(partly)
  )


def _condition(value: Any, depth: int = 0) -> Condition:
  made = _decode(value, depth)
  if not isinstance(made, CONDITIONS):
    raise ValueError(f'expected a condition, got {value!r:.60}')
  return made


def _decode(value: Any, depth: int) -> Any:
  """Decode a part of a rule, by its field `kind`."""
  if not isinstance(value, dict) or value.get('kind') not in _KINDS:
    raise ValueError(f'expected a part of a rule, got {value!r:.60}')
  if depth > _MAX_DEPTH:
    raise ValueError('the rule is nested too deeply')
  kind = _KINDS[value['kind']]
  fields = {k: v for k, v in value.items() if k in kind._fields}
  if missing := {*kind._fields} - {*fields, *kind._field_defaults}:
    raise ValueError(f'{value["kind"]} has no {", ".join(sorted(missing))}')
  return kind(**{k: _field(k, v, depth) for k, v in fields.items()})


def _field(name: str, value: Any, depth: int) -> Any:
  """Decode a field of a part of a rule, by its name."""
  if name == 'condition':
    return _condition(value, depth + 1)
  if name == 'conditions' and isinstance(value, list) and value:
    return tuple(_condition(v, depth + 1) for v in value)
  if name == 'cases' and isinstance(value, list):
    return tuple(map(_text, value))
  if name in ('left', 'right', 'target'):
    return _decoded_term(value, depth, number=name != 'left')
  if name in ('absolute', 'relative', 'errors', 'times', 'share'):
    return _number(value)
  choices = {
    'relation': get_args(Relation),
    'seeds': get_args(Seeds),
    'direction': get_args(Direction),
  }
  if name in choices and value not in choices[name]:
    raise ValueError(f'{name} must be one of {", ".join(choices[name])}')
  return _text(value)


def _decoded_term(value: Any, depth: int, *, number: bool) -> Ref | float:
  if isinstance(value, str):
    return Ref(value)
  if number and not isinstance(value, dict):
    return _number(value)
  made = _decode(value, depth + 1)
  if not isinstance(made, Ref):
    raise ValueError(f'expected a quantity, got {value!r:.60}')
  return made


def _number(value: Any) -> float:
  if isinstance(value, int | float) and not isinstance(value, bool):
    return float(value)
  raise ValueError(f'expected a number, got {value!r:.60}')


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(f'expected text, got {value!r:.60}')
  return value

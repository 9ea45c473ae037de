"""Rules of claims: sentences, verdicts and files."""

import json
import math

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers import claims, quantities, rules
from experiments.papers.claims import Claim
from experiments.papers.conditions import (
  All,
  Either,
  Order,
  Ref,
  above,
  at_least,
  at_most,
  below,
  every,
  holds,
  mostly,
  some,
  within,
)
from experiments.papers.quantities import Measurement, by_case, number
from experiments.papers.rules import Rule
from experiments.papers.wording import in_words
from experiments.running.records import writing

MEASURED = {
  'loss': by_case({'a': [1.0, 3.0], 'b': [2.0, 6.0], 'c': [5.0, 5.0]}, 'nats'),
  'limit': by_case({'a': 2.0, 'b': 3.0}),
  'law': number(1.0),
  'gain': number(Measurement(1.3, error=0.2), '%'),
  'time': by_case({'a': 4.0, 'b': math.inf, 'c': math.nan}),
}
LOSS_A, LOSS_B = Ref('loss', 'a'), Ref('loss', 'b')
# Condition, whether it holds, its words.
CONDITIONS = (
  (below('law', 1), False, 'law < 1'),
  (at_most('law', 1), True, 'law ≤ 1'),
  (above('law', 1), False, 'law > 1'),
  (at_least('gain', 1), True, 'gain ≥ 1%'),
  (above('gain', Ref('law', times=1.5)), False, 'gain > 1.5 times law'),
  (below(LOSS_A, LOSS_B), True, 'loss for a < that for b'),
  (
    below(LOSS_A, LOSS_B, seeds='each'),
    True,
    'loss for a < that for b, seed by seed',
  ),
  (
    below(LOSS_A, LOSS_B, seeds='all'),
    False,
    'every seed of loss for a < every seed of that for b',
  ),
  # Of the four pairs 1 < 2, 1 < 6 and 3 < 6 hold.
  (
    mostly(below(LOSS_A, LOSS_B), 0.75),
    True,
    'loss for a < that for b for at least 75% of the pairs of seeds',
  ),
  (mostly(below(LOSS_A, LOSS_B), 0.8), False, None),
  (
    mostly(below(LOSS_A, 2.5), 0.5),
    True,
    'loss for a < 2.5 nats for at least 50% of the seeds',
  ),
  (below(LOSS_A, 2.5, seeds='each'), False,
   'loss for a < 2.5 nats, seed by seed'),
  (within('gain', 1, absolute=0.1), False, 'gain is within 0.1% of 1%'),
  (
    within('gain', Ref('law'), relative=0.1, errors=2),
    True,
    'gain is within 10% or 2 standard errors of law',
  ),
  (Order('loss', ('a', 'b', 'c'), 'rise'), True,
   'the values of loss rise through a, b then c'),
  (Order('loss', ('a', 'b'), 'fall'), False,
   'the values of loss fall through a then b'),
  (Order('loss', ('a', 'b'), 'rise', 'each'), True,
   'the values of loss rise through a then b, seed by seed'),
  (Order('loss', ('a', 'b', 'c'), 'rise', 'each'), False, None),
  (Order('loss', ('a', 'b'), 'rise', 'all'), False,
   'all seeds of loss rise through a then b'),
  (Order('loss', (), 'fall'), False, None),
  # An event that never happened is later than any other; NaN is not a number.
  (Order('time', ('a', 'b'), 'rise'), True, None),
  (Order('time', ('b', 'b'), 'fall'), False, None),
  (at_most(Ref('time', 'c'), 1e9), False, None),
  (every(at_most('loss', 5)), True, 'in every case: loss ≤ 5 nats'),
  (every(at_most('loss', 'limit')), False, 'in every case: loss ≤ limit'),
  (some(at_most('loss', 'limit')), True, 'in some case: loss ≤ limit'),
  (every(at_most('loss', 2), ['a']), True, 'for a: loss ≤ 2 nats'),
  (every(at_most('loss', 2), ['a', 'b']), False,
   'for each of a and b: loss ≤ 2 nats'),
  (some(at_most('loss', 2), ['b', 'c']), False,
   'for one of b or c: loss ≤ 2 nats'),
  (
    All((above('law', 0), every(above('loss', 0)))),
    True,
    'law > 0 and (in every case: loss > 0 nats)',
  ),
  (Either((above('law', 1), above('gain', 1))), True, 'law > 1 or gain > 1%'),
  (
    every(All((above('loss', 'limit'), above('loss', 1)))),
    False,
    'in every case: loss > limit and loss > 1 nats',
  ),
)  # fmt: skip


class ConditionTest(parameterized.TestCase):
  @parameterized.parameters(*CONDITIONS)
  def test_is_evaluated_and_put_into_words(self, condition, expected, words):
    self.assertIs(holds(condition, MEASURED), expected)
    if words:
      self.assertEqual(in_words(condition, MEASURED), words)
    kept = json.loads(json.dumps(rules.to_json(Rule(condition))))
    self.assertEqual(rules.from_json(kept), Rule(condition))

  def test_no_case_is_not_every_case(self):
    measured = {'loss': by_case({})}
    self.assertFalse(holds(every(below('loss', 1)), measured))
    self.assertFalse(holds(some(below('loss', 1)), measured))

  @parameterized.parameters(
    (below('foo', 1), "needs 'foo'"),
    (every(below('foo', 1)), "needs 'foo'"),
    (below('loss', 1), "'loss' has no case ''"),
    (below(Ref('loss', 'z'), 1), "'loss' has no case 'z'"),
    (every(below(LOSS_A, 1)), 'must be named'),
    (below(LOSS_A, Ref('three', ''), seeds='each'), 'other seeds'),
  )
  def test_a_rule_that_does_not_fit_is_refused(self, condition, message):
    measured = {**MEASURED, 'three': number([1.0, 2.0, 3.0])}
    with self.assertRaisesRegex(ValueError, message):
      holds(condition, measured)


class RuleTest(parameterized.TestCase):
  RULE = Rule(at_least('gain', 2), at_least('gain', 1))

  @parameterized.parameters((2.0, 'yes'), (1.5, 'partly'), (0.9, 'no'))
  def test_has_three_outcomes(self, gain, verdict):
    self.assertEqual(self.RULE.verdict({'gain': number(gain)}), verdict)

  def test_number_of_the_sentence_is_that_of_the_verdict(self):
    for bound in (0.5, 2.0):
      rule = Rule(at_least('gain', bound))
      self.assertEqual(
        rule.sentence(), f'yes if gain ≥ {bound:g}; otherwise no'
      )
      self.assertEqual(
        rule.verdict({'gain': number(1.0)}), 'yes' if bound < 1 else 'no'
      )

  @parameterized.parameters(
    ({}, 'when the answer is yes'),
    ({'yes': 'gain'}, 'a part of a rule'),
    ({'yes': {'kind': 'gain'}}, 'a part of a rule'),
    ({'yes': {'kind': 'ref', 'quantity': 'gain'}}, 'a condition'),
    ({'yes': {'kind': 'compare', 'left': 'gain'}}, 'has no relation, right'),
    ({'yes': {'kind': 'compare', 'left': 1, 'relation': '<', 'right': 1}},
     'a part of a rule'),
    ({'yes': {'kind': 'compare', 'left': 'a', 'relation': '=', 'right': 1}},
     'must be one of <'),
    ({'yes': {'kind': 'compare', 'left': 'a', 'relation': '<', 'right': []}},
     'a number'),
    ({'yes': {'kind': 'all', 'conditions': []}}, 'text'),
    ({'yes': {'kind': 'order', 'quantity': 'a', 'cases': [1],
              'direction': 'rise'}}, 'text'),
  )  # fmt: skip
  def test_another_form_is_refused(self, value, message):
    with self.assertRaisesRegex(ValueError, message):
      rules.from_json(value)

  def test_deep_nesting_is_refused(self):
    value = rules.to_json(at_least('gain', 1))
    for _ in range(20):
      value = {'kind': 'every', 'condition': value}
    with self.assertRaisesRegex(ValueError, 'too deeply'):
      rules.from_json({'yes': value})


class ClaimTest(parameterized.TestCase):
  CLAIM = Claim(
    'It is faster.',
    claims.STATED,
    MEASURED,
    Rule(every(below('loss', 'limit')), some(below('loss', 'limit'))),
    'two seeds',
  )

  def kept(self):
    return json.loads(writing.to_json(claims.to_json(self.CLAIM)))

  def test_comes_back_from_its_file(self):
    back = claims.from_json(self.kept())
    np.testing.assert_equal(
      quantities.to_json(back.measured), quantities.to_json(MEASURED)
    )
    self.assertEqual(back._replace(measured=MEASURED), self.CLAIM)
    self.assertEqual(back.verdict, 'no')

  def test_verdict_of_a_file_is_not_believed(self):
    kept = {**self.kept(), 'verdict': 'yes'}
    self.assertEqual(claims.from_json(kept).verdict, 'no')
    kept['measured']['limit']['cases']['a'] = 2.5
    self.assertEqual(claims.from_json(kept).verdict, 'partly')

  @parameterized.parameters(
    ({'text': None}, 'text: expected text, got null'),
    ({'rule': 'yes'}, 'rule: expected an object'),
    ({'measured': {'loss': 1.0}}, 'expected an object, got 1.0'),
    ({'measured': {}}, "needs 'loss'"),
    ({'measured': {'loss': {'cases': {'': 'high'}}}}, 'expected a number'),
    ({'measured': {'loss': {'cases': {'': {'seeds': 3}}}}}, 'must be a list'),
    ({'measured': {'loss': {'unit': 's'}}}, 'must have a unit and cases'),
  )
  def test_another_form_is_refused(self, changes, message):
    self.assertRegex(claims.check({**self.kept(), **changes}), message)
    self.assertIsNone(claims.check(self.kept()))

  def test_tables_have_every_number_once(self):
    single, crossed = self.CLAIM.tables()
    self.assertEqual(
      single.rows, [('law', '1', ''), ('gain', '1.3 ± 0.2', '%')]
    )
    self.assertEqual(crossed.head, ('case', 'loss, nats', 'limit', 'time'))
    self.assertEqual(
      crossed.rows,
      [
        ('a', '2 (1 to 3)', '2', '4'),
        ('b', '4 (2 to 6)', '3', 'never'),
        ('c', '5 (5 to 5)', '', 'unknown'),
      ],
    )

  def test_quantities_without_common_cases_have_their_own_tables(self):
    measured = {'a': by_case({'x': 1.0}), 'b': by_case({'y': 2.0})}
    heads = [table.head for table in quantities.tables(measured)]
    self.assertEqual(heads, [('case', 'a'), ('case', 'b')])


if __name__ == '__main__':
  absltest.main()

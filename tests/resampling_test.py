"""How much verdicts depend on the seeds."""

import math

from absl.testing import absltest
import numpy as np

from experiments.papers import resampling
from experiments.papers.conditions import Ref, below
from experiments.papers.quantities import by_case, number, of_seeds
from experiments.papers.rules import Rule

BETTER = Rule(below(Ref('loss', 'a'), Ref('loss', 'b')))


def fractions(a, b):
  return resampling.verdicts(BETTER, {'loss': by_case({'a': a, 'b': b})})


class InOrderTest(absltest.TestCase):
  def test_is_the_fraction_of_the_pairs(self):
    self.assertEqual(resampling.in_order([1, 2], [3, 4, 5]), 1)
    self.assertEqual(resampling.in_order([3, 4, 5], [1, 2]), 0)
    self.assertEqual(resampling.in_order([1, 3], [1, 2]), (0.5 + 1) / 4)

  def test_a_run_that_never_ends_is_last(self):
    self.assertEqual(resampling.in_order([1.0], [math.inf]), 1)


class VerdictsTest(absltest.TestCase):
  def test_of_methods_far_apart_is_sure(self):
    self.assertEqual(fractions([1, 2, 3], [4, 5, 6]), {'yes': 1})
    self.assertEqual(fractions([4, 5, 6], [1, 2, 3]), {'no': 1})

  def test_is_the_bootstrap_of_the_mean(self):
    # Differences -1, -1, 2, with mean 0. A draw of three is below 0 unless it
    # has a 2: (2/3)^3 = 8/27. It has mean 0 with one 2, which is no.
    found = fractions([0, 0, 3], [1, 1, 1])
    self.assertAlmostEqual(found['yes'], 8 / 27, delta=0.1)
    self.assertAlmostEqual(sum(found.values()), 1)

  def test_seeds_are_drawn_together(self):
    # Each seed of b is 1 above that of a, which no joint draw can change.
    a = np.array([0.0, 10.0, 20.0])
    self.assertEqual(fractions(a, a + 1), {'yes': 1})

  def test_numbers_that_are_no_means_move_with_their_seeds(self):
    ratio = number(of_seeds([1.0, 1.0, 4.0], value=1.9))
    found = resampling.verdicts(Rule(below('ratio', 1.5)), {'ratio': ratio})
    self.assertAlmostEqual(found['yes'], 8 / 27, delta=0.1)

  def test_needs_three_seeds(self):
    self.assertEqual(fractions([1, 2], [3, 4]), {})
    self.assertEqual(
      resampling.verdicts(Rule(below('x', 1)), {'x': number(0)}), {}
    )

  def test_needs_three_seeds_of_every_number_that_has_seeds(self):
    measured = {'x': number([1.0, 2.0, 3.0]), 'limit': number(4.0)}
    rule = Rule(below('x', Ref('limit')))
    self.assertEqual(resampling.num_seeds(measured), 3)
    self.assertEqual(resampling.verdicts(rule, measured), {'yes': 1})
    measured['limit'] = number([4.0])
    self.assertEqual(resampling.num_seeds(measured), 1)
    self.assertEqual(resampling.verdicts(rule, measured), {})


class PercentagesTest(absltest.TestCase):
  def test_their_sum_is_100(self):
    for shares, whole in (
      ((0.545, 0.455), (55, 45)),
      ((0.335, 0.335, 0.33), (34, 33, 33)),
      ((0.29, 0.71), (29, 71)),
      ((1.0,), (100,)),
    ):
      found = resampling.percentages(dict(zip(('yes', 'partly', 'no'), shares)))
      self.assertEqual(tuple(found.values()), whole)


if __name__ == '__main__':
  absltest.main()

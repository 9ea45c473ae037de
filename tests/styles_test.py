"""Tests of `experiments/tools/styles.py`."""

import itertools

from absl.testing import absltest, parameterized
import numpy as np

from experiments.running.flags import algorithm_flags
from experiments.tools import styles

PERIODS = [f'pr_sgd period={p}' for p in (4, 16, 64)]


class MethodsTest(parameterized.TestCase):
  def test_every_algorithm_has_a_style_that_no_other_has(self):
    self.assertEqual(set(styles.METHODS), set(algorithm_flags.ALGORITHMS))
    found = styles.looks({name: name for name in styles.METHODS})
    self.assertLen(set(found.values()), len(styles.METHODS))
    for name, style in found.items():
      self.assertEqual(style, styles.method(name))
      self.assertLess(styles.lightness(style.color), 75)  # seen on white

  def test_a_style_depends_on_no_other_method_and_no_order(self):
    one = {'ssgd': 'ssgd', **dict.fromkeys(PERIODS, 'pr_sgd')}
    more = {'k_avg': 'k_avg', **dict(reversed(one.items())), 'own': 'm:fn'}
    found, again = styles.looks(one), styles.looks(more)
    self.assertEqual({k: again[k] for k in one}, found)
    self.assertEqual(list(again), list(more))
    # By itself a method has the color of its first variant.
    self.assertEqual(found[PERIODS[0]], styles.method('pr_sgd'))

  @parameterized.parameters('ssgd', 'pr_sgd', 'k_avg', 'hier_avg', 'slowmo')
  def test_variants_are_shades_in_the_order_of_the_values(self, algorithm):
    labels = [f'period={p}' for p in (128, 4, 1e-3, 16, 0.5)]
    found = styles.looks(dict.fromkeys(labels, algorithm))
    rising = [f'period={p}' for p in (1e-3, 0.5, 4, 16, 128)]
    steps = np.diff([styles.lightness(found[k].color) for k in rising])
    # All of one sign, and large enough to distinguish neighbors.
    self.assertGreater(np.abs(steps).min(), 5)
    self.assertLen(set(np.sign(steps)), 1)
    self.assertLen({found[k].marker for k in labels}, 1)
    # The order of the text would be another.
    self.assertNotEqual(sorted(labels), rising)

  def test_many_variants_differ(self):
    found = styles.looks({f'rate={i}': 'k_avg' for i in range(60)})
    self.assertLen(set(found.values()), 60)

  def test_algorithms_of_ones_own_differ_and_are_no_known_ones(self):
    own = [f'my.module:fn{i}' for i in range(12)]
    found = styles.looks({name: name for name in (*own, *styles.METHODS)})
    self.assertLen(set(found.values()), len(found))
    self.assertEqual(found[own[0]].color, styles.OWN_COLOR)
    # The same by itself, in another process too.
    self.assertEqual(
      styles.method('my.module:fn'),
      styles.Style(styles.OWN_COLOR, 'H', '-'),
    )


class ValuesTest(absltest.TestCase):
  def test_ordinal_colors_get_lighter_with_the_value(self):
    found = styles.ordinal([16, 1, 4, 16])
    self.assertEqual(list(found), [1, 4, 16])
    lightness = [styles.lightness(color) for color in found.values()]
    self.assertEqual(lightness, sorted(lightness))
    self.assertLess(lightness[-1], 80)
    self.assertGreater(np.diff(lightness).min(), 15)

  def test_categories_differ_in_color_and_marker(self):
    found = styles.categories('abcdef').values()
    for one, other in itertools.combinations(found, 2):
      self.assertNotEqual(one.color, other.color)
      self.assertNotEqual(one.marker, other.marker)
    many = styles.categories([str(i) for i in range(20)])
    self.assertLen(set(many.values()), 20)

  def test_lightness_is_that_of_the_commission(self):
    # From the formula of CIE 1976: 18.4% of the light of white is half.
    for color, expected in (
      ('#000000', 0), ('#FFFFFF', 100), ('#777777', 50.0), ('#FF0000', 53.24),
    ):  # fmt: skip
      self.assertAlmostEqual(styles.lightness(color), expected, delta=0.1)


if __name__ == '__main__':
  absltest.main()

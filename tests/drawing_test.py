"""Tests of `experiments/tools/drawing.py`, and of `tests/looks.py` itself."""

import doctest
import pathlib
import tempfile

from absl.testing import absltest, parameterized
from matplotlib.figure import Figure
import numpy as np

from experiments.tools import drawing, figure_files, measures, styles
from tests import looks

BLUE, RED = styles.method('pr_sgd'), styles.method('k_avg')


def panel(size=(5, 3.5)):
  """A figure with two curves, and its panel."""
  figure = Figure(figsize=size, layout='constrained')
  axis = figure.subplots()
  drawing.curve(axis, [1, 2], [1, 2], BLUE, label='one')
  drawing.curve(axis, [1, 2], [2, 1], RED, label='other')
  return figure, axis


class DrawingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(drawing.look())

  def test_a_band_is_from_the_least_to_the_most_of_the_seeds(self):
    axis = Figure().subplots()
    drawing.seeds(axis, [1, 2], [[1, 2], [3, 2]], BLUE)
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [2, 2])
    (band,) = axis.collections
    corners = {tuple(v) for v in band.get_paths()[0].vertices}
    self.assertEqual(corners, {(1, 1), (1, 3), (2, 2)})
    drawing.seeds(axis, [1, 2], [[1, 2]], RED)
    self.assertLen(axis.collections, 1)  # one seed has no band

  def test_a_spread_has_both_ends_of_the_range(self):
    axis = Figure().subplots()
    drawing.spread(axis, [1], [[1, 2, 6]], BLUE)
    (bar,) = axis.collections
    np.testing.assert_array_equal(bar.get_segments()[0], [[1, 1], [1, 6]])

  def test_an_axis_with_a_place_for_zero_shows_it_and_says_so(self):
    figure, axis = panel()
    x, y = drawing.split_at_zero([0, 0, 0.5, 20], [1, 2, 3, 4])
    # A gap, where a line would be neither straight nor measured.
    np.testing.assert_array_equal(x, [0, 0, np.nan, 0.5, 20])
    drawing.curve(axis, x, y, styles.method('ssgd'))
    added = drawing.zero_and_log(axis, 'x', 0.5)
    self.assertEqual(added, 'linear below 0.5')
    self.assertEqual(axis.get_xscale(), 'symlog')
    left, right = axis.get_xlim()
    self.assertLess(left, 0)
    self.assertGreater(right, 20)
    np.testing.assert_array_equal(axis.get_xticks(), [0, 1, 10])
    self.assertEqual(looks.faults(figure), [])

  @parameterized.parameters(
    ([2.0, 30.0], 'log', ['2', '5', '10', '20']),
    ([-1.0, 0.0], 'linear', None),
  )
  def test_an_axis_is_logarithmic_where_it_can_be(self, y, scale, ticks):
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 2], y)
    drawing.log(axis, 'y')
    self.assertEqual(axis.get_yscale(), scale)
    figure.draw_without_rendering()
    shown = [t.get_text() for t in axis.get_yticklabels()]
    if ticks is not None:
      self.assertContainsSubset(ticks, shown)

  @parameterized.parameters(1, 4, 40)
  def test_a_legend_below_fits_whatever_is_in_it(self, count):
    figure = Figure(figsize=(5, 3.5), layout='constrained')
    axis = figure.subplots()
    names = [f'k_avg period={i} learning_rate=0.01' for i in range(count)]
    for name, style in styles.looks(dict.fromkeys(names, 'k_avg')).items():
      drawing.curve(axis, [1, 2], [1, 2], style, label=name)
    drawing.legend_below(figure)
    self.assertEqual(looks.faults(figure), [])
    figure.draw_without_rendering()
    # The panel keeps its size.
    self.assertGreater(axis.get_window_extent().height / figure.dpi, 2)

  def test_a_file_has_the_digest_of_what_it_shows(self):
    with tempfile.TemporaryDirectory() as root:
      path = pathlib.Path(root) / 'new' / 'figure.png'
      figure, axis = panel()
      figure_files.save(figure, path)
      kept = figure_files.read_digest(path)
      self.assertEqual(kept, figure_files.digest(panel()[0]))
      axis.set_title('another')
      self.assertNotEqual(kept, figure_files.digest(figure))
      for ending in ('svg', 'pdf'):
        figure_files.save(figure, path.with_suffix(f'.{ending}'))
      with self.assertRaisesRegex(ValueError, 'Format .* is not supported'):
        figure_files.save(figure, path.with_suffix('.foo'))


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters(drawing, figure_files, measures, styles)
  def test_examples_are_true(self, module):
    self.assertEqual(doctest.testmod(module).failed, 0)


class LooksTest(absltest.TestCase):
  """The faults that the other tests look for are found where they are."""

  def setUp(self):
    super().setUp()
    self.enterContext(drawing.look())

  def test_a_good_figure_has_none(self):
    figure, axis = panel()
    axis.legend(loc='center left')
    self.assertEqual(looks.faults(figure), [])

  def test_each_fault_is_found(self):
    figure, axis = panel()
    axis.set_title('small', fontsize=7)
    axis.set_ylabel('longer than the panel is high' * 3)
    axis.text(1.5, 1.2, 'some words')
    axis.text(1.5, 1.2, 'other words')
    drawing.curve(axis, [1, 2], [1, 1], BLUE, label='alike')
    found = '\n'.join(looks.faults(figure))
    self.assertIn("'small' has 7 points", found)
    self.assertRegex(found, 'longer than .* is cut by the edge')
    self.assertIn("'some words' is over 'other words'", found)
    self.assertIn("'one' looks like 'alike'", found)
    figure, axis = panel()
    axis.legend(loc='upper right')
    self.assertEqual(looks.faults(figure), ["the legend of '' is over points"])


if __name__ == '__main__':
  absltest.main()

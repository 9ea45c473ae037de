"""Tests of `experiments/figures.py`."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized
import matplotlib.image
import numpy as np

from experiments import figures
from tests import written_runs


class FiguresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, **options):
    return written_runs.write(self.root, name, **options)

  def read(self):
    return figures.read_runs(figures.find_runs([self.root]))

  def test_a_band_is_over_the_seeds_of_a_label(self):
    self.write('a', seed=0, losses=(0.8, 0.5))
    self.write('b', seed=1, losses=(0.4, 0.3))
    self.write('c', seed=0, label='k_avg period=2', losses=(1.0, 0.9))
    one, other = figures.curves(self.read(), 'step', 'loss')
    self.assertEqual((one.label, one.seeds), ('ssgd', 2))
    np.testing.assert_array_equal(one.x, [10, 20])
    np.testing.assert_allclose(one.y, [0.6, 0.4])
    np.testing.assert_allclose(one.low, [0.4, 0.3])
    np.testing.assert_allclose(one.high, [0.8, 0.5])
    self.assertEqual((other.label, other.seeds), ('k_avg period=2', 1))
    np.testing.assert_array_equal(other.low, other.high)
    deviation = figures.curves(self.read(), 'step', 'loss', 'std')[0]
    np.testing.assert_allclose(deviation.low, [0.4, 0.3])
    deviation = figures.curves(self.read(), 'step', 'loss', 'none')[0]
    np.testing.assert_array_equal(deviation.low, deviation.high)

  @parameterized.parameters(
    ('step', [20, 40]),
    ('epoch', [0.2, 0.4]),
    ('rounds', [20, 40]),
    ('bytes_sent', [20, 40]),  # MiB
    ('modelled_seconds', [10, 20]),
    ('seconds', [20, 40]),
  )
  def test_points_are_the_records_that_have_the_measure(self, x, expected):
    self.write('a', losses=(0.8, 0.6, 0.4, 0.2))
    (curve,) = figures.curves(self.read(), x, 'test_accuracy')
    np.testing.assert_allclose(curve.x, expected)
    np.testing.assert_allclose(curve.y, [40, 80])  # percent

  def test_settings_that_differ_are_in_the_label(self):
    links = {'links': {'global': [0.2, 1e9]}}
    self.write('a', losses=(0.8,))
    self.write('b', losses=(0.8,), learning_rate=0.2)
    self.write('c', losses=(0.8,), network=links, data='cd')
    labels = [c.label for c in figures.curves(self.read(), 'step', 'loss')]
    first, second = '0.1,1e+09', '0.2,1e+09'
    self.assertEqual(
      labels,
      [
        f'ssgd learning_rate={rate} network.links.global={link}'
        for rate, link in (('0.1', first), ('0.2', first), ('0.1', second))
      ],
    )

  def test_a_run_that_is_there_twice_is_refused(self):
    self.write('a', losses=(0.8,))
    self.write('b', losses=(0.7,))
    with self.assertRaisesRegex(
      ValueError, "'ssgd' with seed 0 is there twice"
    ):
      figures.curves(self.read(), 'step', 'loss')

  def test_a_curve_ends_where_a_seed_diverged(self):
    self.write('a', seed=0, losses=(0.8, 0.6, 0.4))
    self.write('b', seed=1, losses=(0.7,), failed='not finite')
    (curve,) = figures.curves(self.read(), 'step', 'loss')
    np.testing.assert_array_equal(curve.x, [10])
    self.assertEqual((curve.seeds, curve.diverged), (2, 1))

  @parameterized.parameters(
    ("unknown --x=time; use one of step", ('time', 'loss', 'range')),
    ("unknown --y=error; use one of loss", ('step', 'error', 'range')),
    ("unknown --band=half; use one of range", ('step', 'loss', 'half')),
  )  # fmt: skip
  def test_unknown_names_are_refused(self, message, names):
    with self.assertRaisesRegex(ValueError, message):
      figures.curves([], *names)

  def test_a_directory_without_runs_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'there is no run in'):
      figures.find_runs([self.root])

  def test_runs_are_found_once(self):
    below = self.write('a', losses=(0.8,))
    self.assertEqual(figures.find_runs([self.root, below]), [below])

  def test_draws_every_panel(self):
    self.write('a', seed=0, losses=(0.8, 0.5, 0.3, 0.2))
    self.write('b', seed=1, losses=(0.4, 0.3, 0.2, 0.1))
    self.write('c', label='k_avg', failed='not finite')
    path = self.root / 'new' / 'figure.png'
    small = self.root / 'small.png'
    figures.draw(self.read(), path, x=list(figures.X), y=list(figures.Y))
    figures.draw(self.read(), small, x=['step'], y=['loss'])
    shapes = [matplotlib.image.imread(p).shape for p in (path, small)]
    self.assertEqual(shapes[0][1], 6 * shapes[1][1])  # columns of a width
    pixels = matplotlib.image.imread(path)[..., :3]
    self.assertGreater(np.ptp(pixels, axis=-1).max(), 0.5)  # not grey alone


if __name__ == '__main__':
  absltest.main()

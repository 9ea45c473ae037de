"""Tests of `experiments/papers/t07_heterogeneous.py`."""

from absl.testing import absltest
import numpy as np

from experiments.papers import t07_heterogeneous as heterogeneous


class SecondsToTest(absltest.TestCase):
  def test_is_the_first_time_or_never(self):
    curves = np.array([[3.0, 1, 2, 0], [3, 3, 3, 3], [1, 1, 1, 1]])
    clock = np.array([0.5, 1, 1.5, 2])
    found = heterogeneous.seconds_to(curves, clock, 1.0)
    self.assertEqual(found.tolist(), [1, np.inf, 0.5])


class SpeedupTest(absltest.TestCase):
  def test_has_the_ratio_of_the_means_and_of_each_seed(self):
    found = heterogeneous._speedup(np.array([4.0, 2.0]), np.array([2.0, 2.0]))
    self.assertEqual(found, (1.5, (2, 1), None))


if __name__ == '__main__':
  absltest.main()

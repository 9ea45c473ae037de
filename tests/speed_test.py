"""Tests of `experiments/papers/speed.py`."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers import speed


class SpeedTest(parameterized.TestCase):
  def test_target_is_the_least_so_far(self):
    losses = [4.0, 2.0, 3.0, 2.5, 1.0, 0.5]
    self.assertEqual(speed.target_loss(losses, 0.6), 2.0)
    self.assertEqual(speed.target_loss(losses, 1.0), 0.5)
    self.assertEqual(speed.target_loss(losses, 0.1), 4.0)

  def test_target_is_not_later_than_its_share(self):
    # Evaluations at steps 16, 32, ... 640: 35% are 224, and 36% are 230.4.
    losses = -16.0 * np.arange(1, 41)
    self.assertEqual(speed.target_loss(losses, 0.35), -224)
    self.assertEqual(speed.target_loss(losses, 0.36), -224)
    self.assertEqual(speed.target_loss(losses, 0.375), -240)
    for count in range(1, 200):
      for share in (0.1, 0.35, 0.6, 1.0):
        within = speed.count_within(share, count)
        self.assertLessEqual(within / count, max(share, 1 / count) + 1e-9)
        self.assertGreater((within + 1) / count, share)

  @parameterized.parameters(
    (5.0, 10.0),  # at the first point
    (2.0, 20.0),  # at a point
    (3.0, 15.0),  # between two
    (1.5, 35.0),  # after the loss went up and came down again
    (0.5, float('inf')),
  )
  def test_when_a_loss_is_reached(self, target, x):
    found = speed.when_reached([10, 20, 30, 40], [4.0, 2.0, 3.0, 1.0], target)
    self.assertEqual(found, x)

  def test_runs_that_are_not_numbers_do_not_arrive(self):
    found = speed.when_reached([1, 2], [4.0, float('nan')], 5.0)
    self.assertEqual(found, float('inf'))


if __name__ == '__main__':
  absltest.main()

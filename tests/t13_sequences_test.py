"""Tests of `experiments/papers/t13_sequences.py`."""

from absl.testing import absltest
import numpy as np

from experiments.papers import t13_sequences as sequences


class ScheduleTest(absltest.TestCase):
  def test_rate_rises_in_the_warmup_and_falls_at_the_drops(self):
    n = sequences.NUM_STEPS
    steps = (0, 18, 37, n // 2 - 1, n // 2, 3 * n // 4)
    np.testing.assert_allclose(
      [float(sequences.falling(step)) for step in steps],
      [1 / 38, 0.5, 1, 1, 0.1, 0.01],
      rtol=1e-5,
    )


class ClaimTest(absltest.TestCase):
  def verdict(self, losses):
    """The verdict on losses that fall to a value, by period."""
    points = sequences.NUM_STEPS // sequences.EVERY
    fall = np.linspace(1, 0, points)
    curves = {
      'loss': [[(fall**power).tolist()] * 3 for power in losses],
      'test_accuracy': np.full((4, 3, points), 0.9),
    }
    reference = [fall.tolist()] * 3
    claim = sequences._claim(
      sequences.CONSTANT, 'K-AVG', sequences.RATES[0], curves, reference
    )
    self.assertFalse(claim.is_of_papers)
    self.assertIn('(at the edge)', claim.setting)
    return claim.verdict

  def test_moderate_periods_must_be_flat(self):
    self.assertEqual(self.verdict([1, 1, 1, 0.3]), 'yes')
    self.assertEqual(self.verdict([1, 1, 0.3, 0.3]), 'partly')
    self.assertEqual(self.verdict([1, 0.3, 0.3, 0.3]), 'no')

  def test_a_task_that_the_longest_period_solves_is_no_test(self):
    self.assertEqual(self.verdict([1, 1, 1, 1]), 'no')


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/t06_time_varying.py`."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers import t06_time_varying as time_varying
import prsgd_jax as pr


class TimeVaryingTest(parameterized.TestCase):
  @parameterized.parameters((1, 10), (1, 1000), (4, 1000), (4, 1001))
  def test_epochs_are_as_many_as_are_needed(self, n, num_steps):
    epochs = time_varying.epochs_of(n, num_steps)
    lengths = pr.schedules.theory_schedule(n, epochs).epoch_lengths
    self.assertGreaterEqual(sum(lengths), num_steps)
    self.assertLess(sum(lengths[:-1]), num_steps)

  def test_slope_of_a_power_is_its_exponent(self):
    lengths = (10, 100, 1000, 5000)
    powers = np.array([np.power(lengths, -0.5), 3 * np.power(lengths, 0.75)])
    found = time_varying.slope(lengths, powers)
    np.testing.assert_allclose(found, [-0.5, 0.75], atol=1e-12)


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/t04_dpsgd_large_rate`: counts and phases."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers.t04_dpsgd_large_rate import mnist, trace, window

SEEDS = len(mnist.SEEDS)


def losses(num_trained):
  """The final losses of all seeds, some of which trained."""
  return np.where(np.arange(SEEDS) < num_trained, 0.3, 2.3)


def verdicts(**trained):
  """The verdicts on methods by how many seeds they train, others all."""
  curves = {
    name: [
      [[float(x)] * 10 for x in losses(trained.get(name[:4], SEEDS))]
      for _ in window.RATES
    ]
    for name in mnist.METHODS
  }
  return [claim.verdict for claim in window.claims(curves)]


class WindowTest(parameterized.TestCase):
  def test_counts_are_means_over_the_seeds(self):
    self.assertEqual(window.trained(losses(3)).mean(), 3)

  @parameterized.parameters((0, 'yes'), (2, 'yes'), (3, 'partly'), (8, 'no'))
  def test_ssgd_must_fail(self, ssgd, verdict):
    self.assertEqual(verdicts(SSGD=ssgd)[0], verdict)

  def test_full_averages_may_fail(self):
    self.assertEqual(verdicts(SSGD=1)[1], 'yes')
    self.assertEqual(verdicts(SSGD=1, **{'W = ': 2})[1], 'partly')
    none = {'W = ': 0, 'PR-S': 0}
    self.assertEqual(verdicts(SSGD=1, **none)[1], 'no')


class TraceTest(absltest.TestCase):
  def points(self, rough, calm):
    loss = [2.0] * 3 + [0.2] * 3
    return [
      {
        'step': 40 * (i + 1),
        'loss': one,
        'alpha_e': 0.1 if one > 1 else 1.0,
        'ssgd_noise': 1.0,
        'landscape_noise': rough if one > 1 else calm,
        'smoothness': 2.0,
        'smoothed': 1.0 if one > 1 else 2.0,
      }
      for i, one in enumerate(loss)
    ]

  def test_noise_by_phase(self):
    def noise(rough, calm):
      runs = {'n = 5': [self.points(rough, calm)] * 3}
      return trace._noise_claim(runs, '').verdict

    self.assertEqual(noise(50, 0.1), 'yes')
    self.assertEqual(noise(4, 1), 'partly')
    self.assertEqual(noise(1, 1), 'no')

  def test_smoothing_is_the_ratio_of_eigenvalues(self):
    claim = trace._smoothing_claim({'n = 5': [self.points(1, 1)]}, '')
    self.assertEqual(claim.verdict, 'yes')
    ratio = claim.measured['rough ratio'].cases['n = 5'].value
    self.assertEqual(ratio, 0.5)


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/t05_hier_avg/k_avg.py`: its comparisons."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers.t05_hier_avg import k_avg, training
from experiments.papers.t05_hier_avg.training import OURS_NAME, RARE_NAME


def verdicts(**changed):
  """Return the verdicts where all losses are equal but for some."""
  names = {'ours': OURS_NAME, 'rare': RARE_NAME}
  names |= {f'k{k}': f'K-AVG({k})' for k in training.K_AVG}
  spread = np.linspace(-0.01, 0.01, len(training.SEEDS))
  trained = {}
  for key, name in names.items():
    level = changed.get(key, 1.0)
    shape = (len(training.RATES), len(spread), 8)
    loss = np.broadcast_to((level + spread)[:, None], shape)
    trained[name] = {'loss': loss.tolist(), 'accuracy': (1 - loss / 2).tolist()}
  return [claim.verdict for claim in k_avg.claims(trained)]


class ComparisonTest(parameterized.TestCase):
  def test_better_for_every_pair_of_seeds(self):
    found = verdicts(ours=0.9, k32=1.2)[:4]
    self.assertEqual(found, ['yes', 'yes', 'yes', 'no'])
    self.assertEqual(verdicts(rare=0.9)[3], 'yes')

  def test_better_in_the_mean_only(self):
    found = verdicts(ours=0.995)[:4]
    self.assertEqual(found, ['partly', 'partly', 'partly', 'no'])

  def test_comparable_needs_a_worse_control(self):
    self.assertEqual(verdicts(ours=0.9, k32=1.05)[1], 'partly')
    self.assertEqual(verdicts(ours=1.05, k32=1.2)[1], 'yes')

  def test_worse(self):
    self.assertEqual(verdicts(ours=1.15)[:3], ['no', 'partly', 'no'])
    self.assertEqual(verdicts(ours=1.5)[:3], ['no', 'no', 'no'])

  def test_k_avg_by_its_k(self):
    self.assertEqual(verdicts()[4:], ['no', 'no'])
    self.assertEqual(verdicts(k4=0.9)[4:], ['yes', 'yes'])
    self.assertEqual(verdicts(k1=0.9, k32=1.1)[4:], ['no', 'yes'])
    self.assertEqual(verdicts(k32=0.9)[4:], ['yes', 'no'])

  def test_a_rate_that_diverges_is_not_the_best(self):
    own = {
      'loss': [[[1.0] * 4] * 2, [[np.nan] * 4] * 2],
      'accuracy': [[[0.5] * 4] * 2] * 2,
    }
    self.assertEqual(k_avg._best(own).rate, 0)

  @parameterized.parameters(
    (OURS_NAME, 32), (RARE_NAME, 128), ('K-AVG(8)', 8), ('K1 = 1, S = 4', 32)
  )
  def test_global_period(self, name, period):
    self.assertEqual(k_avg._global_period(name), period)


if __name__ == '__main__':
  absltest.main()

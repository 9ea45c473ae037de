"""Tests of `experiments/papers/t05_hier_avg.py`: its comparisons."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers import t05_hier_avg as hier_avg
from experiments.papers.t05_hier_avg import OURS_NAME, RARE_NAME


def verdicts(**changed):
  """The verdicts on K-AVG and Hier-AVG with equal losses but for some."""
  names = {'ours': OURS_NAME, 'rare': RARE_NAME}
  names |= {f'k{k}': f'K-AVG({k})' for k in hier_avg.K_AVG}
  spread = np.linspace(-0.01, 0.01, len(hier_avg.SEEDS))
  trained = {}
  for key, name in names.items():
    level = changed.get(key, 1.0)
    shape = (len(hier_avg.RATES), len(spread), 8)
    loss = np.broadcast_to((level + spread)[:, None], shape)
    trained[name] = {'loss': loss.tolist(), 'accuracy': (1 - loss / 2).tolist()}
  return [claim.verdict for claim in hier_avg._k_avg_claims(trained)]


class ComparisonTest(parameterized.TestCase):
  def test_better_for_every_pair_of_seeds(self):
    self.assertEqual(verdicts(ours=0.9), ['yes', 'yes', 'yes', 'no'])
    self.assertEqual(verdicts(rare=0.9)[3], 'yes')

  def test_better_in_the_mean_only(self):
    found = verdicts(ours=0.995)
    self.assertEqual(found, ['partly', 'yes', 'partly', 'no'])

  def test_worse(self):
    self.assertEqual(verdicts(ours=1.15)[:3], ['no', 'partly', 'no'])
    self.assertEqual(verdicts(ours=1.5)[:3], ['no', 'no', 'no'])

  @parameterized.parameters(
    (OURS_NAME, 32), (RARE_NAME, 128), ('K-AVG(8)', 8), ('K1 = 1, S = 4', 32)
  )
  def test_global_period(self, name, period):
    self.assertEqual(hier_avg._global_period(name), period)


if __name__ == '__main__':
  absltest.main()

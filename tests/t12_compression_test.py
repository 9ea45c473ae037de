"""Tests of `experiments/papers/t12_compression`."""

from absl.testing import absltest
import jax.numpy as jnp

from experiments.papers.t12_compression import codes, training
import prsgd_jax as pr

V = jnp.array([3.0, -4.0])


class MomentsTest(absltest.TestCase):
  def test_variance_of_two_entries(self):
    # One level: |v| = 5 with probability 3/5 and 4/5.
    seen = codes._moments(pr.codecs.stochastic_levels(1), V)
    exact = codes._theory('QSGD, s = 1', V)['exact']
    self.assertAlmostEqual(exact, 0.6 * 0.4 + 0.8 * 0.2)
    self.assertAlmostEqual(seen['error'], exact, delta=0.03)

  def test_a_biased_compressor_is_seen_to_be(self):
    self.assertGreater(
      codes._moments(pr.codecs.random_k(0.5), V)['bias'],
      10 * codes.UNBIASED,
    )

  def test_terngrad_has_one_level_of_the_largest_entry(self):
    exact = codes._theory('TernGrad', V)['exact']
    self.assertAlmostEqual(exact, (4 * 7 - 25) / 25)


class StepsTest(absltest.TestCase):
  def claim(self, **losses):
    equal = {
      name: {
        'loss': [[1.0, losses.get(name[:3], 0.2)]] * 5,
        'rate': 1.0,
        'at_edge': False,
      }
      for name in training.METHODS
    }
    return training.steps_claim(equal)

  def test_a_method_below_the_reference_is_named(self):
    claim = self.claim(SSG=0.1, top=0.05)
    self.assertEqual(claim.verdict, 'partly')
    self.assertStartsWith(claim.note, 'top 5 %, error feedback: below SSGD')

  def test_without_one_there_is_no_note(self):
    self.assertEqual(self.claim(SSG=0.1).note, '')


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/t10_topologies.py`."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers import t10_topologies as topologies
import prsgd_jax as pr
from prsgd_jax.science import laws


class EigenvalueVarianceTest(parameterized.TestCase):
  @parameterized.parameters(
    (pr.graphs.ring, 2.410, 1.472),
    (pr.graphs.random_matching, 1.758, 0.820),
    (pr.mixing.mean, 0.9375, 0.0),
  )
  def test_is_what_was_derived_and_what_the_law_follows(self, mixing, a, c):
    matrices = mixing().matrices(16)
    found = [topologies.eigenvalue_variance(matrices, x) for x in 'AC']
    np.testing.assert_allclose(found, [a, c], atol=5e-4)
    np.testing.assert_allclose(
      found, laws.consensus_variance(mixing(), 16), atol=1e-9
    )


if __name__ == '__main__':
  absltest.main()

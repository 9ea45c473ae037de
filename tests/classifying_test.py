"""Tests of `experiments/papers/classifying.py`."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

from experiments.papers import classifying
from experiments.papers.simulation import simulate
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data.datasets import load_dataset
from tests import binaries


class ClassifyingTest(parameterized.TestCase):
  @parameterized.parameters(pr.pr_sgd, pr.k_avg)
  def test_a_period_may_be_a_setting(self, algorithm):
    digits = load_dataset('digits', binaries.digits_dir())
    problem = classifying.problem(
      models.MLP(10, hidden=(4,)), digits, batch_size=4, num_observed=32
    )
    tx = optax.sgd(0.1, momentum=0.9)

    def run(make, settings):
      return simulate(
        make,
        settings,
        (0,),
        loss_fn=problem.loss_fn,
        start=problem.start,
        num_replicas=4,
        num_steps=7,
        observe=problem.observe,
      )

    found = run(
      lambda period: algorithm(tx, period=classifying.every(period)), (2, 3)
    )
    expected = run(lambda _: algorithm(tx, period=3), (0,))
    for one, other in zip(*map(jax.tree.leaves, (found, expected))):
      np.testing.assert_allclose(one[1], other[0], rtol=1e-5)
    self.assertGreater(np.abs(found['loss'][0] - found['loss'][1]).max(), 1e-4)


if __name__ == '__main__':
  absltest.main()

"""Averages at random steps, of many copies of a problem."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.simulation import simulate
from experiments.papers.t03_when_averaging_helps import chance

COPIES, STEPS, ZETA = 40, 50, 0.3


class ChanceTest(absltest.TestCase):
  def test_every_copy_and_seed_has_its_own_random_steps(self):
    def loss(w, step, replica, key):
      del step, replica
      return (jax.random.normal(key, w.shape) * w).sum()

    apart = simulate(
      lambda rate: chance.averaging(rate, ZETA, STEPS),
      (1.0,),
      (0, 1),
      loss_fn=loss,
      start=jnp.zeros((COPIES, 2)),
      num_replicas=2,
      num_steps=STEPS,
      observe=lambda w: jnp.abs(w[0] - w[1]).max(axis=-1),
    )[0]
    averaged = apart == 0  # [seeds, steps, copies]
    self.assertTrue(averaged[:, -1].all())
    tosses = averaged[:, :-1].swapaxes(1, 2).reshape(2 * COPIES, -1) * 1.0
    # Four standard errors of 3920 coins.
    self.assertAlmostEqual(tosses.mean(), ZETA, delta=0.03)
    # Of independent copies; it is 1 if all have the same steps.
    together = np.corrcoef(tosses)[~np.eye(2 * COPIES, dtype=bool)]
    self.assertAlmostEqual(together.mean(), 0, delta=0.02)
    self.assertLess(together.max(), 0.8)


if __name__ == '__main__':
  absltest.main()

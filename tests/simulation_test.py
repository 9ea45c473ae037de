"""Tests of `experiments/papers/simulation.py`."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.simulation import simulate
import prsgd_jax as pr

N = 4


def pulled_apart(x, step, replica, key):
  """Replica i is drawn to i, with noise."""
  noise = jax.random.normal(key, x.shape)
  return ((x - replica) ** 2 / 2 + 0.1 * noise * x).sum()


def run(make, settings=(0.1,), seeds=(0,), **kwargs):
  arguments = {
    'loss_fn': pulled_apart, 'start': jnp.zeros(3), 'num_replicas': N,
    'num_steps': 12, 'observe': lambda x: x, **kwargs,
  }  # fmt: skip
  return simulate(make, settings, seeds, **arguments)


def synchronous(rate):
  return pr.ssgd(optax.sgd(rate))


class SimulateTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda tx: pr.hier_avg(tx, local_period=1, global_period=2, group_size=2),
    lambda tx: pr.sgp(tx, mixing=pr.graphs.exponential()),
  )
  def test_runs_every_kind_of_communication(self, make):
    x = run(lambda rate: make(optax.sgd(rate)), seeds=(0, 1))
    self.assertEqual(x.shape, (1, 2, 12, N, 3))
    self.assertTrue(np.isfinite(x).all())
    self.assertGreater(np.abs(x[0, 0] - x[0, 1]).max(), 1e-3)

  def test_every_replica_may_have_a_start_of_its_own(self):
    def make(rate):
      return pr.one_shot_averaging(optax.sgd(rate), num_steps=20)

    start = 1.0 * jnp.arange(N * 3).reshape(N, 3)
    x = run(make, settings=(0.0,), start=start, per_replica=True)
    np.testing.assert_array_equal(x[0, 0, -1], start)

  def test_settings_and_seeds_are_independent_runs(self):
    both = run(synchronous, settings=(0.1, 0.2), seeds=(3, 4))
    np.testing.assert_allclose(
      both[1, 0], run(synchronous, settings=(0.2,), seeds=(3,))[0, 0], rtol=1e-6
    )

  def test_many_settings_and_seeds_of_a_wide_problem_are_too(self):
    shape = (16, 4, 10)

    def loss(e, step, replica, key):
      x = jax.random.normal(key, shape)
      return ((x * e).sum(-1) ** 2).sum() / 2

    def final(seeds):
      return run(
        synchronous,
        settings=np.geomspace(2e-4, 0.01, 14),
        seeds=seeds,
        loss_fn=loss,
        start=jnp.ones(shape),
        num_replicas=8,
        num_steps=60,
        every=60,
        observe=lambda e: (e[0] ** 2).sum(-1).mean(),
      )[:, 0, 0]

    np.testing.assert_allclose(final((0, 1)), final((0,)), rtol=1e-4)

  def test_observations_are_the_last_of_their_stretch(self):
    all_steps, some = run(synchronous), run(synchronous, every=4)
    np.testing.assert_allclose(some[0, 0], all_steps[0, 0, 3::4], rtol=1e-6)
    with self.assertRaisesRegex(ValueError, 'multiple of every=5, got 12'):
      run(synchronous, every=5)


if __name__ == '__main__':
  absltest.main()

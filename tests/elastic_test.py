"""`elastic`, the force, and what `eamsgd` refuses."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 4
STARTS = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


def pulled(alpha, period=1):
  """The force alone, on replicas that take no step of their own."""
  return pr.algorithm(
    'pulled',
    pr.remember(center='params'),
    pr.at(pr.schedules.every(period), pr.algorithms.elastic(alpha)),
    pr.evaluate(params='center'),
  )


def steps(algorithm, state, mesh, num_steps):
  train_steps = pr.engine.make_train_steps(
    mesh, algorithm, lambda params, model_state, batch, key: (0.0, ((), {}))
  )
  blocks = (mesh.num_devices, num_steps, mesh.block_size)
  return train_steps(state, mesh.place_per_device(np.zeros(blocks)))[0]


class ElasticTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_force_and_counterforce_are_equal(self, num_devices):
    # sum_i x_i + c stays: both sides are of the old x_i and c.
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    algorithm = pulled(0.2, period=2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    state = state.replace(params=mesh.place(STARTS))
    x, c = STARTS, np.zeros(3)
    for _ in range(3):
      state = steps(algorithm, state, mesh, 2)
      x, c = x - 0.2 * (x - c), c + 0.2 * (x - c).sum(axis=0)
      np.testing.assert_allclose(mesh.gather(state.params), x, atol=1e-6)
      centers = mesh.gather(state.registers['pulled.center'])
      np.testing.assert_allclose(
        centers, np.broadcast_to(c, x.shape), atol=1e-6
      )
      np.testing.assert_array_equal(centers, centers[:1].repeat(N, axis=0))
      total = mesh.gather(state.params).sum(axis=0) + centers[0]
      np.testing.assert_allclose(total, STARTS.sum(axis=0), atol=1e-6)

  def test_output_is_the_center_in_the_type_of_the_parameters(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = pulled(0.25)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, jnp.bfloat16)
    )
    self.assertEqual(state.registers['pulled.center'].dtype, jnp.float32)
    state = state.replace(params=mesh.place(STARTS.astype(jnp.bfloat16)))
    state = steps(algorithm, state, mesh, 1)
    self.assertEqual(state.params.dtype, jnp.bfloat16)
    params, _ = pr.engine.consensus(algorithm, state)
    self.assertEqual(params.dtype, jnp.bfloat16)
    # N alpha = 1: the center becomes the mean.
    want = STARTS.astype(jnp.bfloat16).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(params.astype(np.float32), want, rtol=1e-2)

  def test_a_mean_is_sent_inside_the_conditional(self):
    mesh = pr.engine.ReplicaMesh(N, N)
    algorithm = pulled(0.25, period=2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda *args: None
    )
    batch = mesh.place_per_device(np.zeros((N, 1, 1)))
    (sent,) = harness.collectives_of(train_steps, state, batch)
    self.assertTrue(sent.conditional)
    self.assertEqual([x.size for x in sent.operands], [3])

  @parameterized.parameters(0, 1.5, -0.1, None, True)
  def test_alpha_is_a_rate(self, bad):
    with self.assertRaisesRegex(
      ValueError, rf'alpha must be in \(0, 1\], got {bad}'
    ):
      pr.algorithms.elastic(bad)

  def test_the_center_stays_among_the_replicas(self):
    mesh, start = pr.engine.ReplicaMesh(N), np.zeros(2)
    with self.assertRaisesRegex(
      ValueError,
      'at most 1 / N = 0.25 with 4 replicas, got 0.3; a usual',
    ):
      pr.engine.create_train_state(mesh, pulled(0.3), start)
    for n in range(1, 9):  # one over N itself is allowed
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(n), pulled(1 / n), start
      )

  def test_needs_a_center(self):
    algorithm = pr.chain(
      pr.algorithms.elastic(0.1), pr.evaluate(params='center')
    )
    with self.assertRaisesRegex(ValueError, "'center' is read"):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )


class EamsgdTest(parameterized.TestCase):
  def test_gradient_metrics_and_model_state_are_of_the_point_ahead(self):
    mesh = pr.engine.ReplicaMesh(N, 2)

    def loss(params, model_state, batch, key):
      del model_state, key
      value = 0.5 * (params**2).sum()
      return value, (params.sum(), {'norm': jnp.abs(params).sum()})

    algorithm = pr.eamsgd(optax.sgd(0.1), period=9, alpha=0.1, momentum=0.5)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.ones(3, np.float32), np.float32(0)
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    state, metrics = train_steps(
      state, mesh.place_per_device(np.zeros((2, 2, 2)))
    )
    # v = -0.1, x = 0.9; then ahead 0.85, v = -0.05 - 0.085, x = 0.765.
    np.testing.assert_allclose(np.asarray(state.params), 0.765, rtol=1e-6)
    np.testing.assert_allclose(
      np.asarray(state.model_state), 3 * 0.85, rtol=1e-6
    )
    np.testing.assert_allclose(metrics['norm'][0, :, 0], [3, 2.55], rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'][0, 1], 1.5 * 0.85**2, rtol=1e-6)

  @parameterized.parameters(1.0, -0.1, None)
  def test_momentum_is_a_fraction(self, bad):
    with self.assertRaisesRegex(
      ValueError, rf'momentum must be in \[0, 1\), got {bad}'
    ):
      pr.eamsgd(optax.sgd(0.1), period=2, alpha=0.1, momentum=bad)

  @parameterized.parameters((0.9, False), (0.0, True))
  def test_needs_an_optimizer_without_momentum(self, momentum, nesterov):
    tx = optax.sgd(0.1, momentum, nesterov)
    algorithm = pr.eamsgd(tx, period=2, alpha=0.1, momentum=0.5)
    with self.assertRaisesRegex(ValueError, 'without, such as optax.sgd'):
      harness.run_problem(algorithm, reference.make_problem(4, 1))


if __name__ == '__main__':
  absltest.main()

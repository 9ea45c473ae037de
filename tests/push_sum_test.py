"""Push-sum: invariants of weighted mixing, its limit, and errors."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 8
DIRECTED = reference.random_column_stochastic(N)
PUSHED = pr.graphs.graph(DIRECTED)


def push_sum(mixing):
  return pr.chain(pr.remember(weight=1.0), pr.sync(mixing))


def run(algorithm, start, num_steps, num_devices=2):
  """The state after steps without a loss, from x_i = start[i]."""
  n = len(jax.tree.leaves(start)[0])
  mesh = pr.engine.ReplicaMesh(n, num_devices)
  state = pr.engine.create_train_state(mesh, algorithm, start, per_replica=True)
  train_steps = pr.engine.make_train_steps(mesh, algorithm, lambda *args: 0)
  none = np.zeros((num_devices, num_steps, n // num_devices))
  state, _ = train_steps(state, mesh.place_per_device(none))
  return mesh, state


class PushSumTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8)
  def test_is_the_power_of_w_on_x_and_on_ones(self, num_devices):
    start = np.random.default_rng(0).normal(size=(N, 3))
    with jax.enable_x64(True):
      mesh, state = run(push_sum(PUSHED), start, 5, num_devices)
      z = mesh.gather(state.params)
      w = mesh.gather(state.registers['weight'])
    power = np.linalg.matrix_power(DIRECTED, 5)
    np.testing.assert_allclose(w, power.sum(axis=1), rtol=0, atol=1e-14)
    want = power @ start / power.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-14)
    self.assertGreater(np.abs(w - 1).max(), 0.1)

  def test_tends_to_the_mean_though_rows_do_not_sum_to_one(self):
    start = np.random.default_rng(0).normal(size=(N, 3))
    with jax.enable_x64(True):
      mesh, state = run(push_sum(PUSHED), start, 200)
      z = mesh.gather(state.params)
    mean = np.broadcast_to(start.mean(axis=0), start.shape)
    np.testing.assert_allclose(z, mean, rtol=0, atol=1e-12)

  def test_half_precision_keeps_its_type_and_integers_stay(self):
    start = {
      'half': np.arange(N, dtype=jnp.bfloat16),
      'count': np.arange(N, dtype=np.int32),
    }
    mesh, state = run(push_sum(PUSHED), start, 3)
    self.assertEqual(state.params['half'].dtype, jnp.bfloat16)
    self.assertEqual(state.registers['weight'].dtype, jnp.float32)
    count = mesh.gather(state.params['count'])
    np.testing.assert_array_equal(count, np.arange(N))

  def test_turns_are_taken(self):
    # The three matrices in turn are the mean of eight, exactly.
    with jax.enable_x64(True):
      mesh, state = run(
        push_sum(pr.graphs.one_peer_exponential()), np.eye(N), 3
      )
      z = mesh.gather(state.params)
    np.testing.assert_array_equal(z, np.full((N, N), 1 / N))

  @parameterized.parameters(pr.graphs.one_peer_exponential, pr.graphs.ring)
  def test_a_doubly_stochastic_mixing_is_sync_to_the_bit(self, make):
    # Three floats next to 1/3 add up to 1, as halves do.
    start = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    mesh, state = run(push_sum(make()), start, 5)
    _, want = run(pr.chain(pr.sync(make())), start, 5)
    np.testing.assert_array_equal(
      mesh.gather(state.params), mesh.gather(want.params)
    )
    np.testing.assert_array_equal(mesh.gather(state.registers['weight']), 1)

  def test_sends_the_weight_too(self):
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
    algorithm = pr.sgp(optax.sgd(0.1), mixing=PUSHED, period=2)
    work, sent = algorithm.cost(shapes, N, np.arange(4))
    self.assertIsInstance(work, pr.base.Work)
    # Replica 0 sends to seven others.
    self.assertEqual(sent.bytes_sent, 7 * (5 + 1) * 4)
    np.testing.assert_array_equal(sent.fires, [False, True] * 2)
    np.testing.assert_array_equal(harness.waits_of(sent, N), DIRECTED != 0)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    # Receivers that average are not senders that distribute.
    (
      pr.graphs.graph(DIRECTED.T),
      r'columns that sum to 1, got [0-9.]+ in column 1',
    ),
    (pr.mixing.weighted_mean(range(1, 9)), r'columns that sum to 1, got'),
    (
      pr.mixing.dense(np.eye(N) * 2 - np.roll(np.eye(N), 1, 0)),
      'weights >= 0 .*, got a minimum of -1',
    ),
    (
      pr.mixing.dense(np.repeat(np.eye(N)[:1], N, 0).T),
      'one > 0 in each row, .* a row that sums to 0',
    ),
    (
      pr.mixing.dense(np.eye(2)),
      r'\[8, 8\], one row per replica, got \(2, 2\)',
    ),
  )
  def test_mixing_is_column_stochastic(self, mixing, message):
    algorithm = pr.sgp(optax.sgd(0.1), mixing=mixing)
    with self.assertRaisesRegex(ValueError, message) as caught:
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(pr.d_psgd, pr.diffusion, pr.gradient_tracking)
  def test_columns_alone_are_for_push_sum(self, make):
    algorithm = make(optax.sgd(0.1), mixing=PUSHED)
    with self.assertRaisesRegex(ValueError, 'use it with pr.sgp'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )


if __name__ == '__main__':
  absltest.main()

"""Push-sum: what it keeps, where it ends, and what it refuses."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 8
DIRECTED = reference.random_column_stochastic(N)
PUSHED = pr.graph(DIRECTED)


def run(algorithm, start, num_steps, num_devices=2):
  """The state after steps without a loss, from x_i = start[i]."""
  n = len(jax.tree.leaves(start)[0])
  mesh = pr.ReplicaMesh(n, num_devices)
  state = pr.create_train_state(mesh, algorithm, start, per_replica=True)
  train_steps = pr.make_train_steps(mesh, algorithm, lambda *args: 0)
  none = np.zeros((num_devices, num_steps, n // num_devices))
  state, _ = train_steps(state, mesh.place_per_device(none))
  return mesh, state


class PushSumTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8)
  def test_is_the_power_of_w_on_x_and_on_ones(self, num_devices):
    start = np.random.default_rng(0).normal(size=(N, 3))
    with jax.enable_x64(True):
      mesh, state = run(pr.push_sum(PUSHED), start, 5, num_devices)
      z = mesh.gather(state.params)
      w = mesh.gather(state.algorithm_state.weight)
    power = np.linalg.matrix_power(DIRECTED, 5)
    np.testing.assert_allclose(w, power.sum(axis=1), rtol=0, atol=1e-14)
    want = power @ start / power.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-14)
    self.assertGreater(np.abs(w - 1).max(), 0.1)

  def test_tends_to_the_mean_though_rows_do_not_sum_to_one(self):
    start = np.random.default_rng(0).normal(size=(N, 3))
    with jax.enable_x64(True):
      mesh, state = run(pr.push_sum(PUSHED), start, 200)
      z = mesh.gather(state.params)
    mean = np.broadcast_to(start.mean(axis=0), start.shape)
    np.testing.assert_allclose(z, mean, rtol=0, atol=1e-12)

  def test_half_precision_keeps_its_type_and_integers_stay(self):
    start = {
      'half': np.arange(N, dtype=jnp.bfloat16),
      'count': np.arange(N, dtype=np.int32),
    }
    mesh, state = run(pr.push_sum(PUSHED), start, 3)
    self.assertEqual(state.params['half'].dtype, jnp.bfloat16)
    self.assertEqual(state.algorithm_state.weight.dtype, jnp.float32)
    count = mesh.gather(state.params['count'])
    np.testing.assert_array_equal(count, np.arange(N))

  def test_turns_are_taken(self):
    with jax.enable_x64(True):
      mesh, state = run(pr.push_sum(pr.one_peer_exponential()), np.eye(N), 3)
      z = mesh.gather(state.params)
    np.testing.assert_array_equal(z, np.full((N, N), 1 / N))
    turns = mesh.gather(state.algorithm_state.turns)
    np.testing.assert_array_equal(turns, np.full(N, 3))

  def test_a_doubly_stochastic_mixing_is_sync_to_the_bit(self):
    # Halves are exact, so that no compiler can round them otherwise.
    start = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    mixing = pr.one_peer_exponential()
    mesh, state = run(pr.push_sum(mixing), start, 5)
    _, want = run(pr.chain(pr.sync(mixing)), start, 5)
    np.testing.assert_array_equal(
      mesh.gather(state.params), mesh.gather(want.params)
    )

  def test_sends_the_weight_too(self):
    shapes = pr.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
    stage = pr.push_sum(PUSHED, pr.gradient())
    work, sent = stage.cost(shapes, N, np.arange(3))
    self.assertIsInstance(work, pr.Work)
    # Replica 0 sends to seven others.
    self.assertEqual(sent.bytes_sent, 7 * (5 + 1) * 4)
    np.testing.assert_array_equal(sent.fires, [True] * 3)
    np.testing.assert_array_equal(sent.waits[0], DIRECTED != 0)

  def test_what_is_drawn_is_of_its_own(self):
    # The stages inside see other keys than the mixing draws from.
    seen = []

    def update(replica, state, context):
      seen.append(context.shared_key)
      return replica, state

    def apply(tree, context, decode=None):
      del decode
      seen.append(context.shared_key)
      return tree

    mixing = pr.mean()._replace(apply=apply)
    stage = pr.push_sum(mixing, pr.ReplicaTransformation(update))
    mesh = pr.ReplicaMesh(1)

    def step(params):
      seen.clear()
      replica, state = stage.init(pr.Replica(params=params), 1)
      stage.update(replica, state, harness.bare_context(mesh))
      return jnp.stack([jax.random.key_data(key) for key in seen])[None]

    inside, mixed = mesh.gather(mesh.map(step)(jnp.zeros((1, 1))))[0]
    self.assertFalse((inside == mixed).all())


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    # Receivers that average are not senders that share out.
    (pr.graph(DIRECTED.T), r'columns that sum to 1, got [0-9.]+ in column 1'),
    (pr.weighted_mean(range(1, 9)), r'columns that sum to 1, got'),
    (
      pr.dense(np.eye(N) * 2 - np.roll(np.eye(N), 1, 0)),
      'weights >= 0 .*, got a smallest of -1',
    ),
    (
      pr.dense(np.repeat(np.eye(N)[:1], N, 0).T),
      'one > 0 in each row, .* a row that sums to 0',
    ),
    (pr.dense(np.eye(2)), r'\[8, 8\], one row per replica, got \(2, 2\)'),
  )
  def test_mixing_is_column_stochastic(self, mixing, message):
    algorithm = pr.sgp(optax.sgd(0.1), mixing=mixing)
    with self.assertRaisesRegex(ValueError, message) as caught:
      pr.create_train_state(pr.ReplicaMesh(N), algorithm, np.zeros(2))
    self.assertNotIn('\n', str(caught.exception))

  def test_mixing_is_one(self):
    with self.assertRaisesRegex(
      ValueError, r'such as pr.graph\(W\), got array'
    ):
      pr.push_sum(DIRECTED)


if __name__ == '__main__':
  absltest.main()

"""`slow_update`: what it keeps, and that it sends nothing."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import harness

N = 4


def pulled(learning_rate, num_steps, dtype=np.float32, **options):
  """The parameters of a chain of slow updates with x set to 1 before each."""
  mesh = pr.ReplicaMesh(N, 2)
  ones = pr.ReplicaTransformation(
    lambda replica, state, context: (
      replica._replace(params=jnp.ones_like(replica.params)),
      state,
    )
  )
  algorithm = pr.chain(
    ones,
    pr.slow_update(when=pr.every(2), learning_rate=learning_rate, **options),
  )
  state = pr.create_train_state(mesh, algorithm, np.zeros(3, dtype))
  train_steps = pr.make_train_steps(mesh, algorithm, lambda *args: None)
  batches = mesh.place_per_device(np.zeros((2, num_steps, N // 2)))
  state, _ = train_steps(state, batches)
  return state


class SlowUpdateTest(parameterized.TestCase):
  def test_reads_the_learning_rate_of_the_last_step_of_the_round(self):
    state = pulled(
      lambda step: 1.0 / (1 + step),
      4,
      slow_learning_rate=0.5,
      slow_momentum=0.5,
    )
    # gamma = 1/2: u = -1 / gamma = -2, x = 0.5 / 2 * 2 = 0.5; then gamma = 1/4:
    # u = -1 - 0.5 / gamma = -3, x = 0.5 + 0.5 / 4 * 3 = 0.875.
    np.testing.assert_allclose(np.asarray(state.params), 0.875, rtol=1e-6)

  def test_a_learning_rate_of_zero_is_the_limit(self):
    # gamma = 1/2 first: u = -2, x = 0.5; then gamma = 0: u = -1 and x = 0.5 +
    # 0.5 * 0.5.
    state = pulled(
      lambda step: 0.5 * (step < 2),
      4,
      slow_learning_rate=0.5,
      slow_momentum=0.5,
    )
    np.testing.assert_allclose(np.asarray(state.params), 0.75, rtol=1e-6)
    momentum = state.algorithm_state[1].momentum
    np.testing.assert_allclose(np.asarray(momentum), -1, rtol=1e-6)

  def test_between_rounds_the_parameters_are_left_alone(self):
    state = pulled(0.1, 1, slow_momentum=0.5)
    np.testing.assert_array_equal(np.asarray(state.params), 1)
    slow = state.algorithm_state[1]
    np.testing.assert_array_equal(np.asarray(slow.anchor), 0)

  def test_half_precision_has_a_buffer_in_single(self):
    state = pulled(0.1, 2, jnp.bfloat16, slow_momentum=0.5)
    self.assertEqual(state.params.dtype, jnp.bfloat16)
    slow = state.algorithm_state[1]
    self.assertEqual(slow.anchor.dtype, jnp.bfloat16)
    self.assertEqual(slow.momentum.dtype, jnp.float32)

  def test_sends_nothing(self):
    stage = pr.slow_update(
      when=pr.every(2), learning_rate=0.1, slow_momentum=0.5
    )
    mesh = pr.ReplicaMesh(N, 2)

    def once(params):
      replica, state = stage.init(pr.Replica(params), N)
      return stage.update(replica, state, harness.bare_context(mesh, 1))

    params = mesh.place_per_device(np.zeros((2, 2, 3), np.float32))
    sent = harness.collectives_of(
      jax.pmap(once, axis_name=pr.AXIS_NAME, devices=mesh.devices), params
    )
    self.assertEmpty(sent)
    shapes = pr.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    self.assertEmpty(stage.cost(shapes, N, np.arange(4)))

  def test_when_is_a_schedule(self):
    with self.assertRaisesRegex(ValueError, 'when expects a schedule'):
      pr.slow_update(when=4, learning_rate=0.1, slow_momentum=0.5)


if __name__ == '__main__':
  absltest.main()

"""`control_variates`: what it keeps, sends and compiles to."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 4
PROBLEM = reference.make_problem(N, 7)
ALGORITHM = pr.chain(
  pr.gradient(),
  pr.local_update(optax.sgd(0.05, momentum=0.9)),
  pr.control_variates(period=3, learning_rate=0.05),
)


class ControlVariatesTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_controls_are_the_mean_directions_of_the_round(self, num_devices):
    run = harness.run_problem(ALGORITHM, PROBLEM, num_devices)
    state = run.mesh.gather(run.state.algorithm_state[-1])
    control = harness.to_vector(state.control)
    mean_control = harness.to_vector(state.mean_control)
    # Of the round of steps 3, 4, 5, whose controls are those of 0, 1, 2.
    first = (run.x[0] - self.before_average(run, 3)) / (3 * 0.05)
    second = (run.x[3] - self.before_average(run, 6)) / (3 * 0.05)
    np.testing.assert_allclose(
      control, second + first - first.mean(axis=0), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
      mean_control, np.tile(control.mean(axis=0), (N, 1)), rtol=0, atol=1e-12
    )
    np.testing.assert_array_equal(
      mean_control, np.tile(mean_control[0], (N, 1))
    )
    np.testing.assert_array_equal(harness.to_vector(state.anchor), run.x[6])
    np.testing.assert_allclose(state.rates, np.full(N, 0.05), rtol=1e-12)

  def before_average(self, run, t):
    """y_i at the end of a round, by the gradients along the trajectory."""
    v, c = np.zeros_like(run.x[0]), np.zeros_like(run.x[0])
    for s in range(1, t + 1):
      g = [PROBLEM.gradient(i, run.x[s - 1, i], s) for i in range(N)]
      v = 0.9 * v + np.stack(g)
      y = run.x[s - 1] - 0.05 * (v - c + c.mean(axis=0))
      if s % 3 == 0 and s < t:
        c = c - c.mean(axis=0) + (run.x[s - 3] - y) / (3 * 0.05)
    return y

  def test_one_conditional_sends_parameters_and_controls(self):
    mesh = pr.ReplicaMesh(N, N)
    state = pr.create_train_state(mesh, ALGORITHM, np.zeros(5, np.float32))
    train_steps = pr.make_train_steps(
      mesh, ALGORITHM, lambda params, s, b, key: ((params * b).sum(), (s, {}))
    )
    batch = mesh.place_per_device(np.zeros((N, 1, 1), np.float32))
    sent = harness.collectives_of(train_steps, state, batch)
    self.assertTrue(all(one.conditional for one in sent))
    numbers = sum(x.size for one in sent for x in one.operands)
    self.assertEqual(numbers, 2 * 5)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_keeps_types(self, dtype):
    mesh = pr.ReplicaMesh(N, 2)
    start = {'w': np.zeros((2, 3), dtype), 'b': np.zeros((), dtype)}
    state = pr.create_train_state(mesh, ALGORITHM, start)
    control = state.algorithm_state[-1].control
    self.assertEqual(
      {x.dtype for x in jax.tree.leaves(control)}, {np.dtype('float32')}
    )
    for x in jax.tree.leaves(state.algorithm_state):
      self.assertEqual(x.shape[:2], (2, N // 2))
      self.assertFalse(x.weak_type)

  @parameterized.parameters(0, 1.5, None)
  def test_period_is_a_positive_integer(self, period):
    with self.assertRaisesRegex(ValueError, 'period must be an integer >= 1'):
      pr.control_variates(period=period, learning_rate=0.1)

  @parameterized.parameters(0, -1, None, True)
  def test_learning_rate_is_a_schedule_or_positive(self, rate):
    with self.assertRaisesRegex(
      ValueError, f'learning_rate must be a schedule or > 0, got {rate}'
    ):
      pr.control_variates(period=2, learning_rate=rate)


if __name__ == '__main__':
  absltest.main()

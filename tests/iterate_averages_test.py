"""`average_iterates`: a mean over time beside any training."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 4
PROBLEM = reference.make_problem(N, 11)
SGD = optax.sgd(0.05, momentum=0.9)


def output(algorithm, run):
  """The replicas' outputs, [N, d]."""
  with jax.enable_x64(True):
    replica, states = run.mesh.gather(
      (run.state.replica(), run.state.algorithm_state)
    )
    return harness.to_vector(algorithm.output(replica, states).params)


class AverageIteratesTest(parameterized.TestCase):
  @parameterized.product(start_step=(0, 4, 10, 11, 50), num_devices=(1, 4))
  def test_is_the_tail_of_the_algorithm_before_it(
    self, start_step, num_devices
  ):
    training = pr.k_avg(SGD, period=3)
    algorithm = pr.tail_averaging(training, start_step=start_step)
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    x = run.x
    np.testing.assert_array_equal(
      x, harness.run_problem(training, PROBLEM, num_devices).x
    )
    tail = x[start_step + 1 :] if start_step < len(x) - 1 else x[-1:]
    np.testing.assert_allclose(
      output(algorithm, run), tail.mean(axis=0), rtol=0, atol=1e-13
    )
    if len(tail) == 1:  # an assignment
      np.testing.assert_array_equal(output(algorithm, run), x[-1])

  def test_before_any_step_it_is_the_start(self):
    algorithm = pr.tail_averaging(SGD, start_step=0)
    mesh = pr.engine.ReplicaMesh(N, 2)
    start = np.arange(3.0, dtype=np.float32)
    state = pr.engine.create_train_state(mesh, algorithm, start)
    params, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_array_equal(params, start)

  @parameterized.parameters(1, 2, 4)
  def test_half_precision_is_averaged_in_single(self, num_devices):
    # In bfloat16 256 + 1 is 256: the mean would stay where it began.
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    algorithm = pr.chain(
      pr.step(optax.sgd(1.0)), pr.algorithms.average_iterates(0)
    )
    state = pr.engine.create_train_state(mesh, algorithm, jnp.bfloat16(256))
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda params, s, b, key: (-2 * params, (s, {}))
    )
    blocks = (num_devices, 8, N // num_devices)
    state, _ = train_steps(state, mesh.place_per_device(np.zeros(blocks)))
    means = mesh.gather(state.registers['average_iterates.tail'])
    self.assertEqual(means.dtype, np.float32)
    # 258, 260, ..., 272, all of them in bfloat16.
    np.testing.assert_array_equal(means, np.full(N, 265, np.float32))
    params, _ = pr.engine.consensus(algorithm, state)
    self.assertEqual(params.dtype, jnp.bfloat16)

  def test_many_iterates_do_not_overflow_or_stall(self):
    mesh = pr.engine.ReplicaMesh(1)
    algorithm = pr.chain(
      pr.step(optax.sgd(0.0)), pr.algorithms.average_iterates(0)
    )
    big = np.float32(3e38)  # the sum of two is infinite
    state = pr.engine.create_train_state(mesh, algorithm, big)
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda params, s, b, key: (params, (s, {}))
    )
    batch = mesh.place_per_device(np.zeros((1, 100, 1), np.float32))
    state, _ = train_steps(state, batch)
    means = mesh.gather(state.registers['average_iterates.tail'])
    np.testing.assert_array_equal(means, [big])

  def test_small_changes_of_many_iterates_count(self):
    # x falls by its last digit in every 4th step. Each change of the mean is
    # less than half of that digit, and would be lost in a float32 m alone.
    start, digit, steps = 1.5, 2.0**-23, 4000
    mesh = pr.engine.ReplicaMesh(1)
    algorithm = pr.tail_averaging(optax.sgd(1.0), start_step=0)
    state = pr.engine.create_train_state(mesh, algorithm, np.float32(start))
    train_steps = pr.engine.make_resident_train_steps(
      mesh,
      algorithm,
      lambda params, s, batch, key: (params * batch, (s, {})),
      lambda data, step, replica, key: jnp.where(step % 4 == 3, data, 0.0),
    )
    state, _ = train_steps(state, mesh.replicate(np.float32(digit)), steps)
    x = start - digit * (np.arange(1, steps + 1) // 4)
    np.testing.assert_array_equal(mesh.gather(state.params), [x[-1]])
    mean, _ = pr.engine.consensus(algorithm, state)
    self.assertLessEqual(abs(float(mean) - x.mean()), digit)

  @parameterized.parameters(-1, 0.5, True, None)
  def test_start_step_is_a_step(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'start_step must be an integer >= 0, got {bad}'
    ):
      pr.algorithms.average_iterates(bad)


if __name__ == '__main__':
  absltest.main()

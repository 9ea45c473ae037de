"""`check_laws` accepts correct algorithms and finds wrong ones."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import testing

LOCAL = pr.step(optax.sgd(0.1))


def averaging_oracle(period):
  def oracle(problem):
    x = np.stack([problem.start] * problem.num_replicas)
    record = [x]
    for step in range(problem.num_steps):
      x = x - 0.1 * problem.gradients(x, step)
      if (step + 1) % period == 0:
        x = np.stack([x.mean(axis=0)] * len(x))
      record.append(x)
    return np.stack(record)

  return oracle


class CheckLawsTest(parameterized.TestCase):
  def test_passes_what_is_right(self):
    algorithm = pr.k_avg(LOCAL, period=4)
    report = testing.check_laws(algorithm, averaging_oracle(4))
    self.assertLess(report.error, 1e-12)
    self.assertEqual(report.layouts, (1, 2, 4, 8))
    self.assertEqual(report.x.shape, (25, 8, 6))
    self.assertEqual(report.account.rounds[-1], 6)

  def test_needs_no_oracle(self):
    problem = testing.make_problem(num_replicas=3, num_steps=5)
    report = testing.check_laws(pr.ssgd(optax.sgd(0.1)), problem=problem)
    self.assertEqual((report.error, report.layouts), (0.0, (1, 3)))

  def test_finds_another_period(self):
    with self.assertRaisesRegex(AssertionError, 'the oracle after 3 steps'):
      testing.check_laws(pr.k_avg(LOCAL, period=4), averaging_oracle(3))

  def test_finds_a_wrong_shape(self):
    with self.assertRaisesRegex(AssertionError, r'x\[T \+ 1, N, d\]'):
      testing.check_laws(LOCAL, lambda problem: problem.start)

  def test_finds_nan(self):
    stage = pr.let(params=lambda params: params * jnp.nan)
    with self.assertRaisesRegex(AssertionError, 'after 1 steps'):
      testing.check_laws(pr.chain(LOCAL, stage), averaging_oracle(100))

  def test_finds_a_dependence_on_the_devices(self):
    def update(replica, state, context):
      device = jax.lax.axis_index(pr.base.AXIS_NAME)
      return replica._replace(params=replica.params + 0.1 * device), state

    wrong = pr.base.ReplicaTransformation(
      update, names=pr.base.names(writes=['params'])
    )
    with self.assertRaisesRegex(AssertionError, 'on 2 devices'):
      testing.check_laws(pr.chain(LOCAL, wrong))

  def test_finds_a_memory_that_is_not_in_the_state(self):
    seen = []

    def update(replica, state, context):
      del context
      seen.append(1)  # each program that is traced is another one
      moved = replica.params + 0.1 * len(seen)
      return replica._replace(params=moved), state

    wrong = pr.base.ReplicaTransformation(
      update, names=pr.base.names(writes=['params'])
    )
    problem = testing.make_problem(num_replicas=1, num_steps=6)
    with self.assertRaisesRegex(AssertionError, 'resumed after 2 steps'):
      testing.check_laws(pr.chain(LOCAL, wrong), problem=problem)


class ShortTest(absltest.TestCase):
  def test_a_run_of_a_single_step(self):
    algorithm = pr.chain(pr.step(optax.sgd(0.1)), pr.sync(pr.mixing.mean()))
    problem = testing.make_problem(num_replicas=4, num_steps=1)
    self.assertEqual(
      testing.check_laws(algorithm, problem=problem).x.shape[0], 2
    )


if __name__ == '__main__':
  absltest.main()

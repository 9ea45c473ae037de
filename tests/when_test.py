"""WHEN: `at` and `anyone`, stages at some steps only."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests.stage_harness import (
  MODEL_STATE,
  N,
  batches,
  linear_loss,
  run,
)

SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), jnp.float32))


class AtTest(parameterized.TestCase):
  LOCAL = pr.step(optax.sgd(0.1))

  def test_runs_at_the_steps_of_the_schedule_and_no_others(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = pr.chain(
      self.LOCAL,
      pr.at(pr.schedules.at_steps([1, 3]), pr.sync(pr.mixing.mean())),
    )
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    for step in range(6):
      state, _ = train_steps(state, batches(mesh, 1, seed=step)[0])
      params = mesh.gather(state.params)
      self.assertEqual((params == params[0]).all(), step in (1, 3))

  def test_what_it_assigns_first_ends_with_it(self):
    algorithm = pr.chain(
      self.LOCAL,
      pr.at(pr.schedules.every(2), pr.let(d='params')),
      pr.let(params=lambda d: d),
    )
    with self.assertRaisesRegex(ValueError, "'d' is read where it may hold no"):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )

  @parameterized.parameters(4, None, 'every')
  def test_when_is_a_schedule(self, when):
    with self.assertRaisesRegex(ValueError, 'at expects a schedule .* got'):
      pr.at(when, pr.sync(pr.mixing.mean()))

  @parameterized.parameters(
    (lambda step: step % 3,),
    (lambda step: None,),
    (lambda step: jnp.array([True, False]),),
  )
  def test_a_schedule_gives_one_bool(self, when):
    algorithm = pr.chain(pr.at(when, pr.let(params=0.0)))
    with self.assertRaisesRegex(ValueError, 'returns one bool for a step'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )

  def test_a_schedule_inside_a_decision_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'move it outside'):
      pr.at(
        pr.anyone('far'),
        pr.at(pr.schedules.every(2), pr.sync(pr.mixing.mean())),
      )

  def test_a_decision_inside_a_decision_is_refused(self):
    inner = pr.at(pr.anyone('near'), pr.sync(pr.mixing.mean()))
    with self.assertRaisesRegex(ValueError, 'every time'):
      pr.at(pr.anyone('far'), inner)

  def test_a_flag_is_one_number_for_each_replica(self):
    algorithm = pr.chain(
      self.LOCAL,
      pr.let(far=lambda params: params),
      pr.at(pr.anyone('far'), pr.sync(pr.mixing.mean())),
    )
    with self.assertRaisesRegex(ValueError, 'one flag for each replica'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros((3, 2))
      )

  @parameterized.parameters(1, 4)
  def test_flags_of_two_signs_do_not_cancel(self, num_devices):
    def far(replica):
      return jnp.where(replica < 2, 1 - 2 * replica, 0)

    params, *_ = run(
      pr.let(params=lambda replica: 1.0 * replica, far=far),
      pr.at(pr.anyone('far'), pr.sync(pr.mixing.mean())),
      num_steps=1,
      num_devices=num_devices,
    )
    np.testing.assert_array_equal(params, np.full((N, 3), 1.5))

  def test_a_decision_has_a_register(self):
    with self.assertRaisesRegex(ValueError, 'name of a register, got 3'):
      pr.anyone(3)


if __name__ == '__main__':
  absltest.main()

"""COMBINATORS: when stages run, on whom, and under what names."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests.stage_harness import (
  MODEL_STATE,
  MOMENTUM_SGD,
  N,
  batches,
  jaxpr_equations,
  linear_loss,
  run,
)

SHAPES = pr.Replica(params=jax.ShapeDtypeStruct((3,), jnp.float32))


class WhereTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_inactive_replica_keeps_all_it_has(self, num_devices):
    params, opt_state, model_state, metrics, g = run(
      pr.where(pr.first_steps((1, 2, 3, 3)), pr.step(MOMENTUM_SGD)),
      num_steps=3,
      num_devices=num_devices,
    )
    v0 = g[0, 0]
    np.testing.assert_allclose(params[0], -0.1 * v0, rtol=1e-5)
    np.testing.assert_allclose(opt_state[0].trace[0], v0, rtol=1e-5)
    v1 = 0.9 * g[0, 1] + g[1, 1]
    np.testing.assert_allclose(opt_state[0].trace[1], v1, rtol=1e-5)
    np.testing.assert_array_equal(model_state['seen'], [1, 2, 3, 3])
    active = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(metrics['active'], active)
    np.testing.assert_array_equal(metrics['loss'][active == 0], 0)

  def test_one_replica_per_device_computes_its_gradient_in_a_conditional(self):
    def loss(params, model_state, batch, key):
      loss, aux = linear_loss(params, model_state, batch, key)
      return jnp.sinh(loss), aux  # easily found

    algorithm = pr.chain(
      pr.where(pr.first_steps((1, 2, 3, 3)), pr.step(MOMENTUM_SGD))
    )
    found = [
      conditional
      for eqn, conditional in jaxpr_equations(algorithm, N, loss)
      if eqn.primitive.name in ('sinh', 'cosh')
    ]
    self.assertNotEmpty(found)
    self.assertTrue(all(found))

  @parameterized.parameters(1, 4)
  def test_nan_of_an_inactive_replica_does_not_spread(self, num_devices):
    def loss(params, model_state, batch, key):
      loss, aux = linear_loss(params, model_state, batch, key)
      return loss / (1 - model_state['seen']), aux  # finite once

    params, *_ = run(
      pr.where(pr.first_steps((1, 1, 1, 2)), pr.step(MOMENTUM_SGD)),
      num_steps=2,
      num_devices=num_devices,
      loss=loss,
    )
    self.assertTrue(np.isfinite(params[:3]).all())
    self.assertFalse(np.isfinite(params[3]).any())

  @parameterized.parameters(
    (pr.sync(pr.mean()),),
    (pr.at(pr.every(4), pr.sync(pr.mean())),),
    (pr.sync(pr.ring(), 'opt_state'),),
    (pr.algorithm('groups', pr.sync(pr.group_mean(2))),),
  )
  def test_refuses_a_stage_that_communicates(self, stage):
    with self.assertRaisesRegex(ValueError, 'stages that do not communicate'):
      pr.where(pr.first_steps([1] * N), pr.gradient(), stage)

  def test_the_ledger_must_know_who_is_active(self):
    with self.assertRaisesRegex(
      ValueError, r"depends on \['weight'\].*expected="
    ):
      pr.where(lambda weight: weight > 0, pr.gradient())

  def test_what_is_assigned_first_inside_is_zero_elsewhere(self):
    for num_devices in (1, 4):
      params, *_ = run(
        pr.gradient(),
        pr.where(lambda replica: replica > 1, pr.let(half=0.5)),
        pr.let(params=lambda params, half: params + half),
        num_steps=1,
        num_devices=num_devices,
      )
      np.testing.assert_array_equal(params[:, 0], [0, 0, 0.5, 0.5])

  @parameterized.parameters(1, 4)
  def test_a_nested_where_has_the_active_of_both(self, num_devices):
    *_, metrics, _ = run(
      pr.where(
        lambda replica: replica < 3,
        pr.where(lambda replica: replica > 0, pr.gradient()),
      ),
      pr.local_update(optax.sgd(0.1)),
      num_steps=1,
      num_devices=num_devices,
    )
    np.testing.assert_array_equal(metrics['active'], [[0, 1, 1, 0]])

  @parameterized.parameters(1, 4)
  def test_active_is_who_took_any_gradient(self, num_devices):
    first, last = (
      pr.where(rule, pr.gradient())
      for rule in (lambda replica: replica < 1, lambda replica: replica > 2)
    )
    kept = pr.where(
      lambda replica: replica == 1, pr.compute(metrics=lambda metrics: metrics)
    )
    for stages, want in (
      ((first, last), [1, 0, 0, 1]),
      ((first, kept), [1, 0, 0, 0]),
      ((first, pr.gradient()), [1, 1, 1, 1]),
      ((first, pr.at(pr.at_steps([0]), pr.gradient())), [1, 1, 1, 1]),
      ((first, pr.at(pr.at_steps([1]), pr.gradient())), [1, 0, 0, 0]),
      ((pr.gradient(), last), None),  # all
    ):
      *_, metrics, _ = run(*stages, num_steps=1, num_devices=num_devices)
      if want is None:
        self.assertNotIn('active', metrics)
      else:
        np.testing.assert_array_equal(metrics['active'], [want])

  @parameterized.product(
    rule=(lambda params: params > 0, lambda params: {'far': params.max() > 0}),
    num_devices=(1, 4),
  )
  def test_the_rule_gives_one_bool(self, rule, num_devices):
    stage = pr.where(
      rule, pr.let(params=0.0), expected=lambda steps, n: np.ones((1, n), bool)
    )
    with self.assertRaisesRegex(ValueError, 'one bool of each replica, got'):
      pr.create_train_state(
        pr.ReplicaMesh(N, num_devices), pr.chain(stage), np.zeros(3)
      )

  @parameterized.product(
    around=(
      functools.partial(pr.where, lambda replica: replica > 1),
      functools.partial(pr.at, pr.every(2)),
    ),
    num_devices=(1, 4),
  )
  def test_metrics_are_not_added_inside(self, around, num_devices):
    added = pr.compute(metrics=lambda metrics: {**metrics, 'new': 1.0})
    with self.assertRaisesRegex(ValueError, 'change the structure .* metrics'):
      run(pr.gradient(), around(added), num_steps=1, num_devices=num_devices)

  def test_counts_the_work_of_the_active(self):
    stage = pr.where(
      lambda step, replica: (step + replica) % 2 == 0, pr.gradient()
    )
    (work,) = stage.cost(SHAPES, 4, np.arange(3))
    want = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    np.testing.assert_array_equal(work.active, want)

  def test_expected_is_what_the_ledger_counts(self):
    stage = pr.where(
      lambda weight: weight > 0,
      pr.gradient(),
      expected=lambda steps, n: np.arange(n) < 1,
    )
    (work,) = stage.cost(SHAPES, 4, np.arange(2))
    np.testing.assert_array_equal(work.active, [[1, 0, 0, 0]] * 2)


class AtTest(parameterized.TestCase):
  LOCAL = pr.step(optax.sgd(0.1))

  def test_runs_at_the_steps_of_the_schedule_and_no_others(self):
    mesh = pr.ReplicaMesh(N, 2)
    algorithm = pr.chain(
      self.LOCAL, pr.at(pr.at_steps([1, 3]), pr.sync(pr.mean()))
    )
    state = pr.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    train_steps = pr.make_train_steps(mesh, algorithm, linear_loss)
    for step in range(6):
      state, _ = train_steps(state, batches(mesh, 1, seed=step)[0])
      params = mesh.gather(state.params)
      self.assertEqual((params == params[0]).all(), step in (1, 3))

  def test_what_it_assigns_first_ends_with_it(self):
    algorithm = pr.chain(
      self.LOCAL,
      pr.at(pr.every(2), pr.let(d='params')),
      pr.let(params=lambda d: d),
    )
    with self.assertRaisesRegex(ValueError, "'d' is read where it need not"):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros(3))

  @parameterized.parameters(4, None, 'every')
  def test_when_is_a_schedule(self, when):
    with self.assertRaisesRegex(ValueError, 'at expects a schedule .* got'):
      pr.at(when, pr.sync(pr.mean()))

  @parameterized.parameters(
    (lambda step: step % 3,),
    (lambda step: None,),
    (lambda step: jnp.array([True, False]),),
  )
  def test_a_schedule_gives_one_bool(self, when):
    algorithm = pr.chain(pr.at(when, pr.let(params=0.0)))
    with self.assertRaisesRegex(ValueError, 'gives one bool for a step'):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros(3))

  def test_a_schedule_inside_a_decision_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'move it around'):
      pr.at(pr.anyone('far'), pr.at(pr.every(2), pr.sync(pr.mean())))

  def test_a_decision_inside_a_decision_is_refused(self):
    inner = pr.at(pr.anyone('near'), pr.sync(pr.mean()))
    with self.assertRaisesRegex(ValueError, 'sent every time'):
      pr.at(pr.anyone('far'), inner)

  def test_a_flag_is_one_number_for_each_replica(self):
    algorithm = pr.chain(
      self.LOCAL,
      pr.let(far=lambda params: params),
      pr.at(pr.anyone('far'), pr.sync(pr.mean())),
    )
    with self.assertRaisesRegex(ValueError, 'one flag for each replica'):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros((3, 2)))

  @parameterized.parameters(1, 4)
  def test_flags_of_two_signs_do_not_cancel(self, num_devices):
    def far(replica):
      return jnp.where(replica < 2, 1 - 2 * replica, 0)

    params, *_ = run(
      pr.let(params=lambda replica: 1.0 * replica, far=far),
      pr.at(pr.anyone('far'), pr.sync(pr.mean())),
      num_steps=1,
      num_devices=num_devices,
    )
    np.testing.assert_array_equal(params, np.full((N, 3), 1.5))

  def test_a_decision_has_a_register(self):
    with self.assertRaisesRegex(ValueError, 'name of a register, got 3'):
      pr.anyone(3)


class AlgorithmTest(parameterized.TestCase):
  """Names are local, as in a function."""

  SLOW = staticmethod(
    lambda local: pr.algorithm(
      'slow',
      pr.remember(x0='params', u=pr.zeros),
      local,
      pr.at(
        pr.every(2),
        pr.let(
          u=lambda u, x0, params: 0.5 * u + params - x0,
          x0=lambda x0, u: x0 + u,
          params='x0',
        ),
      ),
    )
  )

  def test_a_local_step_with_a_register_of_the_same_name(self):
    local = pr.algorithm(
      'local',
      pr.gradient(),
      pr.local_update(optax.sgd(0.1), into='u'),
      pr.let(params=lambda params, u: params + u),
    )
    one = run(self.SLOW(local), num_steps=6)[0]
    other = run(self.SLOW(pr.step(optax.sgd(0.1))), num_steps=6)[0]
    np.testing.assert_array_equal(one, other)

  def test_a_chain_shares_its_names(self):
    # The twin: without names of its own the local step assigns SlowMo's u.
    local = pr.chain(
      pr.gradient(),
      pr.local_update(optax.sgd(0.1), into='u'),
      pr.let(params=lambda params, u: params + u),
    )
    one = run(self.SLOW(local), num_steps=6)[0]
    other = run(self.SLOW(pr.step(optax.sgd(0.1))), num_steps=6)[0]
    self.assertGreater(np.abs(one - other).max(), 1e-3)

  def test_registers_of_the_state_have_the_names_of_both(self):
    algorithm = pr.algorithm('outer', self.SLOW(pr.step(optax.sgd(0.1))))
    state = pr.create_train_state(
      pr.ReplicaMesh(N, 2), algorithm, np.zeros(3, np.float32)
    )
    self.assertEqual(set(state.registers), {'outer.slow.x0', 'outer.slow.u'})

  def test_what_it_only_reads_may_be_of_the_stages_around(self):
    pull = pr.algorithm(
      'pull', pr.let(params=lambda params, x0: params + 0.5 * (x0 - params))
    )
    params, *_, g = run(
      pr.remember(x0=lambda params: params + 1),
      pr.step(optax.sgd(0.1)),
      pull,
      num_steps=1,
    )
    np.testing.assert_allclose(params, 0.5 * (1 - 0.1 * g[0]), rtol=1e-5)

  def test_an_output_does_not_leave_with_its_names(self):
    algorithm = pr.chain(
      pr.remember(u=lambda params: params + 1),
      pr.algorithm('inside', pr.evaluate(u=2.0, params='u')),
      pr.evaluate(params=lambda params, u: params + u),
    )
    state = pr.create_train_state(
      pr.ReplicaMesh(N, 2), algorithm, np.zeros(3, np.float32)
    )
    params, _ = pr.consensus(algorithm, state)
    np.testing.assert_array_equal(params, [3, 3, 3])

  @parameterized.parameters((pr.gradient(),), ('a name',), ('',), (None,))
  def test_has_a_name(self, name):
    with self.assertRaisesRegex(ValueError, 'expects a name such as'):
      pr.algorithm(name, pr.gradient())


if __name__ == '__main__':
  absltest.main()

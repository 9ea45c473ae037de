"""WHO: `where`, stages on some replicas only."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests.stage_harness import (
  MOMENTUM_SGD,
  N,
  jaxpr_equations,
  linear_loss,
  run,
)

SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), jnp.float32))


class WhereTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_inactive_replica_keeps_all_it_has(self, num_devices):
    params, opt_state, model_state, metrics, g = run(
      pr.where(pr.stages.first_steps((1, 2, 3, 3)), pr.step(MOMENTUM_SGD)),
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
      pr.where(pr.stages.first_steps((1, 2, 3, 3)), pr.step(MOMENTUM_SGD))
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
      pr.where(pr.stages.first_steps((1, 1, 1, 2)), pr.step(MOMENTUM_SGD)),
      num_steps=2,
      num_devices=num_devices,
      loss=loss,
    )
    self.assertTrue(np.isfinite(params[:3]).all())
    self.assertFalse(np.isfinite(params[3]).any())

  @parameterized.parameters(
    (pr.sync(pr.mixing.mean()),),
    (pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())),),
    (pr.sync(pr.graphs.ring(), 'opt_state'),),
    (pr.algorithm('groups', pr.sync(pr.mixing.group_mean(2))),),
  )
  def test_refuses_a_stage_that_communicates(self, stage):
    with self.assertRaisesRegex(ValueError, 'stages that do not communicate'):
      pr.where(pr.stages.first_steps([1] * N), pr.gradient(), stage)

  def test_the_ledger_must_know_who_is_active(self):
    with self.assertRaisesRegex(
      ValueError, r"depend on \['weight'\].*expected="
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
      ((first, pr.at(pr.schedules.at_steps([0]), pr.gradient())), [1, 1, 1, 1]),
      ((first, pr.at(pr.schedules.at_steps([1]), pr.gradient())), [1, 0, 0, 0]),
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
    with self.assertRaisesRegex(ValueError, 'one bool per replica, got'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, num_devices), pr.chain(stage), np.zeros(3)
      )

  @parameterized.product(
    around=(
      functools.partial(pr.where, lambda replica: replica > 1),
      functools.partial(pr.at, pr.schedules.every(2)),
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


if __name__ == '__main__':
  absltest.main()

"""LOCAL: the gradient, and the optimizers that use it."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.stage_harness import (
  MODEL_STATE,
  MOMENTUM_SGD,
  N,
  batches,
  linear_loss,
  run,
)


class GradientTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_metrics_are_the_losses_own_and_the_weight(self, num_devices):
    *_, metrics, g = run(
      pr.gradient(),
      pr.local_update(optax.sgd(0.1)),
      num_steps=3,
      num_devices=num_devices,
    )
    x = -0.1 * np.concatenate([np.zeros((1, N, 3)), g.cumsum(axis=0)])[:-1]
    np.testing.assert_allclose(
      metrics['loss'], (x * g).sum(axis=-1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      metrics['norm'], np.abs(x).sum(axis=-1), rtol=1e-5
    )
    self.assertEqual(set(metrics), {'loss', 'norm'})

  def test_model_state_is_updated(self):
    _, _, model_state, _, g = run(
      pr.gradient(), pr.local_update(optax.sgd(0.1)), num_steps=2
    )
    want = 0.25 * g[0].sum(axis=-1) + 0.5 * g[1].sum(axis=-1)
    np.testing.assert_allclose(model_state['mean'], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model_state['seen'], np.full(N, 2))

  def test_at_another_point(self):
    def loss(params, model_state, batch, key):
      del key
      return jnp.square(params).sum() / 2 + 0 * batch.sum(), (model_state, {})

    params, *_ = run(
      pr.let(ahead=lambda params: params + 3),
      pr.gradient('ahead'),
      pr.local_update(optax.sgd(0.1)),
      num_steps=1,
      loss=loss,
    )
    np.testing.assert_allclose(params, np.full((N, 3), -0.3), rtol=1e-6)

  def test_the_engines_metric_is_its_own(self):
    def loss(params, model_state, batch, key):
      return params.sum(), (model_state, {'active': batch.sum()})

    with self.assertRaisesRegex(ValueError, "metric 'active'"):
      run(pr.gradient(), num_steps=1, loss=loss)


class LocalUpdateTest(parameterized.TestCase):
  def test_every_replica_has_its_own_optimizer(self):
    # Clipping by the global norm: of a replica's gradient, not of the block's.
    params, _, _, _, g = run(
      pr.gradient(),
      pr.local_update(
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(1.0))
      ),
      num_steps=1,
      num_devices=1,
    )
    norm = np.linalg.norm(g[0], axis=-1, keepdims=True)
    np.testing.assert_allclose(
      params, -g[0] * np.minimum(1, 0.5 / norm), rtol=1e-5
    )

  def test_weight_decay_sees_the_parameters(self):
    params, _, _, _, g = run(
      pr.gradient(),
      pr.local_update(
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1))
      ),
      num_steps=2,
    )
    np.testing.assert_allclose(params, -0.9 * g[0] - g[1], rtol=1e-5, atol=1e-6)

  @parameterized.parameters(0.1, None, 'sgd', optax.sgd)
  def test_optimizer_is_optax(self, tx):
    with self.assertRaisesRegex(ValueError, 'expects an optax transformation'):
      pr.local_update(tx)

  @parameterized.product(
    first=(optax.sgd(0.1), MOMENTUM_SGD), second=(MOMENTUM_SGD, optax.adam(0.1))
  )
  def test_there_is_one_optimizer_state(self, first, second):
    # Also where the first has no arrays in its state: the second replaces it.
    with self.assertRaisesRegex(ValueError, 'two local_update stages'):
      pr.chain(pr.gradient(), pr.local_update(first), pr.local_update(second))

  def test_extra_args_transformations_are_accepted(self):
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    params, *_, g = run(pr.gradient(), pr.local_update(tx), num_steps=1)
    np.testing.assert_allclose(params, -0.1 * g[0], rtol=1e-6)

  def test_into_leaves_the_parameters_alone(self):
    params, opt_state, *_, g = run(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD, into='u'),
      pr.let(params=lambda params, u: params + 2 * u),
      num_steps=2,
    )
    want = -0.2 * (g[0] + (0.9 * g[0] + g[1]))
    np.testing.assert_allclose(params, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      opt_state[0].trace, 0.9 * g[0] + g[1], rtol=1e-5, atol=1e-6
    )

  @parameterized.parameters('step', 3)
  def test_into_is_the_name_of_a_register(self, into):
    with self.assertRaisesRegex(ValueError, 'name of a register, got'):
      pr.local_update(MOMENTUM_SGD, into=into)


def _schedule(count):
  """The step it was read at: gamma = 1 + step."""
  return 1.0 + count


SCHEDULED = {
  'sgd': lambda: optax.sgd(_schedule),
  'momentum': lambda: optax.sgd(_schedule, momentum=0.0),
  'chain': lambda: optax.chain(optax.clip(1e9), optax.sgd(_schedule)),
  'masked': lambda: optax.masked(optax.sgd(_schedule), True),
  'multi_transform': lambda: optax.multi_transform(
    {'all': optax.sgd(_schedule)}, 'all'
  ),
  'if_finite': lambda: optax.apply_if_finite(optax.sgd(_schedule), 3),
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.sgd)(
    learning_rate=_schedule
  ),
  'inside_inject_hyperparams': lambda: optax.inject_hyperparams(
    lambda decay: optax.chain(
      optax.add_decayed_weights(decay), optax.sgd(_schedule)
    )
  )(decay=0.0),
}


def unit_loss(params, model_state, batch, key):
  """The gradient is one, so that a step is the learning rate."""
  del batch, key
  return params.sum(), (model_state, {})


class ClockTest(parameterized.TestCase):
  """A schedule reads the engine's step: it never lags behind."""

  def rates(self, *stages, num_devices):
    """The learning rates [steps, N] that were used; 0 where inactive."""
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    algorithm = pr.chain(*stages)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, unit_loss)
    points = [np.zeros(N)]
    for _ in range(6):
      state, _ = train_steps(state, batches(mesh, 1)[0])
      points.append(mesh.gather(state.params)[:, 0])
    return -np.diff(points, axis=0)

  @parameterized.product(name=tuple(SCHEDULED), num_devices=(1, 4))
  def test_inactive_replica_does_not_lag(self, name, num_devices):
    tx = SCHEDULED[name]()
    rates = self.rates(
      pr.where(pr.stages.first_steps((1, 2, 3, 3)), pr.step(tx)),
      num_devices=num_devices,
    )
    want = np.array(
      [
        [1, 1, 1, 1],
        [0, 2, 2, 2],
        [0, 0, 3, 3],
        [4, 4, 4, 4],
        [0, 5, 5, 5],
        [0, 0, 6, 6],
      ]
    )
    np.testing.assert_allclose(rates, want)

  @parameterized.parameters(*SCHEDULED)
  def test_reset_does_not_wind_the_clock_back(self, name):
    tx = SCHEDULED[name]()
    rates = self.rates(
      pr.gradient(),
      pr.local_update(tx),
      pr.at(pr.schedules.every(2), pr.restart(tx)),
      num_devices=2,
    )
    np.testing.assert_allclose(rates, np.arange(1.0, 7)[:, None] * np.ones(N))

  @parameterized.parameters(1, 4)
  def test_scheduled_momentum_of_the_inactive_equals_its_oracle(self, devices):
    problem = reference.make_problem(N, 12)
    local_steps = (1, 4, 2, 3)

    def schedule(step):
      return 0.05 / (1 + step)

    algorithm = pr.chain(
      pr.where(
        pr.stages.first_steps(local_steps),
        pr.step(optax.sgd(schedule, momentum=0.9)),
      ),
      pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())),
    )
    with jax.enable_x64(True):
      engine = harness.make_engine(algorithm, N, devices)
      state = pr.engine.create_train_state(
        engine.mesh, algorithm, harness.to_tree(problem.start)
      )
      data = harness.problem_batches(engine.mesh, problem, range(12))
      state, _ = engine.train_steps(state, data)
      x = harness.to_vector(engine.mesh.gather(state.params))
    oracle = reference.pr_sgd_heterogeneous(
      problem,
      local_steps=local_steps,
      learning_rate=None,
      momentum=0.9,
      schedule=schedule,
    )
    # The learning rate is computed in float32 by optax.
    np.testing.assert_allclose(x, oracle[-1], rtol=0, atol=1e-6)

  def test_adams_bias_correction_counts_its_own_updates(self):
    # Not a schedule: a replica that took one step has the bias of one step.
    tx = optax.adam(0.1)
    rates = self.rates(
      pr.where(pr.stages.first_steps((1, 3, 3, 3)), pr.step(tx)),
      num_devices=2,
    )
    # A constant gradient makes every Adam step the learning rate, if the count
    # is of the updates.
    np.testing.assert_allclose(rates[3], np.full(N, 0.1), rtol=1e-4)


class MuonTest(parameterized.TestCase):
  """optax's Muon: its matrices and the others have states of their own."""

  def steps(self, *stages, num_devices=2, dtype=np.float32):
    """The matrices after each of six steps, and the states."""
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    algorithm = pr.chain(*stages)
    params = {'matrix': np.zeros((3, 2), dtype), 'vector': np.zeros(2, dtype)}

    def shapes(state):
      return str(jax.tree.map(lambda x: (x.shape, x.dtype), state))

    def loss(params, model_state, batch, key):
      del batch, key
      return sum(x.sum() for x in jax.tree.leaves(params)), (model_state, {})

    state = pr.engine.create_train_state(mesh, algorithm, params, MODEL_STATE)
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    points, states = [np.zeros((N, 3, 2))], [shapes(state)]
    for _ in range(6):
      state, _ = train_steps(state, batches(mesh, 1)[0])
      points.append(np.asarray(mesh.gather(state.params)['matrix'], float))
      states.append(shapes(state))
    return np.diff(points, axis=0), states

  @parameterized.parameters(1, 4)
  def test_its_schedule_reads_the_engines_step(self, num_devices):
    tx = optax.contrib.muon(lambda count: 0.01 * (1 + count))
    moved, _ = self.steps(
      pr.where(pr.stages.first_steps((1, 2, 3, 3)), pr.step(tx)),
      num_devices=num_devices,
    )
    # The direction of a constant gradient does not change.
    rates = moved[:, :, 0, 0] / moved[0, 0, 0, 0]
    want = [[1, 1, 1, 1], [0, 2, 2, 2], [0, 0, 3, 3]]
    want += [[4, 4, 4, 4], [0, 5, 5, 5], [0, 0, 6, 6]]
    np.testing.assert_allclose(rates, want, rtol=1e-3)

  def test_restart_does_not_wind_the_clock_back(self):
    tx = optax.contrib.muon(lambda count: 0.01 * (1 + count))
    moved, _ = self.steps(
      pr.step(tx), pr.at(pr.schedules.every(2), pr.restart(tx))
    )
    rates = moved[:, 0, 0, 0] / moved[0, 0, 0, 0]
    np.testing.assert_allclose(rates, np.arange(1.0, 7), rtol=1e-3)

  def test_a_step_keeps_shapes_and_dtypes_in_half_precision(self):
    tx = optax.contrib.muon(0.01)
    _, states = self.steps(pr.step(tx), dtype=jnp.bfloat16)
    for state in states[1:]:
      self.assertEqual(state, states[0])


class RestartTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_momentum_is_zero_after_and_kept_between(self, num_devices):
    stages = (
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.at(pr.schedules.every(2), pr.restart(MOMENTUM_SGD)),
    )
    _, opt_state, _, _, g = run(*stages, num_steps=3, num_devices=num_devices)
    np.testing.assert_allclose(opt_state[0].trace, g[2], rtol=1e-5)
    _, opt_state, *_ = run(*stages, num_steps=2, num_devices=num_devices)
    np.testing.assert_array_equal(opt_state[0].trace, np.zeros((N, 3)))

  def test_adam_starts_anew_with_its_count(self):
    tx = optax.adam(0.1)
    _, opt_state, *_ = run(
      pr.gradient(),
      pr.local_update(tx),
      pr.at(pr.schedules.every(2), pr.restart(tx)),
      num_steps=3,
    )
    np.testing.assert_array_equal(opt_state[0].count, np.ones(N))

  def test_parameters_are_left_alone(self):
    stages = pr.gradient(), pr.local_update(optax.sgd(0.1))
    reset = pr.restart(optax.sgd(0.1))
    np.testing.assert_array_equal(
      run(*stages, num_steps=3)[0], run(*stages, reset, num_steps=3)[0]
    )

  def test_refuses_an_optimizer_with_another_state(self):
    with self.assertRaisesRegex(ValueError, 'the optimizer of local_update'):
      run(
        pr.gradient(),
        pr.local_update(MOMENTUM_SGD),
        pr.restart(optax.adam(0.1)),
        num_steps=1,
      )

  def test_is_of_an_optimizer(self):
    with self.assertRaisesRegex(ValueError, 'optax transformation.* got 0.1'):
      pr.restart(0.1)


class OuterUpdateTest(parameterized.TestCase):
  LOCAL = (
    pr.remember(x0='params'),
    pr.gradient(),
    pr.local_update(optax.sgd(0.1)),
  )

  def outer(self, tx):
    return pr.at(
      pr.schedules.every(2),
      pr.sync(pr.mixing.mean()),
      pr.let(delta=lambda x0, params: x0 - params),
      pr.outer_update(tx, of='delta', at='x0'),
      pr.let(params='x0'),
    )

  def test_a_plain_step_of_one_is_the_mean(self):
    np.testing.assert_allclose(
      run(*self.LOCAL, self.outer(optax.sgd(1.0)), num_steps=5)[0],
      run(
        *self.LOCAL[1:],
        pr.at(pr.schedules.every(2), pr.sync(pr.mixing.mean())),
        num_steps=5,
      )[0],
      rtol=1e-5,
      atol=1e-6,
    )

  def test_lookahead_goes_part_of_the_way(self):
    params, *_, g = run(*self.LOCAL, self.outer(optax.sgd(0.5)), num_steps=4)
    want = -0.1 * 0.5 * g.sum(axis=0).mean(axis=0)
    np.testing.assert_allclose(
      params, np.broadcast_to(want, (N, 3)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(params, np.broadcast_to(params[0], (N, 3)))

  def test_weight_decay_is_of_the_register_that_moves(self):
    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    params, *_, g = run(*self.LOCAL, self.outer(tx), num_steps=4)
    # x0 = 0, then x <- x0 - ((x0 - mean) + 0.5 x0) = mean - 0.5 x0.
    first = -0.1 * g[:2].mean(axis=1).sum(axis=0)
    second = -0.1 * g[2:].mean(axis=1).sum(axis=0) + first - 0.5 * first
    np.testing.assert_allclose(
      params, np.broadcast_to(second, (N, 3)), rtol=1e-5, atol=1e-6
    )

  def test_its_schedules_count_how_often_it_ran(self):
    # Rates 1, 0 in turn: the mean is taken over in rounds 1 and 3 alone.
    tx = optax.sgd(lambda count: 1.0 * (count % 2 == 0))
    one = run(*self.LOCAL, self.outer(tx), num_steps=4)[0]
    other = run(*self.LOCAL, self.outer(tx), num_steps=2)[0]
    np.testing.assert_array_equal(one, other)

  @parameterized.parameters(
    lambda: optax.sgd(1.0),
    lambda: optax.sgd(1.0, momentum=0.9, nesterov=True),
    lambda: optax.adam(1.0),
    lambda: optax.adamw(1.0, mask=lambda x: jax.tree.map(lambda _: True, x)),
  )
  def test_integers_stay_and_floats_move(self, make):
    algorithm = pr.chain(
      pr.remember(x0='model_state'),
      pr.let(delta='x0'),
      pr.outer_update(make(), of='delta', at='x0'),
    )
    mesh = pr.engine.ReplicaMesh(N, 2)

    def moved(model_state):
      state = pr.engine.create_train_state(
        mesh, algorithm, np.zeros(3, np.float32), model_state
      )
      steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
      for _ in range(2):
        state, _ = steps(state, batches(mesh, 1)[0])
      return mesh.gather(state.registers['x0'])

    floats = {'x': np.ones(3, np.float32)}
    both = moved({**floats, 'n': np.int32(7)})
    np.testing.assert_array_equal(both['n'], np.full(N, 7, np.int32))
    self.assertEqual(both['n'].dtype, np.int32)
    np.testing.assert_array_equal(both['x'], moved(floats)['x'])
    self.assertGreater(np.abs(both['x'] - 1).min(), 0.01)

  def test_is_of_an_optimizer(self):
    with self.assertRaisesRegex(ValueError, 'optax transformation.* got 0.7'):
      pr.outer_update(0.7, of='delta', at='x0')


class RegistersTest(parameterized.TestCase):
  """The registers that stages are told by name."""

  @parameterized.parameters(
    (lambda name: pr.gradient(name),),
    (lambda name: pr.outer_update(MOMENTUM_SGD, of=name, at='params'),),
    (lambda name: pr.outer_update(MOMENTUM_SGD, of='grads', at=name),),
    (lambda name: pr.anyone(name),),
  )
  def test_are_names(self, make):
    for name in ('step', 3, None):
      with self.assertRaisesRegex(ValueError, 'must be the name of a register'):
        make(name)

  @parameterized.parameters('params', 'opt_state', 'metrics', 'weight')
  def test_a_step_goes_into_a_register_of_its_own(self, into):
    with self.assertRaisesRegex(ValueError, 'into receives a step'):
      pr.local_update(MOMENTUM_SGD, into=into)

  @parameterized.parameters(
    (lambda: (pr.gradient('n'),),),
    (lambda: (pr.outer_update(MOMENTUM_SGD, of='n', at='params'),),),
    (
      lambda: (
        pr.gradient(),
        pr.local_update(MOMENTUM_SGD, into='n'),
      ),
    ),
  )
  def test_have_the_shapes_of_points(self, make):
    algorithm = pr.chain(pr.remember(n=1.0), *make())
    for start in (np.zeros(3, np.float32), {'w': np.zeros(3, np.float32)}):
      with self.assertRaisesRegex(ValueError, 'the same structure and shapes'):
        pr.engine.create_train_state(
          pr.engine.ReplicaMesh(N, 2), algorithm, start
        )

  @parameterized.parameters(
    (
      (pr.gradient(), pr.restart(MOMENTUM_SGD)),
      'the algorithm has no optimizer',
    ),
    (
      (
        pr.gradient(),
        pr.local_update(optax.adam(0.1)),
        pr.restart(MOMENTUM_SGD),
      ),
      'restart expects the optimizer',
    ),
  )
  def test_restart_has_an_optimizer_before_tracing(self, stages, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), pr.chain(*stages), np.zeros(3, np.float32)
      )

  def test_an_outer_step_of_half_precision_keeps_its_state(self):
    # The state is that of float32 steps, and the parameters stay as they are.
    algorithm = pr.chain(
      pr.remember(x0=lambda params: params + 1),
      pr.at(
        pr.schedules.every(2),
        pr.let(delta=lambda x0, params: params - x0),
        pr.outer_update(MOMENTUM_SGD, of='delta', at='params'),
      ),
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, jnp.ones(3, jnp.bfloat16), MODEL_STATE
    )
    steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    for _ in range(2):
      state, _ = steps(state, batches(mesh, 1)[0])
    self.assertEqual(state.params.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      mesh.gather(state.params).astype(np.float32), 1.1, rtol=1e-2
    )


class StepTest(parameterized.TestCase):
  def test_a_stage_is_the_local_step_as_it_is(self):
    stage = pr.gradient()
    self.assertIs(pr.step(stage), stage)

  @parameterized.parameters(0.1, None, optax.sgd, 'sgd')
  def test_expects_an_optimizer_or_a_stage(self, local):
    with self.assertRaisesRegex(ValueError, 'a local step is .*got'):
      pr.step(local)


if __name__ == '__main__':
  absltest.main()

"""The stages: what they change, what they leave, and what they compile to."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 4
MOMENTUM_SGD = optax.sgd(0.1, momentum=0.9)


def linear_loss(params, model_state, batch, key):
  """The gradient is the batch; the model state counts and averages."""
  del key
  loss = params @ batch
  model_state = {
    'mean': 0.5 * model_state['mean'] + 0.5 * batch.sum(),
    'seen': model_state['seen'] + 1,
  }
  return loss, (model_state, {'norm': jnp.abs(params).sum()})


MODEL_STATE = {'mean': np.float32(0), 'seen': np.int32(0)}


def batches(mesh, num_steps, seed=0):
  """[D, steps, V, 3], and the same as [steps, N, 3]."""
  rng = np.random.default_rng(seed)
  g = rng.normal(size=(num_steps, mesh.num_replicas, 3)).astype(np.float32)
  blocks = g.reshape((num_steps, mesh.num_devices, mesh.block_size, 3))
  return mesh.place_per_device(np.moveaxis(blocks, 1, 0)), g


def run(*stages, num_steps, num_devices=2, loss=linear_loss):
  """The state and metrics after some steps from zero, as [N, ...]."""
  mesh = pr.ReplicaMesh(N, num_devices)
  algorithm = pr.chain(*stages)
  state = pr.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
  )
  train_steps = pr.make_train_steps(mesh, algorithm, loss)
  data, g = batches(mesh, num_steps)
  state, metrics = train_steps(state, data)
  fields = (state.params, state.opt_state, state.model_state)
  metrics = jax.tree.map(
    lambda x: np.moveaxis(np.asarray(x), 1, 0).reshape(num_steps, N), metrics
  )
  return *mesh.gather(fields), metrics, g


def jaxpr_equations(algorithm, num_devices, loss=linear_loss):
  mesh = pr.ReplicaMesh(N, num_devices)
  state = pr.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
  )
  train_steps = pr.make_train_steps(mesh, algorithm, loss)
  jaxpr = jax.make_jaxpr(train_steps)(state, batches(mesh, 1)[0])
  return list(harness.equations(jaxpr.jaxpr))


def conditionals(equations):
  return [eqn for eqn, _ in equations if eqn.primitive.name == 'cond']


def collectives(equations):
  return [
    (eqn, conditional)
    for eqn, conditional in equations
    if eqn.primitive.name.startswith(('psum', 'ppermute', 'all_gather'))
  ]


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
    algorithm = pr.chain(
      pr.gradient(), pr.local_update(first), pr.local_update(second)
    )
    with self.assertRaisesRegex(ValueError, 'two local_update stages'):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros(3))

  def test_extra_args_transformations_are_accepted(self):
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    params, *_, g = run(pr.gradient(), pr.local_update(tx), num_steps=1)
    np.testing.assert_allclose(params, -0.1 * g[0], rtol=1e-6)


def _schedule(count):
  """Tells the step it was read at: gamma = 1 + step."""
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
    mesh = pr.ReplicaMesh(N, num_devices)
    algorithm = pr.chain(*stages)
    state = pr.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    train_steps = pr.make_train_steps(mesh, algorithm, unit_loss)
    points = [np.zeros(N)]
    for _ in range(6):
      state, _ = train_steps(state, batches(mesh, 1)[0])
      points.append(mesh.gather(state.params)[:, 0])
    return -np.diff(points, axis=0)

  @parameterized.product(name=tuple(SCHEDULED), num_devices=(1, 4))
  def test_inactive_replica_does_not_lag(self, name, num_devices):
    tx = SCHEDULED[name]()
    rates = self.rates(
      pr.while_active((1, 2, 3, 3), pr.gradient(), pr.local_update(tx)),
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
      pr.reset_buffers(tx, when=pr.every(2)),
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
      pr.while_active(
        local_steps,
        pr.gradient(),
        pr.local_update(optax.sgd(schedule, momentum=0.9)),
      ),
      pr.sync(pr.mean(), when=pr.every(4)),
    )
    with jax.enable_x64(True):
      engine = harness.make_engine(algorithm, N, devices)
      state = pr.create_train_state(
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
      pr.while_active((1, 3, 3, 3), pr.gradient(), pr.local_update(tx)),
      num_devices=2,
    )
    # A constant gradient makes every Adam step the learning rate, if the count
    # is of the updates.
    np.testing.assert_allclose(rates[3], np.full(N, 0.1), rtol=1e-4)


class ResetBuffersTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_momentum_is_zero_after_and_kept_between(self, num_devices):
    stages = (
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.reset_buffers(MOMENTUM_SGD, when=pr.every(2)),
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
      pr.reset_buffers(tx, when=pr.every(2)),
      num_steps=3,
    )
    np.testing.assert_array_equal(opt_state[0].count, np.ones(N))

  def test_parameters_are_left_alone(self):
    stages = pr.gradient(), pr.local_update(optax.sgd(0.1))
    reset = pr.reset_buffers(optax.sgd(0.1), when=pr.always())
    np.testing.assert_array_equal(
      run(*stages, num_steps=3)[0], run(*stages, reset, num_steps=3)[0]
    )


class WhileActiveTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_inactive_replica_keeps_all_it_has(self, num_devices):
    params, opt_state, model_state, metrics, g = run(
      pr.while_active(
        (1, 2, 3, 3), pr.gradient(), pr.local_update(MOMENTUM_SGD)
      ),
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
      pr.while_active(
        (1, 2, 3, 3), pr.gradient(), pr.local_update(MOMENTUM_SGD)
      )
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
      pr.while_active(
        (1, 1, 1, 2), pr.gradient(), pr.local_update(MOMENTUM_SGD)
      ),
      num_steps=2,
      num_devices=num_devices,
      loss=loss,
    )
    self.assertTrue(np.isfinite(params[:3]).all())
    self.assertFalse(np.isfinite(params[3]).any())

  @parameterized.parameters(
    (pr.sync(pr.mean()),),
    (pr.sync(pr.mean(), when=pr.every(4)),),
    (pr.sync(pr.ring(), what='opt_state'),),
    (pr.chain(pr.sync(pr.group_mean(2), when=pr.at([100]))),),
  )
  def test_refuses_a_stage_that_communicates(self, stage):
    algorithm = pr.while_active([1] * N, pr.gradient(), stage)
    with self.assertRaisesRegex(ValueError, 'stages that do not communicate'):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros(3))

  @parameterized.parameters(([0, 1],), ([1, -1],), ([1.5, 1],), (['2', 1],))
  def test_steps_are_positive_integers(self, local_steps):
    with self.assertRaisesRegex(ValueError, 'local_steps must be an integer'):
      pr.while_active(local_steps, pr.gradient())

  def test_steps_are_given(self):
    with self.assertRaisesRegex(ValueError, 'one number per replica, got none'):
      pr.while_active([], pr.gradient())

  def test_there_is_one_number_per_replica(self):
    algorithm = pr.while_active([1, 2], pr.gradient())
    with self.assertRaisesRegex(ValueError, 'each of the 4 replicas, got 2'):
      pr.create_train_state(pr.ReplicaMesh(N, 2), algorithm, np.zeros(3))

  def test_numpy_integers_are_integers(self):
    pr.while_active(np.array([1, 2]), pr.gradient())


class SyncTest(parameterized.TestCase):
  """WHAT and WHEN."""

  def test_parameters_alone_by_default(self):
    params, opt_state, model_state, _, g = run(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.sync(pr.mean()),
      num_steps=1,
    )
    want = np.broadcast_to(-0.1 * g[0].mean(axis=0), (N, 3))
    np.testing.assert_allclose(params, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(opt_state[0].trace, g[0], rtol=1e-5)
    np.testing.assert_allclose(
      model_state['mean'], g[0].sum(axis=-1) / 2, rtol=1e-5, atol=1e-6
    )

  @parameterized.parameters('opt_state', 'model_state', 'grads', 'params')
  def test_mixes_that_field_and_no_other(self, what):
    params, opt_state, model_state, _, g = run(
      pr.gradient(),
      pr.sync(pr.ring(), what='grads') if what == 'grads' else pr.chain(),
      pr.local_update(MOMENTUM_SGD),
      pr.chain() if what == 'grads' else pr.sync(pr.ring(), what=(what,)),
      num_steps=1,
    )
    w = reference.ring_weights(N)
    own = np.eye(N)
    fields = {
      'params': (params, -0.1 * g[0]),
      'opt_state': (opt_state[0].trace, g[0]),
      'model_state': (model_state['mean'], g[0].sum(axis=-1) / 2),
    }
    for name, (got, unmixed) in fields.items():
      mixed = name == what or (what == 'grads' and name != 'model_state')
      np.testing.assert_allclose(
        got, (w if mixed else own) @ unmixed, rtol=1e-5, atol=1e-6
      )
    np.testing.assert_array_equal(model_state['seen'], np.ones(N, np.int32))

  def test_integer_state_survives_a_conditional_average(self):
    tx = optax.adam(0.1)
    _, opt_state, model_state, *_ = run(
      pr.gradient(),
      pr.local_update(tx),
      pr.sync(
        pr.mean(),
        when=pr.every(2),
        what=('params', 'opt_state', 'model_state'),
      ),
      num_steps=4,
    )
    self.assertEqual(opt_state[0].count.dtype, np.int32)
    np.testing.assert_array_equal(opt_state[0].count, np.full(N, 4))
    np.testing.assert_array_equal(model_state['seen'], np.full(N, 4))
    np.testing.assert_array_equal(
      opt_state[0].mu, np.broadcast_to(opt_state[0].mu[0], (N, 3))
    )

  def test_fires_at_the_steps_of_the_schedule_and_no_others(self):
    mesh = pr.ReplicaMesh(N, 2)
    algorithm = pr.chain(
      pr.gradient(),
      pr.local_update(optax.sgd(0.1)),
      pr.sync(pr.mean(), when=pr.at([1, 3])),
    )
    state = pr.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    train_steps = pr.make_train_steps(mesh, algorithm, linear_loss)
    for step in range(6):
      state, _ = train_steps(state, batches(mesh, 1, seed=step)[0])
      params = mesh.gather(state.params)
      self.assertEqual((params == params[0]).all(), step in (1, 3))

  @parameterized.parameters(
    (('weights',), 'weights'),
    ((), r'got \(\)'),
    (('params', 'params'), 'each once'),
    (('params', 'metrics'), 'metrics'),
    ('param', 'param'),
  )
  def test_fields_are_known(self, what, message):
    with self.assertRaisesRegex(
      ValueError, rf"what expects some of \('params',.*{message}"
    ):
      pr.sync(pr.mean(), what=what)

  def test_one_field_may_be_given_by_name(self):
    pr.sync(pr.mean(), what='params')

  def test_outer_needs_the_parameters(self):
    with self.assertRaisesRegex(ValueError, "outer needs 'params' in what"):
      pr.sync(pr.mean(), what=('grads',), outer=optax.sgd(1.0))

  @parameterized.parameters(1, 2, 4)
  def test_mixing_fits_the_replicas(self, num_devices):
    algorithm = pr.chain(pr.sync(pr.group_mean(3), when=pr.at([10**6])))
    with self.assertRaisesRegex(ValueError, 'must divide the 4 replicas'):
      pr.create_train_state(
        pr.ReplicaMesh(N, num_devices), algorithm, np.zeros(3)
      )


class MistakesTest(parameterized.TestCase):
  """Arguments of the wrong kind, refused before anything is traced."""

  def test_mixing_is_a_mixing(self):
    with self.assertRaisesRegex(ValueError, 'mixing'):
      pr.sync(pr.mean)  # type: ignore[arg-type]

  def test_when_is_a_schedule(self):
    with self.assertRaisesRegex(ValueError, 'when'):
      pr.sync(pr.mean(), when=4)  # type: ignore[arg-type]

  def test_outer_is_optax(self):
    with self.assertRaisesRegex(ValueError, 'outer'):
      pr.sync(pr.mean(), outer=0.7)  # type: ignore[arg-type]

  def test_reset_has_a_schedule(self):
    with self.assertRaisesRegex(ValueError, 'when expects a schedule .* got 2'):
      pr.k_avg(MOMENTUM_SGD, period=4, reset=2)  # type: ignore[arg-type]

  @parameterized.named_parameters(
    ('none', (pr.local_update(MOMENTUM_SGD),)),
    ('too_late', (pr.local_update(MOMENTUM_SGD), pr.gradient())),
    ('mixed', (pr.sync(pr.mean(), what=('grads',)), pr.gradient())),
  )
  def test_gradient_is_taken_before_it_is_used(self, stages):
    with self.assertRaisesRegex(ValueError, 'chain pr.gradient.. before it'):
      run(*stages, num_steps=1)

  def test_reset_is_of_an_optimizer(self):
    with self.assertRaisesRegex(ValueError, 'optax'):
      pr.reset_buffers(0.1, when=pr.every(2))  # type: ignore[arg-type]


class OuterTest(parameterized.TestCase):
  STAGES = (pr.gradient(), pr.local_update(optax.sgd(0.1)))

  def test_plain_outer_step_of_one_is_the_mean(self):
    with_outer = pr.sync(pr.mean(), when=pr.every(2), outer=optax.sgd(1.0))
    without = pr.sync(pr.mean(), when=pr.every(2))
    np.testing.assert_allclose(
      run(*self.STAGES, with_outer, num_steps=5)[0],
      run(*self.STAGES, without, num_steps=5)[0],
      rtol=1e-5,
      atol=1e-6,
    )

  def test_lookahead_goes_part_of_the_way(self):
    params, *_, g = run(
      *self.STAGES,
      pr.sync(pr.mean(), when=pr.every(2), outer=optax.sgd(0.5)),
      num_steps=4,
    )
    want = -0.1 * 0.5 * g.sum(axis=0).mean(axis=0)
    np.testing.assert_allclose(
      params, np.broadcast_to(want, (N, 3)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(params, np.broadcast_to(params[0], (N, 3)))

  def test_outer_weight_decay_is_of_the_anchor(self):
    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    params, *_, g = run(
      *self.STAGES,
      pr.sync(pr.mean(), when=pr.every(2), outer=tx),
      num_steps=4,
    )
    # x0 = 0, then x <- x0 - ((x0 - mean) + 0.5 x0) = mean - 0.5 x0.
    first = -0.1 * g[:2].mean(axis=1).sum(axis=0)
    second = -0.1 * g[2:].mean(axis=1).sum(axis=0) + first - 0.5 * first
    np.testing.assert_allclose(
      params, np.broadcast_to(second, (N, 3)), rtol=1e-5, atol=1e-6
    )

  def test_other_fields_are_taken_over(self):
    _, opt_state, _, _, g = run(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.sync(pr.mean(), what=('params', 'opt_state'), outer=optax.sgd(0.5)),
      num_steps=1,
    )
    want = np.broadcast_to(g[0].mean(axis=0), (N, 3))
    np.testing.assert_allclose(opt_state[0].trace, want, rtol=1e-5, atol=1e-6)


class CommunicationTest(parameterized.TestCase):
  """What a sync compiles to."""

  def algorithm(self, when, what=('params',), mixing=None):
    return pr.chain(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.sync(mixing or pr.mean(), when=when, what=what),
    )

  @parameterized.parameters(2, 4)
  def test_collective_is_inside_the_conditional(self, num_devices):
    equations = jaxpr_equations(self.algorithm(pr.every(4)), num_devices)
    ((eqn, conditional),) = collectives(equations)
    self.assertTrue(conditional)
    self.assertEqual(eqn.invars[0].aval.size, 3)

  @parameterized.parameters(
    (('params',), 1),
    (('params', 'opt_state'), 2),
    (('model_state',), 2),  # a mean and a count that is not sent
  )
  def test_conditional_covers_the_mixed_fields_alone(self, what, num_leaves):
    equations = jaxpr_equations(self.algorithm(pr.every(4), what), 4)
    (eqn,) = conditionals(equations)
    # The count passes through: it may or may not be an output.
    self.assertLessEqual(len(eqn.outvars), num_leaves)
    self.assertNotEmpty(eqn.outvars)

  @parameterized.parameters(None, pr.always())
  def test_always_compiles_no_conditional(self, when):
    equations = jaxpr_equations(self.algorithm(when), 4)
    self.assertEmpty(conditionals(equations))
    ((_, conditional),) = collectives(equations)
    self.assertFalse(conditional)

  def test_never_compiles_nothing(self):
    equations = jaxpr_equations(self.algorithm(pr.never()), 4)
    self.assertEmpty(conditionals(equations))
    self.assertEmpty(collectives(equations))

  def test_half_precision_travels_in_single(self):
    mesh = pr.ReplicaMesh(N, N)
    algorithm = self.algorithm(pr.every(2))
    state = pr.create_train_state(
      mesh, algorithm, np.zeros(3, jnp.bfloat16), MODEL_STATE
    )
    train_steps = pr.make_train_steps(mesh, algorithm, linear_loss)
    jaxpr = jax.make_jaxpr(train_steps)(state, batches(mesh, 1)[0])
    ((eqn, _),) = collectives(harness.equations(jaxpr.jaxpr))
    self.assertEqual(eqn.invars[0].aval.dtype, jnp.float32)

  def test_compiled_program_is_conditional(self):
    mesh = pr.ReplicaMesh(N, 2)
    algorithm = self.algorithm(pr.every(4))
    state = pr.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    data = batches(mesh, 1)[0]

    def step(state, batch):
      context = harness.bare_context(mesh, 0)._replace(
        step=state.step,
        value_and_grad=lambda p, s: (
          (p.sum(axis=1), (s, {})),
          jnp.ones_like(p) * batch[0],
        ),
      )
      replica, algorithm_state = algorithm.update(
        state.replica(), state.algorithm_state, context
      )
      return state.advance(replica, algorithm_state)

    text = mesh.map(step).lower(state, data).compile().as_text()
    self.assertRegex(text, r'conditional\(')
    entry = text[text.index('ENTRY') :]
    self.assertNotRegex(entry, r'all-reduce\(')
    self.assertRegex(text, r'all-reduce\(')


if __name__ == '__main__':
  absltest.main()

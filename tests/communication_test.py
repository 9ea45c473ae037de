"""SYNC: the registers it mixes, and the program it compiles to."""

import types

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
  collectives,
  conditionals,
  jaxpr_equations,
  linear_loss,
  run,
)


class SyncTest(parameterized.TestCase):
  """The registers it mixes, and the ones it does not change."""

  def test_parameters_alone_by_default(self):
    params, opt_state, model_state, _, g = run(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.sync(pr.mixing.mean()),
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
      pr.sync(pr.graphs.ring(), 'grads') if what == 'grads' else pr.chain(),
      pr.local_update(MOMENTUM_SGD),
      pr.chain() if what == 'grads' else pr.sync(pr.graphs.ring(), (what,)),
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
      pr.at(
        pr.schedules.every(2),
        pr.sync(pr.mixing.mean(), ('params', 'opt_state', 'model_state')),
      ),
      num_steps=4,
    )
    self.assertEqual(opt_state[0].count.dtype, np.int32)
    np.testing.assert_array_equal(opt_state[0].count, np.full(N, 4))
    np.testing.assert_array_equal(model_state['seen'], np.full(N, 4))
    np.testing.assert_array_equal(
      opt_state[0].mu, np.broadcast_to(opt_state[0].mu[0], (N, 3))
    )

  @parameterized.parameters(
    ((), r'got \(\)'),
    (('params', 'params'), 'each once'),
    (('params', 'metrics'), 'metrics'),
    (('params', 'step'), 'step'),
    ((3,), '3'),
  )
  def test_registers_have_names(self, what, message):
    with self.assertRaisesRegex(
      ValueError, f'sync expects names of registers.*{message}'
    ):
      pr.sync(pr.mixing.mean(), what)

  def test_an_unknown_register_is_told(self):
    with self.assertRaisesRegex(
      ValueError, r"'param' is read.*did you mean 'params'\?"
    ):
      run(pr.gradient(), pr.sync(pr.mixing.mean(), 'param'), num_steps=1)

  @parameterized.parameters(1, 2, 4)
  def test_mixing_fits_the_replicas(self, num_devices):
    never = pr.schedules.at_steps([10**6])
    algorithm = pr.chain(pr.at(never, pr.sync(pr.mixing.group_mean(3))))
    with self.assertRaisesRegex(ValueError, 'must divide the 4 replicas'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, num_devices), algorithm, np.zeros(3)
      )

  def test_mixing_is_a_mixing(self):
    with self.assertRaisesRegex(ValueError, 'mixing'):
      pr.sync(pr.mixing.mean)  # type: ignore[arg-type]

  @parameterized.named_parameters(
    ('none', (pr.local_update(MOMENTUM_SGD),)),
    ('too_late', (pr.local_update(MOMENTUM_SGD), pr.gradient())),
    ('mixed', (pr.sync(pr.mixing.mean(), 'grads'), pr.gradient())),
  )
  def test_gradient_is_taken_before_it_is_used(self, stages):
    with self.assertRaisesRegex(ValueError, 'put pr.gradient.. before it'):
      run(*stages, num_steps=1)


class WeightTest(parameterized.TestCase):
  """x_i <- sum_j W_ij w_j x_j / sum_j W_ij w_j; w_i <- sum_j W_ij w_j."""

  def mixed(self, mixing, weights, num_devices, num_steps=1):
    """The parameters after the last step, and the steps' gradients."""
    params, *_, g = run(
      pr.remember(weight=pr.per_replica(weights)),
      pr.step(optax.sgd(1.0)),
      pr.sync(mixing),
      num_steps=num_steps,
      num_devices=num_devices,
    )
    return params, -g.astype(float)

  @parameterized.parameters(1, 2, 4)
  def test_weighted_mean(self, num_devices):
    w = np.array([1.0, 0.0, 2.5, 0.5])
    params, x = self.mixed(pr.mixing.mean(), w, num_devices)
    want = np.broadcast_to(w @ x[0] / w.sum(), (N, 3))
    np.testing.assert_allclose(params, want, rtol=1e-5)
    np.testing.assert_array_equal(params, np.broadcast_to(params[0], (N, 3)))

  def test_the_weights_are_mixed_too(self):
    # Twice: the second average weighs by what the first made of the weights.
    w, ring = np.array([1.0, 3.0, 2.0, 0.5]), reference.ring_weights(N)
    params, x = self.mixed(pr.graphs.ring(), w, 2, num_steps=2)
    z, w1 = ring @ (w[:, None] * x[0]), ring @ w
    z = ring @ (w1[:, None] * (z / w1[:, None] + x[1]))
    np.testing.assert_allclose(
      params, z / (ring @ w1)[:, None], rtol=1e-5, atol=1e-6
    )

  def test_a_replica_that_no_weight_reaches_is_nan(self):
    params, _ = self.mixed(pr.mixing.group_mean(2), [0.0, 0.0, 1.0, 1.0], 2)
    self.assertTrue(np.isnan(params[:2]).all())
    self.assertTrue(np.isfinite(params[2:]).all())

  def test_rows_must_sum_to_one_without_weights(self):
    columns = pr.mixing.dense(reference.random_column_stochastic(N))
    algorithm = pr.chain(pr.step(MOMENTUM_SGD), pr.sync(columns))
    with self.assertRaisesRegex(ValueError, 'rows that sum to 1.*pr.sgp'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )
    weighted = pr.chain(pr.remember(weight=1.0), algorithm)
    pr.engine.create_train_state(
      pr.engine.ReplicaMesh(N, 2), weighted, np.zeros(3)
    )

  def test_the_weight_is_sent_too(self):
    algorithm = pr.chain(pr.remember(weight=1.0), pr.sync(pr.mixing.mean()))
    state = harness.state_types(
      pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3, np.float32)
    )
    (sent,) = algorithm.cost(pr.engine.replica_shapes(state), N, np.arange(1))
    self.assertEqual(sent.bytes_sent, 2 * 3 / 4 * (12 + 4))


class AssignedWeightTest(parameterized.TestCase):
  """Weights that no `remember` declares: of a step, of any dtype."""

  RULES = types.MappingProxyType(
    {
      'int': lambda replica: replica + 1,
      'bool': lambda replica: replica > 0,
      'float': lambda replica: replica + 1.0,
    }
  )

  @parameterized.product(
    kind=tuple(RULES), assign=(pr.let, pr.compute), num_devices=(1, 4)
  )
  def test_weighs_by_numbers_of_any_dtype(self, kind, assign, num_devices):
    w = np.array(
      [[0.5, 0.2, 0.3, 0], [0, 0.6, 0.1, 0.3], [0.25] * 4, [0.1, 0.2, 0.3, 0.4]]
    )
    x = np.arange(4.0)
    params, *_ = run(
      pr.let(params=lambda replica: 1.0 * replica),
      assign(weight=self.RULES[kind]),
      pr.sync(pr.mixing.dense(w)),
      num_steps=1,
      num_devices=num_devices,
    )
    weight = np.asarray(self.RULES[kind](x), np.float64)
    want = (w @ (weight * x)) / (w @ weight)
    np.testing.assert_allclose(params[:, 0], want, rtol=1e-6)

  def test_the_ledger_counts_a_weight_made_of_metrics(self):
    algorithm = pr.chain(
      pr.gradient(),
      pr.compute(weight=lambda metrics: jnp.exp(-metrics['loss'])),
      pr.sync(pr.mixing.mean()),
    )
    state = harness.state_types(
      pr.engine.ReplicaMesh(N, 1), algorithm, np.zeros(3, np.float32)
    )
    cost = algorithm.cost(pr.engine.replica_shapes(state), N, np.arange(1))
    self.assertEqual(cost[1].bytes_sent, 2 * (N - 1) / N * 4 * (3 + 1))

  @parameterized.parameters(pr.let, pr.compute)
  def test_is_one_number(self, assign):
    algorithm = pr.chain(assign(weight='params'), pr.sync(pr.mixing.mean()))
    with self.assertRaisesRegex(ValueError, r'one number .* got \(3,\)'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )

  def test_comes_after_a_codec_that_cannot_carry_it(self):
    algorithm = pr.chain(
      pr.sync(pr.graphs.ring(), codec=pr.codecs.difference(pr.codecs.signs())),
      pr.remember(weight=1.0),
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
    )
    steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    with self.assertRaisesRegex(ValueError, 'does not support weights'):
      steps(state, batches(mesh, 1)[0])


class SyncArgumentsTest(parameterized.TestCase):
  """What a register must be to be sent."""

  @parameterized.parameters(
    (3,), (None,), ((),), ('step',), ('metrics',), (('params', 1),)
  )
  def test_what_are_names(self, what):
    with self.assertRaisesRegex(ValueError, 'sync expects names of registers'):
      pr.sync(pr.mixing.mean(), what)

  def test_weight_is_not_named(self):
    with self.assertRaisesRegex(
      ValueError, 'sync always mixes the register .weight.'
    ):
      pr.sync(pr.mixing.mean(), ('params', 'weight'))

  @parameterized.parameters(3, 'step')
  def test_own_is_a_name(self, own):
    with self.assertRaisesRegex(ValueError, 'own must be the name of a reg'):
      pr.sync(pr.mixing.mean(), codec=pr.codecs.signs(), own=own)

  @parameterized.parameters('params', 'weight')
  def test_own_is_another_register(self, own):
    with self.assertRaisesRegex(ValueError, 'is already assigned by this sync'):
      pr.sync(pr.mixing.mean(), codec=pr.codecs.signs(), own=own)

  @parameterized.named_parameters(
    (
      'integers',
      (pr.remember(n=1), pr.sync(pr.mixing.mean(), 'n')),
      "register 'n' has only integers",
    ),
    (
      'no_leaves',
      (
        pr.step(optax.sgd(0.1)),
        pr.sync(pr.mixing.mean(), 'opt_state', codec=pr.codecs.signs()),
      ),
      'a codec needs floating leaves',
    ),
    (
      'metrics',
      (
        pr.gradient(),
        pr.compute(l=lambda metrics: metrics['loss']),
        pr.sync(pr.mixing.mean(), 'l'),
      ),
      'has no shape before the first step',
    ),
    (
      'own',
      (
        pr.remember(known=0.0),
        pr.sync(pr.mixing.mean(), codec=pr.codecs.signs(), own='known'),
      ),
      "registers 'known' and 'params' must have the same",
    ),
  )
  def test_registers_fit(self, stages, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), pr.chain(*stages), np.zeros(3, np.float32)
      )

  def test_own_keeps_its_dtype(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = pr.chain(
      pr.remember(known='params'),
      pr.sync(pr.mixing.mean(), codec=pr.codecs.signs(), own='known'),
    )
    state = pr.engine.create_train_state(
      mesh, algorithm, jnp.ones(3, jnp.bfloat16)
    )
    steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    state, _ = steps(state, batches(mesh, 1)[0])
    self.assertEqual(state.registers['known'].dtype, jnp.float32)


class CodecTest(parameterized.TestCase):
  """What a codec sends, and what `own` receives."""

  @parameterized.parameters(
    ({'own': 'known'}, 'requires a codec'),
    (
      {'own': 'known', 'what': ('params', 'grads'), 'codec': pr.codecs.signs()},
      'and one register',
    ),
    ({'codec': 0.1}, 'expected a compressor'),
    ({'codec': pr.codecs.top_k}, 'expected a compressor'),
  )
  def test_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.sync(pr.mixing.mean(), **arguments)

  @parameterized.parameters(-0.1, 1.5, True, None)
  def test_decay(self, decay):
    with self.assertRaisesRegex(ValueError, r'decay must be in \[0, 1\]'):
      pr.codecs.feedback(pr.codecs.signs(), decay)

  def test_differences_need_one_matrix_and_no_weights(self):
    codec = pr.codecs.difference(pr.codecs.top_k(0.5))
    for message, stages in (
      (
        'one W for all rounds',
        [pr.sync(pr.graphs.one_peer_exponential(), codec=codec)],
      ),
      (
        'does not support weights',
        [pr.remember(weight=1.0), pr.sync(pr.mixing.mean(), codec=codec)],
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        pr.engine.create_train_state(
          pr.engine.ReplicaMesh(N, 2), pr.chain(*stages), np.zeros(3)
        )

  def test_own_is_what_the_others_decode(self):
    params, *_, g = run(
      pr.gradient(),
      pr.let(sent='grads'),
      pr.sync(pr.mixing.mean(), 'sent', codec=pr.codecs.signs(), own='known'),
      pr.let(params=lambda known, sent: known + 0 * sent),
      num_steps=1,
    )
    want = np.sign(g[0]) * np.abs(g[0]).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(params, want, rtol=1e-6)


class CommunicationTest(parameterized.TestCase):
  """What a sync compiles to."""

  def algorithm(self, when, what=('params',), mixing=None):
    return pr.chain(
      pr.gradient(),
      pr.local_update(MOMENTUM_SGD),
      pr.at(when, pr.sync(mixing or pr.mixing.mean(), what)),
    )

  @parameterized.parameters(2, 4)
  def test_collective_is_inside_the_conditional(self, num_devices):
    equations = jaxpr_equations(
      self.algorithm(pr.schedules.every(4)), num_devices
    )
    ((eqn, conditional),) = collectives(equations)
    self.assertTrue(conditional)
    self.assertEqual(eqn.invars[0].aval.size, 3)

  @parameterized.parameters(
    (('params',), 1),
    (('params', 'opt_state'), 2),
    (('model_state',), 2),  # a mean and a count that is not sent
  )
  def test_conditional_covers_the_mixed_fields_alone(self, what, num_leaves):
    equations = jaxpr_equations(self.algorithm(pr.schedules.every(4), what), 4)
    (eqn,) = conditionals(equations)
    # The count passes through: it may or may not be an output.
    self.assertLessEqual(len(eqn.outvars), num_leaves)
    self.assertNotEmpty(eqn.outvars)

  @parameterized.parameters(pr.schedules.always(), pr.schedules.every(1))
  def test_always_compiles_no_conditional(self, when):
    equations = jaxpr_equations(self.algorithm(when), 4)
    self.assertEmpty(conditionals(equations))
    ((_, conditional),) = collectives(equations)
    self.assertFalse(conditional)

  def test_never_compiles_nothing(self):
    equations = jaxpr_equations(self.algorithm(pr.schedules.never()), 4)
    self.assertEmpty(conditionals(equations))
    self.assertEmpty(collectives(equations))

  def test_half_precision_travels_in_single(self):
    mesh = pr.engine.ReplicaMesh(N, N)
    algorithm = self.algorithm(pr.schedules.every(2))
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, jnp.bfloat16), MODEL_STATE
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    jaxpr = jax.make_jaxpr(train_steps)(state, batches(mesh, 1)[0])
    ((eqn, _),) = collectives(harness.equations(jaxpr.jaxpr))
    self.assertEqual(eqn.invars[0].aval.dtype, jnp.float32)

  def test_compiled_program_is_conditional(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = self.algorithm(pr.schedules.every(4))
    state = pr.engine.create_train_state(
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

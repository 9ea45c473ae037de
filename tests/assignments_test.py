"""ASSIGNMENTS and RULES: how registers are declared, read and assigned."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.stages import rules
from tests.stage_harness import N, linear_loss, run

LOCAL = pr.step(optax.sgd(0.1))


def bare_loss(params, model_state, batch, key):
  """No gradient and no state: only the stages move anything."""
  del key
  zero = sum(0 * x.sum() for x in jax.tree.leaves(params)) + 0 * batch.sum()
  return zero, (model_state, {})


def after(*stages, start, num_steps=1, num_devices=2, seed=0):
  """The train state after some steps of stages that take no gradient."""
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  algorithm = pr.chain(*stages)
  state = pr.engine.create_train_state(mesh, algorithm, start, seed=seed)
  train_steps = pr.engine.make_train_steps(mesh, algorithm, bare_loss)
  shape = (num_devices, num_steps, N // num_devices, 1)
  state, _ = train_steps(state, mesh.place_per_device(np.zeros(shape, 'f')))
  return mesh.gather((state.params, state.registers))


class RememberTest(parameterized.TestCase):
  def test_is_evaluated_once_and_lasts(self):
    params, registers = after(
      pr.remember(x0='params', twice=lambda x0: 2 * x0),
      pr.let(params=lambda params: params + 1),
      start=np.ones(2, np.float32),
      num_steps=3,
    )
    np.testing.assert_array_equal(params, np.full((N, 2), 4))
    np.testing.assert_array_equal(registers['x0'], np.ones((N, 2)))
    np.testing.assert_array_equal(registers['twice'], np.full((N, 2), 2))

  def test_is_wider_than_half_precision(self):
    _, registers = after(
      pr.remember(x0='params', weight=1.0),
      start=np.ones(2, jnp.bfloat16),
    )
    self.assertEqual(registers['x0'].dtype, np.float32)
    self.assertEqual(registers['weight'].dtype, np.float32)

  def test_a_step_smaller_than_half_precision_is_not_lost(self):
    # 1 + 2^-10 is 1 in bfloat16; four of them are a step of it.
    params, registers = after(
      pr.remember(x0='params'),
      pr.let(x0=lambda x0: x0 + 2.0**-9, params='x0'),
      start=np.ones(1, jnp.bfloat16),
      num_steps=4,
    )
    np.testing.assert_array_equal(registers['x0'], np.full((N, 1), 1 + 2**-7))
    np.testing.assert_array_equal(
      params.astype(float), np.full((N, 1), 1 + 2**-7)
    )

  @parameterized.parameters(1, 2, 4)
  def test_one_number_for_each_replica_on_every_layout(self, num_devices):
    _, registers = after(
      pr.remember(w=pr.per_replica([1, 2, 3, 4]), i=lambda replica: replica),
      start=np.zeros(2, np.float32),
      num_devices=num_devices,
    )
    np.testing.assert_array_equal(registers['w'], [1, 2, 3, 4])
    np.testing.assert_array_equal(registers['i'], range(N))

  @parameterized.parameters(2, 2.0, np.int32(2))
  def test_the_weight_is_a_float(self, weight):
    params, registers = after(
      pr.remember(weight=weight),
      pr.sync(pr.mixing.mean()),
      start=np.ones(2, np.float32),
    )
    self.assertEqual(registers['weight'].dtype, np.float32)
    np.testing.assert_array_equal(params, np.ones((N, 2)))

  def test_the_weight_is_one_number(self):
    with self.assertRaisesRegex(ValueError, 'weight.* one number for each'):
      after(pr.remember(weight='params'), start=np.zeros((2, 2), np.float32))

  @parameterized.parameters('step', 'key', 'shared_key')
  def test_there_is_no_step_yet(self, name):
    with self.assertRaisesRegex(ValueError, f'cannot read {name!r}'):
      pr.remember(x=pr.stages.reading(lambda x: x, name))

  def test_of_a_register_that_holds_nothing_yet(self):
    with self.assertRaisesRegex(ValueError, "reads 'opt_state'"):
      run(pr.remember(v='opt_state'), LOCAL, num_steps=1)

  @parameterized.parameters('params', 'grads', 'opt_state', 'metrics')
  def test_fields_are_there_already(self, name):
    with self.assertRaisesRegex(ValueError, f'already has {name!r}'):
      pr.remember(**{name: 'params'})


class LetTest(parameterized.TestCase):
  def test_is_a_sequence(self):
    _, registers = after(
      pr.remember(a=1.0, b=2.0, params2='params'),
      pr.let(a=lambda b: b + 1, b=lambda a: 10 * a),
      start=np.zeros(2, np.float32),
    )
    np.testing.assert_array_equal(registers['a'], np.full(N, 3))
    np.testing.assert_array_equal(registers['b'], np.full(N, 30))

  def test_goes_leaf_by_leaf_in_the_dtype_of_its_target(self):
    start = {'w': np.ones((2, 2), jnp.bfloat16), 'b': np.ones(3, np.float32)}
    params, _ = after(
      pr.let(params=lambda params: params + params.size), start=start
    )
    self.assertEqual(params['w'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(params['w'].astype(float), 5)
    np.testing.assert_array_equal(params['b'], 4)

  def test_integer_leaves_keep_their_values(self):
    start = {'w': np.ones(3, np.float32), 'n': np.arange(2)}
    params, registers = after(
      pr.remember(x0='params'),
      pr.let(params=lambda params: params + 1),
      pr.sync(pr.mixing.mean()),
      pr.let(d=lambda x0, params: x0 - params, x0='params'),
      pr.let(params=lambda params, d: params + d),
      start=start,
    )
    np.testing.assert_array_equal(params['n'], [[0, 1]] * N)
    np.testing.assert_array_equal(params['w'], np.ones((N, 3)))
    np.testing.assert_array_equal(registers['x0']['w'], np.full((N, 3), 2))

  def test_a_counter_of_each_replica_counts(self):
    _, registers = after(
      pr.remember(count=0),
      pr.let(count=lambda count, replica: count + replica),
      start=np.zeros(2, np.float32),
      num_steps=3,
    )
    self.assertEqual(registers['count'].dtype, np.int32)
    np.testing.assert_array_equal(registers['count'], [0, 3, 6, 9])

  @parameterized.parameters(1, 2, 4)
  def test_reads_the_clock(self, num_devices):
    params, _ = after(
      pr.let(
        params=lambda params, step, replica, num_replicas: (
          params + 100 * step + 10 * replica + num_replicas
        )
      ),
      start=np.zeros(1, np.float32),
      num_steps=2,
      num_devices=num_devices,
    )
    np.testing.assert_array_equal(
      params[:, 0], 108 + 20 * np.arange(N, dtype=float)
    )

  def test_keys_of_replicas_leaves_and_layouts(self):
    start = {'a': np.zeros(2, np.float32), 'b': np.zeros(2, np.float32)}

    def drawn(name, num_devices):
      rule = pr.stages.reading(
        lambda x, key: x + jax.random.normal(key, x.shape), 'params', name
      )
      stage = pr.let(params=rule)
      return after(stage, start=start, num_devices=num_devices)[0]

    own, shared = drawn('key', 2), drawn('shared_key', 2)
    every = np.concatenate([own['a'], own['b']])
    self.assertLen(np.unique(every), 4 * N)
    np.testing.assert_array_equal(shared['a'], shared['b'])
    np.testing.assert_array_equal(shared['a'], [shared['a'][0]] * N)
    for num_devices in (1, 4):
      jax.tree.map(
        np.testing.assert_array_equal, drawn('key', num_devices), own
      )

  def test_a_number_for_each_replica_fills_a_tree(self):
    params, _ = after(
      pr.let(params=lambda replica: 1.0 * replica),
      start={'w': np.ones((2, 2), np.float32)},
    )
    np.testing.assert_array_equal(params['w'][:, 0, 0], range(N))
    np.testing.assert_array_equal(
      params['w'], params['w'][:, :1, :1] + 0 * params['w']
    )


class ComputeTest(parameterized.TestCase):
  def test_sees_whole_trees_of_one_replica(self):
    start = {'w': np.ones((2, 2), np.float32), 'b': np.ones(5, np.float32)}
    params, _ = after(
      pr.compute(norm=lambda params: optax.tree.norm(params)),
      pr.let(params=lambda params, norm: params * norm),
      start=start,
    )
    np.testing.assert_allclose(params['b'], np.full((N, 5), 3))

  def test_keeps_the_dtype_of_its_target(self):
    start = np.ones(3, jnp.bfloat16)
    params, _ = after(pr.compute(params=lambda params: params * 2), start=start)
    self.assertEqual(params.dtype, jnp.bfloat16)

  @parameterized.parameters(
    (lambda params: params['w'], 'different structures'),
    (
      lambda params: {'w': params['w'].sum()},
      r'shape \(2,\) was .* shape \(\)',
    ),
  )
  def test_fits_its_target(self, rule, message):
    with self.assertRaisesRegex(ValueError, message):
      after(
        pr.compute(params=rule),
        start={'w': np.ones(2, np.float32)},
      )


class EvaluateTest(parameterized.TestCase):
  def test_is_the_output_alone(self):
    algorithm = pr.chain(
      pr.remember(center=lambda params: params + 1),
      pr.let(params=lambda params: params + 5),
      pr.evaluate(params='center'),
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(2, np.float32)
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, bare_loss)
    state, _ = train_steps(
      state, mesh.place_per_device(np.zeros((2, 1, 2, 1), 'f'))
    )
    np.testing.assert_array_equal(mesh.gather(state.params), np.full((N, 2), 5))
    np.testing.assert_array_equal(
      pr.engine.consensus(algorithm, state)[0], [1, 1]
    )

  @parameterized.parameters('step', 'replica', 'num_replicas', 'key')
  def test_an_output_belongs_to_no_step(self, name):
    with self.assertRaisesRegex(ValueError, f'cannot read {name!r}'):
      pr.evaluate(params=pr.stages.reading(lambda x: x, name))


class RulesTest(parameterized.TestCase):
  def test_reading_gives_positions_names(self):
    params, _ = after(
      pr.remember(x0=lambda params: params + 3),
      pr.let(params=pr.stages.reading(jnp.subtract, 'x0', 'params')),
      start=np.ones(2, np.float32),
    )
    np.testing.assert_array_equal(params, np.full((N, 2), 3))

  def test_defaults_are_the_callers_constants(self):
    self.assertEqual(rules.as_rule('x', lambda a, b=3: a + b).reads, ('a',))

  @parameterized.parameters(
    (np.subtract, 'unknown|name registers'),
    (lambda *args: args, 'name its inputs with pr.stages.reading'),
    (lambda **kwargs: kwargs, 'name its inputs with pr.stages.reading'),
    (lambda x, /: x, 'name its inputs with pr.stages.reading'),
    ([1, 2], r'expects a function of registers.*got \[1, 2\]'),
    (None, 'expects a function of registers.*got None'),
  )
  def test_parameters_have_names(self, rule, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.let(u=rule)

  @parameterized.parameters((3, 'a'), (jnp.subtract, 'a', 3))
  def test_reading_has_a_function_and_names(self, fn, *names):
    with self.assertRaisesRegex(ValueError, 'reading expects a function'):
      pr.stages.reading(fn, *names)

  @parameterized.parameters(([[1, 2]],), ('ab',), (None,), ([True, False],))
  def test_per_replica_has_numbers(self, values):
    with self.assertRaisesRegex(ValueError, 'one number for each replica'):
      pr.per_replica(values)

  def test_per_replica_has_one_for_each(self):
    with self.assertRaisesRegex(ValueError, 'each of the 4 replicas, got 3'):
      run(pr.remember(weight=pr.per_replica([1, 2, 3])), LOCAL, num_steps=1)

  @parameterized.parameters(([0, 1],), ([1, -1],), ([1.5, 1],), (['2', 1],))
  def test_first_steps_are_positive_integers(self, local_steps):
    with self.assertRaisesRegex(ValueError, 'local_steps must be an integer'):
      pr.stages.first_steps(local_steps)

  def test_first_steps_are_given(self):
    with self.assertRaisesRegex(ValueError, 'one number per replica, got none'):
      pr.stages.first_steps([])

  def test_first_steps_are_one_number_per_replica(self):
    with self.assertRaisesRegex(ValueError, 'each of the 4 replicas, got 2'):
      run(pr.where(pr.stages.first_steps([1, 2]), LOCAL), num_steps=1)

  def test_numpy_integers_are_integers(self):
    pr.stages.first_steps(np.array([1, 2]))


class MetricsTest(parameterized.TestCase):
  @parameterized.parameters(pr.let, pr.compute)
  def test_are_a_dict(self, assign):
    with self.assertRaisesRegex(ValueError, 'expects a dict of numbers'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2),
        pr.chain(assign(metrics=lambda step: step)),
        np.zeros(3),
      )

  def test_a_metric_of_ones_own(self):
    *_, metrics, g = run(
      LOCAL,
      pr.compute(
        metrics=lambda metrics, grads: {
          **metrics,
          'size': jnp.abs(grads).sum(),
        }
      ),
      num_steps=2,
      loss=linear_loss,
    )
    np.testing.assert_allclose(
      metrics['size'], np.abs(g).sum(axis=-1), rtol=1e-5
    )


class IntegersTest(parameterized.TestCase):
  """Integers are counted with, and never cut silently."""

  @parameterized.parameters(pr.let, pr.compute)
  def test_floats_are_not_cut(self, assign):
    algorithm = pr.chain(pr.remember(n=0), assign(n=lambda n: n + 0.5))
    with self.assertRaisesRegex(ValueError, r'truncated; .*n=0\.0'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )

  @parameterized.parameters(pr.let, pr.compute)
  def test_counts(self, assign):
    _, registers = after(
      pr.remember(n=0),
      assign(n=lambda n: n + 2),
      start=np.zeros(3, np.float32),
      num_steps=3,
    )
    np.testing.assert_array_equal(registers['n'], [6] * N)

  def test_an_integer_leaf_of_a_tree_keeps_its_value(self):
    # Also one number of each replica, which is not a register by itself.
    params, _ = after(
      pr.let(params=lambda params: params + 0.5),
      start={'n': np.int32(3), 'w': np.zeros(2, np.float32)},
    )
    np.testing.assert_array_equal(params['n'], [3] * N)
    np.testing.assert_array_equal(params['w'], np.full((N, 2), 0.5))

  def test_a_count_does_not_read_trees(self):
    # For dicts the message would be that the structures differ.
    algorithm = pr.chain(
      pr.remember(n=0), pr.let(n=lambda n, params: n + params.sum())
    )
    with self.assertRaisesRegex(ValueError, r'use pr\.compute\(n='):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3)
      )


class KeysTest(parameterized.TestCase):
  """No two rules draw the same numbers."""

  @parameterized.product(
    name=('key', 'shared_key'), assign=(pr.let, pr.compute)
  )
  def test_rules_of_one_stage_draw_for_themselves(self, name, assign):
    rule = pr.stages.reading(jax.random.normal, name)
    _, registers = after(
      pr.remember(a=0.0, b=0.0, c=0.0),
      assign(a=rule, b=rule, c=rule),
      start=np.zeros(3, np.float32),
    )
    drawn = np.stack([registers[n] for n in 'abc'])
    self.assertLen(np.unique(drawn[:, 0]), 3)
    self.assertEqual(len(np.unique(drawn)), 12 if name == 'key' else 3)

  @parameterized.product(name=('key', 'shared_key'), num_devices=(1, 4))
  def test_who_is_active_does_not_tell_what_is_drawn(self, name, num_devices):
    def active(key):  # as many users do, with a part of the key
      return jax.random.uniform(jax.random.split(key)[0]) < 0.5

    _, registers = after(
      pr.remember(drawn=-1.0),
      pr.where(
        pr.stages.reading(active, name),
        pr.compute(drawn=pr.stages.reading(jax.random.uniform, name)),
        expected=lambda steps, n: np.ones((len(steps), n), bool),
      ),
      start=np.zeros(3, np.float32),
      num_steps=40,
      num_devices=num_devices,
    )
    self.assertGreater(registers['drawn'].max(), 0.5)


if __name__ == '__main__':
  absltest.main()

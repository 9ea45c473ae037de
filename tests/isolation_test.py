"""The caller's functions cannot use the axis of replicas."""

from absl.testing import absltest, parameterized
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.tracing import isolation

N = 4
AXIS = pr.base.AXIS_NAME
ALGORITHM = pr.k_avg(optax.sgd(0.1), period=2)
LAYOUTS = (1, 2, 4)


@jax.custom_vjp
def mean_of_gradients(x):
  return x


mean_of_gradients.defvjp(lambda x: (x, ()), lambda _, g: (lax.pmean(g, AXIS),))

# What a loss might do with the axis of the replicas.
COLLECTIVES = {
  'pmean': lambda x: lax.pmean(x, AXIS),
  'sum_of_ones': lambda x: x / lax.psum(1, AXIS),  # a constant, no primitive
  'axis_size': lambda x: x / lax.axis_size(AXIS),
  'axis_index': lambda x: x * lax.axis_index(AXIS),
  'all_gather': lambda x: lax.all_gather(x, AXIS).mean(0),
  'in_jit': jax.jit(lambda x: lax.psum(x, AXIS)),
  'in_scan': lambda x: lax.scan(
    lambda c, _: (lax.pmean(c, AXIS), None), x, None, length=2
  )[0],
  'in_cond': lambda x: lax.cond(
    x.sum() > 0, lambda: lax.pmean(x, AXIS), lambda: x
  ),
  'in_own_vmap': lambda x: jax.vmap(
    lambda v: lax.pmean(v, ('own', AXIS)), axis_name='own'
  )(x),
  'in_remat': jax.checkpoint(lambda x: lax.pmean(x, AXIS)),
  'only_in_the_gradient': mean_of_gradients,
}

# Of these nothing is left in a program that was traced inside.
UNSEEN = ('sum_of_ones', 'axis_size', 'only_in_the_gradient')


def over(fn):
  return lambda updates, params: jax.tree.map(fn, updates)


def rule(fn):
  return lambda params: fn(params)


def create(mesh, model_state=()):
  return pr.engine.create_train_state(
    mesh, ALGORITHM, np.ones(3, np.float32), model_state
  )


def resident(mesh, loss_fn, batch_fn):
  return pr.engine.make_resident_train_steps(mesh, ALGORITHM, loss_fn, batch_fn)


def square(params, model_state, batch, key):
  del key
  return jnp.square(params - batch).sum(), (model_state, {})


class IsolationTest(parameterized.TestCase):
  @parameterized.product(name=tuple(COLLECTIVES), num_devices=(1, 2))
  def test_loss_has_no_collective(self, name, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)

    def loss_fn(params, model_state, batch, key):
      loss, aux = square(params, model_state, batch, key)
      return loss + COLLECTIVES[name](params).sum(), aux

    steps = pr.engine.make_train_steps(mesh, ALGORITHM, loss_fn)
    state = create(mesh)
    for num_steps in (1, 3):
      batches = np.zeros((num_devices, num_steps, N // num_devices, 3))
      with self.assertRaisesRegex(
        ValueError, r"^loss_fn .*collective.*BatchNorm\(axis_name='replica'\)"
      ):
        steps(state, batches)
    self.assertFalse(state.step.is_deleted())

  @parameterized.parameters(1, 2, 4)
  def test_flax_batch_norm_over_the_replicas_is_named(self, num_devices):
    model = nn.BatchNorm(use_running_average=False, axis_name=AXIS)

    def loss_fn(params, model_state, batch, key):
      del key
      variables = {'params': params, **model_state}
      out, model_state = model.apply(variables, batch, mutable=['batch_stats'])
      return jnp.square(out).mean(), (model_state, {})

    variables = model.init(jax.random.key(0), np.zeros((2, 3), np.float32))
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    state = pr.engine.create_train_state(
      mesh,
      ALGORITHM,
      variables['params'],
      {'batch_stats': variables['batch_stats']},
    )
    steps = pr.engine.make_train_steps(mesh, ALGORITHM, loss_fn)
    batches = np.ones((num_devices, 1, N // num_devices, 2, 3), np.float32)
    with self.assertRaisesRegex(ValueError, 'BatchNorm.*pr.sync'):
      steps(state, batches)

  @parameterized.parameters(1, 4)
  def test_batch_fn_and_eval_fn_have_none(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    state, data = create(mesh), mesh.replicate(np.zeros(3, np.float32))

    def shifted(data, step, replica, key):
      return data + lax.axis_index(AXIS)

    with self.assertRaisesRegex(ValueError, '^batch_fn .*collective'):
      resident(mesh, square, shifted)(state, data, 2)

    def values(params, model_state, batch):
      return {'x': batch / lax.psum(1, AXIS)}

    examples = pr.engine.shard_examples(mesh, np.ones(8, np.float32), 2)
    for make in (pr.engine.make_evaluate, pr.engine.make_evaluate_replicas):
      with self.assertRaisesRegex(ValueError, '^eval_fn .*collective'):
        make(mesh, ALGORITHM, values)(state, examples)

    def draw(data, step, replica, key):
      return data

    def summed(params, model_state, batch, key):
      return lax.psum(params.sum(), AXIS), (model_state, {})

    for loss_fn, batch_fn, name in (
      (square, shifted, 'batch_fn'),
      (summed, draw, 'loss_fn'),
    ):
      reestimate = pr.engine.make_reestimate(
        mesh, loss_fn, batch_fn, num_batches=1
      )
      with self.assertRaisesRegex(ValueError, f'^{name} .*collective'):
        reestimate((data, ()), data)

  @parameterized.product(
    name=[n for n in COLLECTIVES if n not in UNSEEN], num_devices=(1, 4)
  )
  def test_optimizers_and_rules_have_none(self, name, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    joined = optax.chain(optax.stateless(over(COLLECTIVES[name])), optax.sgd(1))
    for who, algorithm in {
      'the optimizer': pr.step(joined),
      'a rule': pr.chain(
        pr.step(optax.sgd(1.0)), pr.let(params=rule(COLLECTIVES[name]))
      ),
    }.items():
      with self.assertRaisesRegex(
        ValueError, f'{who} .*not contain a collective.*pr.sync'
      ):
        state = pr.engine.create_train_state(
          mesh, algorithm, np.ones(3, np.float32)
        )
        steps = pr.engine.make_train_steps(mesh, algorithm, square)
        steps(state, np.zeros((num_devices, 1, N // num_devices, 3)))

  @parameterized.parameters(1, 2)
  def test_collectives_over_own_axes_work_in_them_too(self, num_devices):
    def centered(x):
      return jax.vmap(lambda v: v - lax.pmean(v, AXIS), axis_name=AXIS)(x)

    mesh = pr.engine.ReplicaMesh(N, num_devices)
    tx = optax.chain(optax.stateless(over(centered)), optax.sgd(0.5))
    algorithm = pr.chain(pr.step(tx), pr.let(params=rule(centered)))
    state = pr.engine.create_train_state(mesh, algorithm, np.float32([1, 2, 6]))
    steps = pr.engine.make_train_steps(mesh, algorithm, square)
    state, _ = steps(state, np.zeros((num_devices, 1, N // num_devices, 3)))
    # x - (g - mean g) / 2 with g = 2 x is the mean of x, less itself 0.
    np.testing.assert_allclose(mesh.gather(state.params), 0, atol=1e-6)

  @parameterized.parameters(*LAYOUTS)
  def test_collectives_over_own_axes_work(self, num_devices):
    # Twin of the above, also for an own axis that has the name of ours.
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    target = np.float32([3, 5, 10])

    def loss_fn(params, model_state, batch, key):
      del batch, key
      centered = [
        jax.vmap(lambda x, a=a: x - lax.pmean(x, a), axis_name=a)(
          params * target
        )
        for a in ('own', AXIS)
      ]
      return sum(jnp.square(x).sum() for x in centered), (model_state, {})

    steps = pr.engine.make_train_steps(mesh, ALGORITHM, loss_fn)
    batches = np.zeros((num_devices, 2, N // num_devices))
    _, metrics = steps(create(mesh), batches)
    # 2 x the squares of 3, 5, 10 less their mean of 6.
    np.testing.assert_allclose(metrics['loss'][:, 0], 52, rtol=1e-6)

  def test_other_unbound_axes_are_the_callers_own_error(self):
    mesh = pr.engine.ReplicaMesh(N, 1)

    def loss_fn(params, model_state, batch, key):
      return lax.pmean(params.sum(), 'else'), (model_state, {})

    steps = pr.engine.make_train_steps(mesh, ALGORITHM, loss_fn)
    with self.assertRaisesRegex(NameError, 'else'):
      steps(create(mesh), np.zeros((1, 1, N)))

  def test_settings_of_a_later_trace_are_its_own(self):
    # A program must not outlive the 64-bit types it was traced under.
    mesh = pr.engine.ReplicaMesh(N, 1)

    def loss_fn(params, model_state, batch, key):
      wide = jnp.sqrt(jnp.asarray(2.0, jax.dtypes.canonicalize_dtype(float)))
      return params.sum(), (model_state, {'wide': wide})

    steps = pr.engine.make_train_steps(mesh, ALGORITHM, loss_fn)
    state = create(mesh)
    state, metrics = steps(state, np.zeros((1, 1, N), np.float32))
    self.assertEqual(metrics['wide'].dtype, np.float32)
    with jax.enable_x64(True):
      _, metrics = steps(state, np.zeros((1, 1, N), np.float32))
      self.assertEqual(metrics['wide'].dtype, np.float64)

  def test_needs_completing(self):
    mesh = pr.engine.ReplicaMesh(N, 2)

    def mapped():
      return mesh.map(isolation.isolated('double', lambda x: {'twice': 2 * x}))

    out = isolation.completing(mapped(), 1)(np.arange(2.0))
    np.testing.assert_array_equal(out['twice'], [0, 2])
    with self.assertRaisesRegex(Exception, 'isolation.completing'):
      mapped()(np.arange(2.0))

  def test_no_real_call_is_given_up(self):
    # It would leave JAX's fast path for good: 10 times the time a dispatch.
    mesh, given_up = pr.engine.ReplicaMesh(N, 2), []
    map_ = pr.engine.ReplicaMesh.map

    def recording(self, fn, **kwargs):
      mapped = map_(self, fn, **kwargs)

      def call(*args):
        try:
          return mapped(*args)
        except isolation._Untraced:
          given_up.append(
            any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
          )
          raise

      call.lower = mapped.lower
      return call

    with absltest.mock.patch.object(pr.engine.ReplicaMesh, 'map', recording):
      steps = resident(mesh, square, lambda data, step, replica, key: data)
      state, data = create(mesh), mesh.replicate(np.zeros(3, np.float32))
      for num_steps in (1, 2, 1, 2):
        state, _ = steps(state, data, num_steps)
    self.assertEqual(given_up, [True] * 6)  # three functions, two programs


if __name__ == '__main__':
  absltest.main()

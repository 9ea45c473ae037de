"""The engine: dispatches, donation, randomness."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.tracing.primitives import has_convolution
from tests import harness

N = 8
LAYOUTS = (1, 2, 4, 8)
SGD = optax.sgd(0.05, momentum=0.9)


def make_algorithm():
  return pr.k_avg(SGD, period=3)


def regression_loss(params, model_state, batch, key):
  """Least squares on a batch (x [b, 3], y [b])."""
  del key
  x, y = batch
  residual = x @ params['w'] + params['b'] - y
  return jnp.square(residual).mean() / 2, (
    {'steps': model_state['steps'] + 1},
    {'residual': residual},
  )


START = {'w': np.ones(3, np.float32), 'b': np.float32(0)}
MODEL_STATE = {'steps': np.int32(0)}


def examples(size, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(size, 3)).astype(np.float32)
  return x, (x.sum(axis=1) + rng.normal(size=size)).astype(np.float32)


def indices(step, replica):
  """The 5 examples of 64 that a replica takes at a step, by arithmetic."""
  return (7 * step + 11 * replica + 13 * np.arange(5)) % 64


def draw(data, step, replica, key):
  """`indices` in the resident engine."""
  del key
  index = indices(step, replica)
  return jax.tree.map(lambda x: x[index], data)


def streamed(mesh, data, steps):
  """The same batches, gathered on the host: `[D, steps, V, 5, ...]`."""
  index = np.stack(
    [[indices(t, replica) for replica in range(N)] for t in steps]
  )
  index = index.reshape((len(steps), mesh.num_devices, mesh.block_size, 5))
  index = np.moveaxis(index, 1, 0)
  return mesh.place_per_device(jax.tree.map(lambda x: x[index], data))


def create(mesh, algorithm=None, seed=0):
  return pr.engine.create_train_state(
    mesh, algorithm or make_algorithm(), START, MODEL_STATE, seed=seed
  )


def assert_same(actual, desired):
  jax.tree.map(
    np.testing.assert_array_equal,
    harness.to_host(actual),
    harness.to_host(desired),
  )


@functools.cache
def resident(num_devices):
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  return mesh, pr.engine.make_resident_train_steps(
    mesh, make_algorithm(), regression_loss, draw
  )


@functools.cache
def resident_run(num_devices):
  """The final state and the metrics of 8 steps on resident data."""
  mesh, train_steps = resident(num_devices)
  state, metrics = train_steps(create(mesh), mesh.replicate(examples(64)), 8)
  return mesh, state, metrics


class TrainStepsTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8)
  def test_streamed_batches_equal_resident_data(self, num_devices):
    mesh, want, want_metrics = resident_run(num_devices)
    train_steps = pr.engine.make_train_steps(
      mesh, make_algorithm(), regression_loss
    )
    state, metrics = train_steps(
      create(mesh), streamed(mesh, examples(64), range(8))
    )
    assert_same(state, want)
    assert_same(metrics, want_metrics)

  @parameterized.parameters(1, 2, 8)
  def test_several_dispatches_equal_one_bit_for_bit(self, num_devices):
    mesh, want, want_metrics = resident_run(num_devices)
    _, train_steps = resident(num_devices)
    data, state, pieces = mesh.replicate(examples(64)), create(mesh), []
    for num_steps in (3, 2, 3):
      state, metrics = train_steps(state, data, num_steps)
      pieces.append(harness.to_host(metrics))
    assert_same(state, want)
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *pieces)
    jax.tree.map(
      np.testing.assert_array_equal, joined, harness.to_host(want_metrics)
    )

  @parameterized.parameters(*LAYOUTS)
  def test_equals_a_loop_in_numpy(self, num_devices):
    mesh, state, metrics = resident_run(num_devices)
    x, y = examples(64)
    w, b = np.ones((N, 3)), np.zeros(N)
    vw, vb = np.zeros((N, 3)), np.zeros(N)
    losses = np.zeros((8, N))
    for t in range(8):
      for i in range(N):
        index = indices(t, i)
        residual = x[index] @ w[i] + b[i] - y[index]
        losses[t, i] = (residual**2).mean() / 2
        vw[i] = 0.9 * vw[i] + x[index].T @ residual / 5
        vb[i] = 0.9 * vb[i] + residual.mean()
        w[i] -= 0.05 * vw[i]
        b[i] -= 0.05 * vb[i]
      if t % 3 == 2:
        w[:], b[:] = w.mean(axis=0), b.mean()
    params = mesh.gather(state.params)
    np.testing.assert_allclose(params['w'], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params['b'], b, rtol=1e-5, atol=1e-6)
    loss = np.moveaxis(np.asarray(metrics['loss']), 1, 0).reshape(8, N)
    np.testing.assert_allclose(loss, losses, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*LAYOUTS)
  def test_metrics_are_per_device_step_and_replica(self, num_devices):
    _, _, metrics = resident_run(num_devices)
    shape = (num_devices, 8, N // num_devices)
    self.assertEqual(metrics['loss'].shape, shape)
    self.assertEqual(metrics['residual'].shape, (*shape, 5))

  def test_clock_counts_the_steps(self):
    mesh, state, _ = resident_run(4)
    np.testing.assert_array_equal(state.step, np.full(4, 8, np.int32))
    steps = mesh.gather(state.model_state)['steps']
    np.testing.assert_array_equal(steps, np.full(N, 8))

  def test_batch_fn_is_told_its_step_and_replica(self):
    def loss(params, model_state, batch, key):
      del key
      step, replica = batch
      return params.sum(), (model_state, {'step': step, 'replica': replica})

    for num_devices in (1, 4):
      mesh = pr.engine.ReplicaMesh(N, num_devices)
      algorithm = pr.chain(pr.gradient())
      train_steps = pr.engine.make_resident_train_steps(
        mesh, algorithm, loss, lambda data, step, replica, key: (step, replica)
      )
      state = pr.engine.create_train_state(
        mesh, algorithm, np.zeros(2, np.float32)
      )
      data = mesh.replicate(np.zeros(1))
      state, _ = train_steps(state, data, 2)
      _, metrics = train_steps(state, data, 2)
      replica = np.arange(N).reshape(num_devices, 1, -1)
      got = np.asarray(metrics['replica'])
      np.testing.assert_array_equal(got, np.repeat(replica, 2, axis=1))
      for row in np.moveaxis(np.asarray(metrics['step']), 1, 0)[:, 0]:
        self.assertLen(set(row.tolist()), 1)
      np.testing.assert_array_equal(metrics['step'][0, :, 0], [2, 3])

  def test_is_traced_once_for_each_number_of_steps(self):
    traces = []

    def loss(*args):
      traces.append(1)
      return regression_loss(*args)

    mesh = pr.engine.ReplicaMesh(N, 2)
    train_steps = pr.engine.make_train_steps(mesh, make_algorithm(), loss)
    state, data = create(mesh), streamed(mesh, examples(64), range(2))
    for _ in range(5):
      state, _ = train_steps(state, data)
    self.assertLen(traces, 1)


class NoStepsTest(parameterized.TestCase):
  """A dispatch of no steps does nothing, such as the remainder 100 % 25."""

  @parameterized.parameters(1, 2)
  def test_remainder_of_zero_changes_nothing(self, num_devices):
    mesh, train_steps = resident(num_devices)
    data, state = mesh.replicate(examples(64)), create(mesh)
    before = harness.to_host(state)
    state, metrics = train_steps(state, data, 100 % 25)
    assert_same(state, before)
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype.name), metrics),
      {
        'loss': ((num_devices, 0, N // num_devices), 'float32'),
        'residual': ((num_devices, 0, N // num_devices, 5), 'float32'),
      },
    )
    # Twin: the state is as good as it was, and joins with what comes.
    state, more = train_steps(state, data, 3)
    self.assertEqual(int(state.step[0]), 3)
    joined = jnp.concatenate([metrics['loss'], more['loss']], axis=1)
    np.testing.assert_array_equal(joined, more['loss'])

  def test_batches_of_no_steps_do_nothing(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    train_steps = pr.engine.make_train_steps(
      mesh, make_algorithm(), regression_loss
    )
    state, before = create(mesh), harness.to_host(create(mesh))
    x, y = np.zeros((2, 0, 4, 5, 3)), np.zeros((2, 0, 4, 5))
    state, metrics = train_steps(state, (x, y))
    assert_same(state, before)
    self.assertEqual(metrics['residual'].shape, (2, 0, 4, 5))

  @parameterized.parameters(0, 2)
  def test_a_program_of_convolutions_too(self, num_steps):
    def loss(params, model_state, batch, key):
      out = jax.lax.conv(batch[None, None], params[None, None], (1, 1), 'SAME')
      return out.sum(), (model_state, {})

    mesh, algorithm = pr.engine.ReplicaMesh(2, 1), make_algorithm()
    train_steps = pr.engine.make_resident_train_steps(
      mesh, algorithm, loss, lambda data, step, replica, key: data
    )
    state = pr.engine.create_train_state(
      mesh, algorithm, np.ones((1, 1), np.float32)
    )
    data = mesh.replicate(np.ones((3, 3), np.float32))
    state, metrics = train_steps(state, data, num_steps)
    self.assertEqual(int(state.step[0]), num_steps)
    self.assertEqual(metrics['loss'].shape, (1, num_steps, 2))
    # The kernel loses 0.05 x 9, and with it each of the 9 places.
    np.testing.assert_allclose(
      metrics['loss'][0, :, 0], [9, 9 * 0.55][:num_steps], rtol=1e-6
    )


class DonationTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8)
  def test_state_is_donated(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    train_steps = pr.engine.make_train_steps(
      mesh, make_algorithm(), regression_loss
    )
    state = create(mesh)
    data = streamed(mesh, examples(64), range(1))
    train_steps(state, data)
    self.assertTrue(state.params['w'].is_deleted())
    self.assertFalse(data[0].is_deleted())

  def test_data_outlives_the_run(self):
    mesh, train_steps = resident(2)
    data = mesh.replicate(examples(64))
    state, _ = train_steps(create(mesh), data, 8)
    train_steps(state, data, 8)
    self.assertFalse(data[0].is_deleted())


class InFlightTest(parameterized.TestCase):
  @parameterized.parameters(2, 8)
  def test_many_dispatches_that_nobody_awaits(self, num_devices):
    # Unbounded, a program with a collective dead-locks on CPU.
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    algorithm = pr.ssgd(SGD)
    train_steps = pr.engine.make_train_steps(mesh, algorithm, regression_loss)
    state, data = create(mesh, algorithm), streamed(mesh, examples(64), [0])
    for _ in range(300):
      state, _ = train_steps(state, data)
    np.testing.assert_array_equal(state.step, np.full(num_devices, 300))

  @parameterized.parameters(True, False)
  def test_waits_for_something_before_the_third(self, with_gradient):
    # Also in a chain that reports no metrics.
    mesh = pr.engine.ReplicaMesh(N, 8)
    mix = pr.sync(pr.mixing.mean())
    algorithm = pr.chain(pr.gradient(), mix) if with_gradient else mix
    train_steps = pr.engine.make_train_steps(mesh, algorithm, regression_loss)
    state, data = create(mesh, algorithm), streamed(mesh, examples(64), [0])
    with absltest.mock.patch.object(
      jax, 'block_until_ready', wraps=jax.block_until_ready
    ) as wait:
      for _ in range(4):
        state, _ = train_steps(state, data)
    self.assertGreaterEqual(wait.call_count, 2)
    for call in wait.call_args_list:
      self.assertNotEmpty(jax.tree.leaves(call.args))


def noisy_loss(params, model_state, batch, key):
  del batch
  noise = jax.random.normal(key, params.shape)
  return params @ noise, (model_state, {'noise': noise})


@functools.cache
def drawn(num_devices, seed=0):
  """[steps, N, 4]: what the loss drew, in two dispatches."""
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  algorithm = make_algorithm()
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(4, np.float32), seed=seed
  )
  train_steps = pr.engine.make_train_steps(mesh, algorithm, noisy_loss)
  data = mesh.place_per_device(np.zeros((num_devices, 3, N // num_devices)))
  draws = []
  for _ in range(2):
    state, metrics = train_steps(state, data)
    draw = np.moveaxis(np.asarray(metrics['noise']), 1, 0)
    draws.append(draw.reshape(3, N, 4))
  return np.concatenate(draws)


class RandomnessTest(parameterized.TestCase):
  """A function of (seed, replica, step), never of the device."""

  @parameterized.parameters(2, 4, 8)
  def test_does_not_depend_on_the_layout(self, num_devices):
    np.testing.assert_array_equal(drawn(num_devices), drawn(1))

  def test_differs_by_replica_and_step(self):
    self.assertLen(np.unique(drawn(2)), 6 * N * 4)

  def test_differs_by_seed(self):
    self.assertEmpty(np.intersect1d(drawn(2), drawn(2, seed=1)))

  def test_keys_of_data_stages_and_loss_differ(self):
    seen = {}

    def batch_fn(data, step, replica, key):
      return jax.random.key_data(key)

    def loss(params, model_state, batch, key):
      metrics = {'data': batch, 'loss_key': jax.random.key_data(key)}
      return params.sum(), (model_state, metrics)

    def update(replica, state, context):
      shared = jax.random.key_data(context.shared_key)
      metrics = {
        **replica.metrics,
        'stage': jax.random.key_data(context.key),
        'shared': jnp.broadcast_to(shared, (context.key.shape[0], 2)),
      }
      return replica._replace(metrics=metrics), state

    names = pr.base.names(reads=['key', 'shared_key'], writes=['metrics'])
    algorithm = pr.chain(
      pr.gradient(), pr.base.ReplicaTransformation(update, names=names)
    )
    for num_devices in (2, 8):
      mesh = pr.engine.ReplicaMesh(N, num_devices)
      train_steps = pr.engine.make_resident_train_steps(
        mesh, algorithm, loss, batch_fn
      )
      state = pr.engine.create_train_state(
        mesh, algorithm, np.zeros(2, np.float32)
      )
      _, metrics = train_steps(state, mesh.replicate(np.zeros(1)), 3)
      seen[num_devices] = {
        name: np.moveaxis(np.asarray(metrics[name]), 1, 0).reshape(3, N, 2)
        for name in ('data', 'loss_key', 'stage', 'shared')
      }
    jax.tree.map(np.testing.assert_array_equal, seen[2], seen[8])
    own = np.stack([seen[2][x] for x in ('data', 'loss_key', 'stage')])
    self.assertLen(np.unique(own.reshape(-1, 2), axis=0), 3 * 3 * N)
    shared = seen[2]['shared']
    np.testing.assert_array_equal(
      shared, np.broadcast_to(shared[:, :1], shared.shape)
    )
    every = np.concatenate([own.reshape(-1, 2), shared[:, 0]])
    self.assertLen(np.unique(every, axis=0), 3 * 3 * N + 3)


class MetricsTest(absltest.TestCase):
  def test_metrics_do_not_take_the_engines_names(self):
    mesh, algorithm = pr.engine.ReplicaMesh(N, 2), make_algorithm()
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda p, s, b, k: (p.sum() * b, (s, {'active': b}))
    )
    with self.assertRaisesRegex(ValueError, "'active' is reserved"):
      train_steps(state, mesh.place_per_device(np.ones((2, 1, 4))))


class ConvolutionTest(absltest.TestCase):
  """What decides whether a program is kept out of a loop on CPU."""

  def test_is_found_wherever_it_is(self):
    kernel = np.ones((1, 1, 3, 3), np.float32)

    def inside(x, _):
      return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME'), None

    def fn(x):
      return jax.lax.cond(
        x.sum() > 0,
        lambda x: jax.lax.scan(inside, x, None, length=2)[0],
        lambda x: x,
        x,
      )

    def jaxpr_of(fn):
      return jax.make_jaxpr(fn)(np.ones((1, 1, 8, 8), np.float32)).jaxpr

    self.assertTrue(has_convolution(jaxpr_of(fn)))

    def conv_general_dilated(x):  # a name is not a primitive
      return x + 1

    named = jax.jit(conv_general_dilated)
    self.assertFalse(has_convolution(jaxpr_of(named)))


if __name__ == '__main__':
  absltest.main()

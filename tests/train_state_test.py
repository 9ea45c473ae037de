"""The state of a run: contents, memory and consensus."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness

N = 8
LAYOUTS = (1, 2, 8)
SGD = optax.sgd(0.1, momentum=0.9)
PARAMS = {
  'b': np.float32(3),
  'w': np.arange(6, dtype=np.float32).reshape(3, 2),
}
MODEL_STATE = {'mean': np.ones(2, np.float32), 'seen': np.int32(4)}


def outer_algorithm():
  return pr.chain(
    pr.remember(x0='params'),
    pr.step(SGD),
    pr.at(
      pr.schedules.every(2),
      pr.sync(pr.mixing.mean()),
      pr.let(delta=lambda x0, params: x0 - params),
      pr.outer_update(optax.sgd(0.7, momentum=0.9), of='delta', at='x0'),
      pr.let(params='x0'),
    ),
  )


def per_replica(tree):
  """N different points, `[N, ...]`."""

  def points(x):
    scale = np.arange(1, N + 1).reshape((N, *[1] * np.ndim(x)))
    return (scale * np.asarray(x)).astype(np.asarray(x).dtype)

  return jax.tree.map(points, tree)


def loss(params, model_state, batch, key):
  del key
  return params['w'].sum() * batch + params['b'], (model_state, {})


class CreateTest(parameterized.TestCase):
  @parameterized.parameters(*LAYOUTS)
  def test_all_replicas_start_at_the_one_point(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    state = pr.engine.create_train_state(
      mesh, pr.ssgd(SGD), PARAMS, MODEL_STATE
    )
    got = mesh.gather((state.params, state.model_state))
    for leaf, point in zip(
      jax.tree.leaves(got), jax.tree.leaves((PARAMS, MODEL_STATE))
    ):
      np.testing.assert_array_equal(leaf, np.stack([point] * N))
      self.assertEqual(leaf.dtype, point.dtype)
    np.testing.assert_array_equal(state.step, np.zeros(num_devices, np.int32))
    self.assertEqual(state.step.dtype, np.int32)

  @parameterized.parameters(*LAYOUTS)
  def test_every_replica_starts_at_its_own_point(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    points = per_replica((PARAMS, MODEL_STATE))
    state = pr.engine.create_train_state(
      mesh, pr.ssgd(SGD), *points, per_replica=True
    )
    got = mesh.gather((state.params, state.model_state))
    jax.tree.map(np.testing.assert_array_equal, got, points)

  def test_leading_axis_is_checked(self):
    with self.assertRaisesRegex(
      ValueError, r'leading axis of 8 replicas, got an array of shape \(\)'
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), pr.ssgd(SGD), PARAMS, per_replica=True
      )

  def test_python_numbers_are_parameters(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(mesh, pr.ssgd(SGD), {'x': 1.0})
    self.assertEqual(state.params['x'].dtype, np.float32)

  @parameterized.parameters(*LAYOUTS)
  def test_every_leaf_has_the_axes_of_devices_and_replicas(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    for algorithm in (outer_algorithm(), pr.k_avg(optax.adam(0.1), period=2)):
      state = pr.engine.create_train_state(mesh, algorithm, PARAMS, MODEL_STATE)
      for leaf in jax.tree.leaves(
        (
          state.params,
          state.opt_state,
          state.model_state,
          state.algorithm_state,
          state.registers,
        )
      ):
        self.assertEqual(leaf.shape[:2], (num_devices, N // num_devices))
        self.assertFalse(leaf.weak_type)

  def test_has_arrays_only(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, outer_algorithm(), PARAMS, MODEL_STATE
    )
    for leaf in jax.tree.leaves(state):
      self.assertIsInstance(leaf, jax.Array)
    again = pr.engine.create_train_state(
      mesh, outer_algorithm(), PARAMS, MODEL_STATE
    )
    self.assertEqual(jax.tree.structure(state), jax.tree.structure(again))

  def test_keys_are_threefry_whatever_the_default(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    with jax.default_prng_impl('rbg'):
      state = pr.engine.create_train_state(mesh, pr.ssgd(SGD), PARAMS, seed=3)
    want = jax.random.key_data(jax.random.key(3, impl='threefry2x32'))
    np.testing.assert_array_equal(
      jax.random.key_data(state.key), np.stack([want] * 2)
    )

  def test_registers_and_private_states_start_at_the_points(self):
    mesh = pr.engine.ReplicaMesh(N, 4)
    points = per_replica(PARAMS)
    state = pr.engine.create_train_state(
      mesh, outer_algorithm(), points, per_replica=True
    )
    jax.tree.map(
      np.testing.assert_array_equal, mesh.gather(state.registers['x0']), points
    )
    jax.tree.map(
      np.testing.assert_array_equal,
      mesh.gather(state.algorithm_state[-1][-2][0].trace),
      jax.tree.map(np.zeros_like, points),
    )


def shard_pointers(tree):
  return [
    shard.data.unsafe_buffer_pointer()
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    for shard in x.addressable_shards
  ]


class MemoryTest(parameterized.TestCase):
  """A donated buffer belongs to one leaf, and to nobody else."""

  @parameterized.product(num_devices=LAYOUTS, own_points=(False, True))
  def test_no_two_leaves_share_a_buffer(self, num_devices, own_points):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    shared = jnp.ones((N, 64)) if own_points else jnp.ones(64)
    state = pr.engine.create_train_state(
      mesh,
      outer_algorithm(),  # its anchor is made of the parameters
      {'one': shared, 'same': shared},
      per_replica=own_points,
    )
    pointers = shard_pointers(state)
    self.assertLen(set(pointers), len(pointers))
    caller = set(shard_pointers(shared))
    self.assertEmpty(caller & set(pointers))

  @parameterized.product(num_devices=LAYOUTS, kind=('numpy', 'jax'))
  def test_callers_arrays_survive_donation(self, num_devices, kind):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    make = np.array if kind == 'numpy' else jnp.array
    points = jax.tree.map(make, per_replica(PARAMS))
    algorithm = outer_algorithm()
    state = pr.engine.create_train_state(
      mesh, algorithm, points, per_replica=True
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    batch = mesh.place_per_device(
      np.ones((num_devices, 3, N // num_devices), np.float32)
    )
    for _ in range(2):
      state, _ = train_steps(state, batch)
    jax.block_until_ready(state)
    jax.tree.map(np.testing.assert_array_equal, points, per_replica(PARAMS))

  def test_later_changes_of_the_callers_array_are_not_seen(self):
    mesh = pr.engine.ReplicaMesh(N, 1)
    x = np.zeros((N, 4096), np.float32)
    state = pr.engine.create_train_state(
      mesh, pr.ssgd(SGD), x, per_replica=True
    )
    jax.block_until_ready(state)
    x[:] = 1
    np.testing.assert_array_equal(state.params, np.zeros((1, N, 4096)))


class ConsensusTest(parameterized.TestCase):
  @parameterized.parameters(*LAYOUTS)
  def test_is_the_mean_over_the_replicas_on_the_host(self, num_devices):
    mesh, algorithm = pr.engine.ReplicaMesh(N, num_devices), outer_algorithm()
    points = per_replica((PARAMS, MODEL_STATE))
    state = pr.engine.create_train_state(
      mesh, algorithm, *points, per_replica=True
    )
    params, model_state = pr.engine.consensus(algorithm, state)
    # The mean of 1 .. 8 is 4.5, exact in float32.
    np.testing.assert_array_equal(params['w'], 4.5 * PARAMS['w'])
    np.testing.assert_array_equal(params['b'], 4.5 * PARAMS['b'])
    np.testing.assert_array_equal(model_state['mean'], np.full(2, 4.5))
    for leaf in jax.tree.leaves((params, model_state)):
      self.assertIsInstance(leaf, np.ndarray | np.generic)
    self.assertEqual(params['w'].dtype, np.float32)
    # An integer is replica 0's.
    self.assertEqual(model_state['seen'], 4)
    self.assertEqual(model_state['seen'].dtype, np.int32)

  def test_half_precision_is_averaged_in_single(self):
    mesh, algorithm = pr.engine.ReplicaMesh(N, 2), pr.ssgd(SGD)
    x = np.array([256, 1, 1, 1, 1, 1, 1, 1], jnp.bfloat16)
    state = pr.engine.create_train_state(mesh, algorithm, x, per_replica=True)
    params, _ = pr.engine.consensus(algorithm, state)
    self.assertEqual(params.dtype, jnp.bfloat16)
    self.assertEqual(params, np.float32(263 / 8).astype(jnp.bfloat16))

  def test_is_of_the_algorithms_output(self):
    def output(replica, state):
      return replica._replace(params=jax.tree.map(lambda x: -x, replica.params))

    algorithm = pr.chain(
      pr.base.ReplicaTransformation(lambda r, s, c: (r, s), output=output)
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(mesh, algorithm, PARAMS)
    params, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_array_equal(params['w'], -PARAMS['w'])


class EmptyLeavesTest(parameterized.TestCase):
  """Leaves of size 0, which models and optimizers such as galore have."""

  @parameterized.parameters(
    lambda: pr.k_avg(optax.contrib.galore(0.1), period=2),
    lambda: pr.k_avg(SGD, period=2),
    lambda: pr.dion(SGD, rank=2),
    lambda: pr.natural_gradient_averaging(SGD, period=2, rank=2),
  )
  def test_have_a_consensus_and_an_evaluation(self, make):
    algorithm = make()
    params = {
      'none': np.zeros((0, 4), np.float32),
      'nothing': np.zeros((2, 0), np.float32),
      'w': np.ones((3, 4), np.float32),
    }
    mesh = pr.engine.ReplicaMesh(4, 2)
    state = pr.engine.create_train_state(mesh, algorithm, params, params)

    def flat_loss(params, model_state, batch, key):
      return params['none'].sum() + batch.sum(), (model_state, {})

    train_steps = pr.engine.make_train_steps(mesh, algorithm, flat_loss)
    state, _ = train_steps(state, np.zeros((2, 1, 2, 0), np.float32))
    for tree in pr.engine.consensus(algorithm, state):
      jax.tree.map(np.testing.assert_array_equal, tree, params)

    def values(params, model_state, batch):
      return {'x': batch['x'] + params['w'].sum() + model_state['none'].sum()}

    examples = {'x': np.arange(5.0), 'empty': np.zeros((5, 0))}
    evaluate = pr.engine.make_evaluate(mesh, algorithm, values)
    data = pr.engine.shard_examples(mesh, examples, 2)
    self.assertEqual(evaluate(state, data)['x'], 2 + 12)


class ReplicaShapesTest(absltest.TestCase):
  def test_is_of_one_replica(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, pr.ssgd(SGD), PARAMS, MODEL_STATE
    )
    shapes = pr.engine.replica_shapes(state)
    self.assertEqual(shapes.params['w'].shape, (3, 2))
    self.assertEqual(shapes.params['b'].shape, ())
    self.assertEqual(shapes.grads, shapes.params)
    self.assertEqual(shapes.opt_state[0].trace, shapes.params)
    self.assertEqual(shapes.model_state['seen'].dtype, np.int32)


class TypesTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_a_step_keeps_them(self, num_steps):
    # A scan of several steps would fail with a traceback of its own, and a
    # single step would continue in another dtype.
    def update(replica, state, context):
      return replica.set({'x': replica.get('x').astype(jnp.bfloat16)}), state

    wrong = pr.base.ReplicaTransformation(
      update, names=pr.base.names(reads=['x'], writes=['x'])
    )
    algorithm = pr.chain(pr.remember(x='params'), wrong)
    mesh = pr.engine.ReplicaMesh(4, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    with self.assertRaisesRegex(ValueError, "dtypes of 'x', .*float32.*bfloat"):
      steps(state, mesh.place_per_device(np.zeros((2, num_steps, 2, 3))))


class RoundTripTest(parameterized.TestCase):
  @parameterized.parameters(*LAYOUTS)
  def test_a_state_comes_back_from_the_host(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    state = pr.engine.create_train_state(
      mesh, outer_algorithm(), PARAMS, MODEL_STATE
    )
    host = harness.to_host(state)
    again = harness.to_host(harness.from_host(mesh, host))
    jax.tree.map(np.testing.assert_array_equal, again, host)


if __name__ == '__main__':
  absltest.main()

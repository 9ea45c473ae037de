"""Evaluation: every example once, of the average and of each replica."""

import functools
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine import evaluation
from tests import harness, reference

_BATCHES = evaluation._batches  # to be called by its replacement
N = 8
LAYOUTS = (1, 2, 4, 8)
ALGORITHM = pr.k_avg(optax.sgd(0.05, momentum=0.9), period=3)


def examples(size, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(size, 3)).astype(np.float32)
  return x, (x.sum(axis=1) + rng.normal(size=size)).astype(np.float32)


def eval_values(params, model_state, batch):
  x, y = batch
  residual = x @ params['w'] + params['b'] - y
  return {
    'above': residual > 0,
    'loss': jnp.square(residual),
    'steps': jnp.full(y.shape, model_state['steps']),
  }


def scattered(mesh, algorithm):
  """A state whose replicas differ, and its parameters."""
  rng = np.random.default_rng(1)
  params = {
    'w': rng.normal(size=(N, 3)).astype(np.float32),
    'b': rng.normal(size=N).astype(np.float32),
  }
  model_state = {'steps': np.full(N, 3, np.int32)}
  state = pr.engine.create_train_state(
    mesh, algorithm, params, model_state, per_replica=True
  )
  return state, params


def in_numpy(w, b, x, y):
  residual = x @ w + b - y
  return {
    'above': (residual > 0).mean(),
    'loss': (residual**2).mean(),
    'steps': 3.0,
  }


class EvaluateTest(parameterized.TestCase):
  # Batches that are full, padded, absent on some devices; fewer than devices.
  @parameterized.product(
    num_devices=LAYOUTS, case=((61, 5), (13, 4), (5, 100), (1, 3))
  )
  def test_evaluates_the_average_on_every_example_once(self, num_devices, case):
    size, batch_size = case
    mesh, algorithm, evaluate, evaluate_replicas = evaluators(num_devices)
    state, params = scattered(mesh, algorithm)
    x, y = examples(size, seed=3)
    data = pr.engine.shard_examples(mesh, (x, y), batch_size)
    means = evaluate(state, data)
    want = in_numpy(params['w'].mean(axis=0), params['b'].mean(), x, y)
    flat = np.concatenate([params['w'], params['b'][:, None]], axis=1)
    want['consensus_distance'] = reference.consensus_distance(flat)
    self.assertEqual(set(means), set(want))
    for name, value in means.items():
      self.assertIsInstance(value, float)
      np.testing.assert_allclose(value, want[name], rtol=1e-5)

    each = evaluate_replicas(state, data)
    for i in range(N):
      want = in_numpy(params['w'][i], params['b'][i], x, y)
      for name, value in want.items():
        self.assertEqual(each[name].shape, (N,))
        np.testing.assert_allclose(each[name][i], value, rtol=1e-5)

  @parameterized.parameters(False, True)
  def test_no_collective_is_in_flight_with_the_batches(self, of_replicas):
    size = 2_000_000  # so that its average takes milliseconds
    mesh = pr.engine.ReplicaMesh(2, 2)

    def values(params, model_state, batch):
      del model_state
      return {'loss': batch + params[0]}

    make = (pr.engine.make_evaluate, pr.engine.make_evaluate_replicas)
    evaluate = make[of_replicas](mesh, ALGORITHM, values)
    state = pr.engine.create_train_state(mesh, ALGORITHM, np.zeros(size), {})
    data = pr.engine.shard_examples(mesh, np.zeros(4, np.float32), 1)
    ready = []

    def batches(examples):
      ready.extend(x.is_ready() for x in jax.live_arrays())
      yield from _BATCHES(examples)

    with mock.patch.object(evaluation, '_batches', batches):
      evaluate(state, data)
    self.assertTrue(ready)
    self.assertTrue(all(ready))

  def test_leaves_the_state_alone(self):
    mesh, algorithm, evaluate, _ = evaluators(2)
    state, _ = scattered(mesh, algorithm)
    before = harness.to_host(state)
    evaluate(state, pr.engine.shard_examples(mesh, examples(9), 4))
    jax.tree.map(np.testing.assert_array_equal, harness.to_host(state), before)

  def test_padding_that_gives_nan_does_not_count(self):
    # 0 * nan is nan: the padding must be dropped, not multiplied away.
    mesh, algorithm = pr.engine.ReplicaMesh(N, 4), ALGORITHM
    state, _ = scattered(mesh, algorithm)

    def values(params, model_state, batch):
      first = jnp.arange(batch.shape[0]) == 0
      return {'one': jnp.where(first, 1.0, jnp.nan)}

    evaluate = pr.engine.make_evaluate(mesh, algorithm, values)
    # 2 devices have one example each, and one row of padding or none.
    data = pr.engine.shard_examples(mesh, np.zeros((4, 2), np.float32), 2)
    self.assertEqual(evaluate(state, data)['one'], 1.0)

  @parameterized.parameters(*LAYOUTS)
  def test_agrees_with_consensus_on_integers_that_differ(self, num_devices):
    # An integer has no mean: it is replica 0's, on every device.
    mesh, algorithm = pr.engine.ReplicaMesh(N, num_devices), ALGORITHM
    state = pr.engine.create_train_state(
      mesh,
      algorithm,
      {'w': np.zeros((N, 3), np.float32)},
      {'own': 10 + np.arange(N, dtype=np.int32)},
      per_replica=True,
    )
    _, model_state = pr.engine.consensus(algorithm, state)
    evaluate = pr.engine.make_evaluate(
      mesh,
      algorithm,
      lambda params, model_state, batch: {
        'own': jnp.full(batch.shape[0], model_state['own'], jnp.float32)
      },
    )
    means = evaluate(
      state, pr.engine.shard_examples(mesh, np.zeros((16, 1)), 2)
    )
    self.assertEqual(means['own'], float(model_state['own']))

  def test_evaluates_the_algorithms_output(self):
    def output(replica, state):
      double = jax.tree.map(lambda x: 2 * x, replica.params)
      return replica._replace(params=double)

    algorithm = pr.chain(
      pr.gradient(),
      pr.base.ReplicaTransformation(
        lambda replica, state, context: (replica, state), output=output
      ),
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    state, params = scattered(mesh, algorithm)
    x, y = examples(9)
    data = pr.engine.shard_examples(mesh, (x, y), 4)
    means = pr.engine.make_evaluate(mesh, algorithm, eval_values)(state, data)
    want = in_numpy(2 * params['w'].mean(axis=0), 2 * params['b'].mean(), x, y)
    np.testing.assert_allclose(means['loss'], want['loss'], rtol=1e-5)


@functools.cache
def evaluators(num_devices):
  mesh, algorithm = pr.engine.ReplicaMesh(N, num_devices), ALGORITHM
  return (
    mesh,
    algorithm,
    pr.engine.make_evaluate(mesh, algorithm, eval_values),
    pr.engine.make_evaluate_replicas(mesh, algorithm, eval_values),
  )


class EvalFnTest(parameterized.TestCase):
  def evaluate(self, eval_fn):
    mesh, algorithm = pr.engine.ReplicaMesh(N, 2), ALGORITHM
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    examples_on_devices = pr.engine.shard_examples(mesh, np.zeros((16, 1)), 4)
    return pr.engine.make_evaluate(mesh, algorithm, eval_fn)(
      state, examples_on_devices
    )

  def test_gives_a_value_for_each_example(self):
    with self.assertRaisesRegex(ValueError, r'loss .* \(4,\), got .* \(4, 4\)'):
      self.evaluate(lambda p, s, b: {'loss': jnp.zeros((4, 4))})

  def test_does_not_take_the_engines_names(self):
    with self.assertRaisesRegex(ValueError, "'consensus_distance' is the eng"):
      self.evaluate(lambda p, s, b: {'consensus_distance': jnp.zeros(4)})


class ShardExamplesTest(parameterized.TestCase):
  @parameterized.product(num_devices=LAYOUTS, size=(1, 7, 8, 50), batch=(1, 3))
  def test_every_example_is_there_once(self, num_devices, size, batch):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    data = np.arange(size)
    placed, weights = pr.engine.shard_examples(mesh, data, batch)
    self.assertEqual(placed.shape, weights.shape)
    self.assertEqual(placed.shape[0], num_devices)
    self.assertLessEqual(placed.shape[2], batch)
    kept = np.asarray(placed)[np.asarray(weights) > 0]
    np.testing.assert_array_equal(np.sort(kept), data)
    self.assertEqual(set(np.unique(weights)) - {0.0, 1.0}, set())

  def test_there_are_examples(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    with self.assertRaisesRegex(ValueError, r'length >= 1, got lengths \[0\]'):
      pr.engine.shard_examples(mesh, np.zeros((0, 3)), 4)

  def test_leaves_are_of_one_length(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    with self.assertRaisesRegex(ValueError, r'got lengths \[4, 5\]'):
      pr.engine.shard_examples(mesh, (np.zeros((5, 3)), np.zeros(4)), 4)

  @parameterized.parameters(0, -1, 2.5, None)
  def test_batch_size_is_a_positive_integer(self, batch_size):
    mesh = pr.engine.ReplicaMesh(N, 2)
    with self.assertRaisesRegex(
      ValueError, f'batch_size must be an integer >= 1, got {batch_size}'
    ):
      pr.engine.shard_examples(mesh, np.zeros((5, 3)), batch_size)


if __name__ == '__main__':
  absltest.main()

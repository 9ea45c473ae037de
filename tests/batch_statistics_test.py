"""Batch statistics estimated again, against a loop in NumPy."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr

N, BATCH, DIM = 4, 3, 2
RNG = np.random.default_rng(0)
EXAMPLES = RNG.normal(2.0, 3.0, size=(20, N, BATCH, DIM)).astype(np.float32)


def loss_fn(params, model_state, batch, key):
  """A state that moves by a tenth to the mean of w times the batch."""
  del key
  seen = (params * batch).mean(axis=0)
  mean = 0.9 * model_state['mean'] + 0.1 * seen
  return seen.sum(), ({'mean': mean, 'count': model_state['count'] + 1}, {})


def batch_fn(data, step, replica, key):
  del key
  return data[step, replica]


def eval_fn(params, model_state, batch):
  del params
  return {'value': batch + model_state['mean'][0]}


class ReestimateTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_is_the_moving_average_over_batches_of_all_replicas(self, d):
    mesh = pr.engine.ReplicaMesh(N, d)
    reestimate = pr.engine.make_reestimate(
      mesh, loss_fn, batch_fn, mesh.replicate(EXAMPLES), num_batches=20
    )
    w = np.array([1.0, -2.0], np.float32)
    start = np.array([5.0, 7.0], np.float32)
    point = mesh.replicate((w, {'mean': start, 'count': np.int32(3)}))
    params, state = reestimate(point)
    want = np.zeros(DIM)
    for device in range(d):
      mean = start.astype(np.float64)
      for turn in range(20):
        batch = EXAMPLES[turn, (turn * d + device) % N]
        mean = 0.9 * mean + 0.1 * (w * batch).mean(axis=0)
      want += mean / d
    np.testing.assert_array_equal(params, np.tile(w, (d, 1)))
    np.testing.assert_allclose(state['mean'], np.tile(want, (d, 1)), rtol=1e-5)
    np.testing.assert_array_equal(state['count'], np.full(d, 23))

  def test_is_what_is_evaluated(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = pr.k_avg(optax.sgd(0.1), period=2)
    first = {'mean': np.full(DIM, 9.0, np.float32), 'count': np.int32(0)}
    state = pr.engine.create_train_state(mesh, algorithm, jnp.ones(DIM), first)
    reestimate = pr.engine.make_reestimate(
      mesh, loss_fn, batch_fn, mesh.replicate(EXAMPLES), num_batches=20
    )
    examples = pr.engine.shard_examples(mesh, np.zeros(6, np.float32), 2)
    as_it_is = pr.engine.make_evaluate(mesh, algorithm, eval_fn)
    refreshed = pr.engine.make_evaluate(
      mesh, algorithm, eval_fn, refresh=reestimate
    )
    self.assertEqual(as_it_is(state, examples)['value'], 9.0)
    point = mesh.replicate((np.ones(DIM, np.float32), first))
    _, moved = reestimate(point)
    self.assertAlmostEqual(
      refreshed(state, examples)['value'], float(moved['mean'][0, 0]), places=5
    )

  def test_refuses(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    for bad in (0, 1.0, True):
      with self.assertRaisesRegex(ValueError, 'num_batches must be'):
        pr.engine.make_reestimate(mesh, loss_fn, batch_fn, (), num_batches=bad)


if __name__ == '__main__':
  absltest.main()

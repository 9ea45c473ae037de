"""Batch statistics estimated again, against a loop in NumPy."""

import functools

from absl.testing import absltest, parameterized
import jax
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


def dealt(turn, device, block):
  """Return a mixed batch `[BATCH, DIM]`, an example of each replica in turn."""
  step, place = divmod(turn, block)
  rows = [EXAMPLES[step, r, e] for e in range(BATCH) for r in range(N)]
  first = (device * block + place) * BATCH
  return np.array(rows[first : first + BATCH])


class ReestimateTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_is_the_moving_average_over_batches_of_all_replicas(self, d):
    mesh = pr.engine.ReplicaMesh(N, d)
    reestimate = pr.engine.make_reestimate(
      mesh, loss_fn, batch_fn, num_batches=20
    )
    w = np.array([1.0, -2.0], np.float32)
    start = np.array([5.0, 7.0], np.float32)
    point = mesh.replicate((w, {'mean': start, 'count': np.int32(3)}))
    params, state = reestimate(point, mesh.replicate(EXAMPLES))
    want = np.zeros(DIM)
    for device in range(d):
      mean = start.astype(np.float64)
      for turn in range(20):
        batch = dealt(turn, device, N // d)
        mean = 0.9 * mean + 0.1 * (w * batch).mean(axis=0)
      want += mean / d
    np.testing.assert_array_equal(params, np.tile(w, (d, 1)))
    np.testing.assert_allclose(state['mean'], np.tile(want, (d, 1)), rtol=1e-5)
    np.testing.assert_array_equal(state['count'], np.full(d, 23))

  @parameterized.parameters(1, 2, 8)
  def test_unlike_replicas_count_alike(self, d):
    """Replica r has the number r only: mean 3.5, variance 5.25."""

    def loss_fn(params, model_state, batch, key):
      del params, key
      seen = {'mean': batch.mean(), 'var': batch.var()}
      moved = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, model_state, seen)
      return seen['mean'], (moved, {})

    def batch_fn(data, step, replica, key):
      del step, key
      return jnp.full(16, replica, jnp.float32) + data

    mesh = pr.engine.ReplicaMesh(8, d)
    reestimate = pr.engine.make_reestimate(mesh, loss_fn, batch_fn)
    zero = np.float32(0)
    point = mesh.replicate((zero, {'mean': zero, 'var': zero}))
    _, state = reestimate(point, mesh.replicate(zero))
    left = 1 - 0.9**64
    np.testing.assert_allclose(state['mean'], np.full(d, 3.5 * left), rtol=1e-5)
    np.testing.assert_allclose(state['var'], np.full(d, 5.25 * left), rtol=1e-5)

  def test_is_what_is_evaluated(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    algorithm = pr.k_avg(optax.sgd(0.1), period=2)
    first = {'mean': np.full(DIM, 9.0, np.float32), 'count': np.int32(0)}
    state = pr.engine.create_train_state(mesh, algorithm, jnp.ones(DIM), first)
    reestimate = pr.engine.make_reestimate(
      mesh, loss_fn, batch_fn, num_batches=20
    )
    refresh = functools.partial(reestimate, data=mesh.replicate(EXAMPLES))
    examples = pr.engine.shard_examples(mesh, np.zeros(6, np.float32), 2)
    evaluate = pr.engine.make_evaluate(mesh, algorithm, eval_fn)
    self.assertEqual(evaluate(state, examples)['value'], 9.0)
    point = mesh.replicate((np.ones(DIM, np.float32), first))
    _, moved = refresh(point)
    self.assertAlmostEqual(
      evaluate(state, examples, refresh)['value'],
      float(moved['mean'][0, 0]),
      places=5,
    )

  def test_refuses(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    for bad in (0, 1.0, True):
      with self.assertRaisesRegex(ValueError, 'num_batches must be'):
        pr.engine.make_reestimate(mesh, loss_fn, batch_fn, num_batches=bad)

  @parameterized.parameters(
    (lambda data: data, r'float32\[\]'),
    (lambda data: {'x': jnp.ones(3), 'y': jnp.ones(2)}, r'float32\[3\].*\[2\]'),
  )
  def test_refuses_a_batch_without_examples(self, draw, got):
    mesh = pr.engine.ReplicaMesh(N, 2)
    reestimate = pr.engine.make_reestimate(
      mesh, loss_fn, lambda data, *rest: draw(data)
    )
    zero = mesh.replicate(np.float32(0))
    with self.assertRaisesRegex(ValueError, f'of one length, got .*{got}'):
      reestimate((zero, {'mean': zero}), zero)


if __name__ == '__main__':
  absltest.main()

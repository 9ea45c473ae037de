"""Random keys in states are made of seed, replica and step."""

import functools
import tempfile
from typing import Any, ClassVar, NamedTuple

from absl.testing import absltest, parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine import checkpoints
from prsgd_jax.testing import check_laws, make_problem
from prsgd_jax.tracing import keys

N = 4


class OldNoiseState(NamedTuple):
  rng_key: Any


def old_noise():
  """A noise that keeps a raw key, as old code does."""

  def init(params):
    del params
    return OldNoiseState(jax.random.PRNGKey(0))

  def update(updates, state, params=None):
    del params
    key, sample = jax.random.split(state.rng_key)
    noisy = jax.tree.map(
      lambda g: g + jax.random.normal(sample, g.shape), updates
    )
    return noisy, OldNoiseState(key)

  return optax.GradientTransformation(init, update)


def noise(key=0, eta=1.0, gamma=0.0):
  return optax.add_noise(eta, gamma, key=key)


def flat_loss(params, model_state, batch, key):
  """No gradient: whatever moves is noise."""
  del key
  return 0 * params.sum() + 0 * batch, (model_state, {})


def noises(algorithm, num_steps, num_devices=2, seed=0):
  """The movements [T, N, 3] of the replicas, and the state at the end."""
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), seed=seed
  )
  steps = pr.engine.make_train_steps(mesh, algorithm, flat_loss)
  batch = np.zeros((num_devices, 1, N // num_devices), np.float32)
  points = [mesh.gather(state.params)]
  for _ in range(num_steps):
    state, _ = steps(state, mesh.place_per_device(batch))
    points.append(mesh.gather(state.params))
  return np.diff(points, axis=0), state


def all_differ(rows):
  """Whether no two rows of numbers share one."""
  flat = rows.reshape(-1)
  return len(np.unique(flat)) == flat.size


class NoisyOptimizerTest(parameterized.TestCase):
  MAKE: ClassVar = {
    'typed': lambda: optax.chain(noise(jax.random.key(0)), optax.sgd(1.0)),
    'seed': lambda: optax.noisy_sgd(1.0, key=0),
    'raw': lambda: optax.chain(old_noise(), optax.sgd(1.0)),
    'two': lambda: optax.chain(noise(), noise(), optax.sgd(1.0)),
    'rbg': lambda: optax.chain(
      noise(jax.random.key(0, impl='rbg')), optax.sgd(1.0)
    ),
  }

  @parameterized.parameters(*MAKE)
  def test_every_replica_and_step_has_its_own(self, name):
    moved, _ = noises(pr.k_avg(self.MAKE[name](), period=100), 4)
    self.assertTrue(all_differ(moved))

  def test_the_devices_do_not_matter(self):
    algorithm = pr.k_avg(self.MAKE['raw'](), period=100)
    one, two, four = (noises(algorithm, 3, d)[0] for d in (1, 2, 4))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, four)

  def test_a_reset_does_not_repeat_them(self):
    tx = self.MAKE['raw']()
    plain, _ = noises(pr.chain(pr.step(tx)), 4)
    reset = pr.chain(pr.step(tx), pr.at(pr.schedules.every(2), pr.restart(tx)))
    np.testing.assert_array_equal(noises(reset, 4)[0], plain)
    moved, _ = noises(pr.fedavg(tx, period=2), 4)
    self.assertTrue(all_differ(moved[[0, 2]]))

  def test_the_seed_is_that_of_the_run(self):
    first, other = (
      noises(pr.step(optax.chain(noise(key), optax.sgd(1.0))), 2)[0]
      for key in (0, 1)
    )
    np.testing.assert_array_equal(first, other)
    seeded, _ = noises(pr.step(self.MAKE['typed']()), 2, seed=1)
    self.assertTrue(all_differ(np.stack([first, seeded])))

  def test_their_number_is_unit_normal(self):
    tx = optax.chain(noise(), optax.sgd(1.0))
    moved, _ = noises(pr.step(tx), 400)
    self.assertAlmostEqual(float(moved.std()), 1.0, delta=0.03)
    # Of four independent replicas the mean has half of it.
    self.assertAlmostEqual(float(moved.mean(axis=1).std()), 0.5, delta=0.03)

  def test_an_average_leaves_keys_alone(self):
    tx = self.MAKE['typed']()
    average = pr.sync(pr.mixing.mean(), ('params', 'opt_state'))
    moved, state = noises(pr.k_avg(tx, period=1, average=average), 2)
    np.testing.assert_array_equal(moved, moved[:, :1].repeat(N, axis=1))
    data = pr.engine.ReplicaMesh(N, 2).gather(state.opt_state)[0].rng_key
    self.assertLen(np.unique(data, axis=0), N)

  def test_replicas_that_rest_draw_at_their_steps(self):
    tx = self.MAKE['typed']()
    plain, _ = noises(pr.chain(pr.step(tx)), 2)
    rests, _ = noises(
      pr.where(pr.stages.first_steps((1, 2, 1, 2)), pr.step(tx)), 2
    )
    np.testing.assert_array_equal(rests[0], plain[0])
    np.testing.assert_array_equal(rests[1, 1::2], plain[1, 1::2])
    np.testing.assert_array_equal(rests[1, ::2], 0 * plain[1, ::2])

  def test_obeys_the_laws(self):
    tx = optax.chain(noise(), optax.sgd(0.1, momentum=0.9))
    problem = make_problem(N, 6)
    check_laws(pr.k_avg(tx, period=2), problem=problem)

  def test_of_a_server_is_the_same_on_all_replicas(self):
    def algorithm():
      return pr.chain(
        pr.remember(x0='params'),
        pr.at(
          pr.schedules.every(2),
          pr.let(delta=lambda x0, params: x0 - params),
          pr.outer_update(self.MAKE['typed'](), of='delta', at='x0'),
          pr.let(params='x0'),
        ),
      )

    moved, _ = noises(algorithm(), 4)
    np.testing.assert_array_equal(moved, moved[:, :1].repeat(N, axis=1))
    self.assertTrue(all_differ(moved[[1, 3], 0]))
    np.testing.assert_array_equal(moved, noises(algorithm(), 4, 4)[0])


class StateTest(parameterized.TestCase):
  """Typed keys in any state: made, saved, restored, averaged, evaluated."""

  ALGORITHM = pr.k_avg(optax.noisy_sgd(0.1, key=0), period=2)

  def created(self, mesh):
    model_state = {'key': jax.random.key(7), 'seen': np.int32(0)}
    start = np.ones(3, np.float32)
    return pr.engine.create_train_state(
      mesh, self.ALGORITHM, start, model_state
    )

  def trained(self, mesh, num_steps=2):
    return self.advance(mesh, self.created(mesh), num_steps)

  @staticmethod
  @functools.cache
  def steps(mesh):
    def loss(params, model_state, batch, key):
      del batch, key
      kept, drawn = jax.random.split(model_state['key'])
      u = jax.random.normal(drawn, params.shape)
      seen = model_state['seen'] + 1
      return (params * u).sum(), ({'key': kept, 'seen': seen}, {})

    return pr.engine.make_resident_train_steps(
      mesh,
      StateTest.ALGORITHM,
      loss,
      lambda data, step, replica, key: data,
    )

  def advance(self, mesh, state, num_steps):
    data = mesh.replicate(np.float32(0))
    return self.steps(mesh)(state, data, num_steps)[0]

  def test_a_restored_run_is_the_same_bit_for_bit(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = self.trained(mesh, 2)
    with tempfile.TemporaryDirectory() as directory:
      checkpoints.save(directory, mesh, state, {})
      restored = checkpoints.restore(directory, mesh, state, {})
      four = pr.engine.ReplicaMesh(N, 4)
      like = self.created(four)
      moved = checkpoints.restore(directory, four, like, {})
    jax.tree.map(
      np.testing.assert_array_equal,
      mesh.gather(state.model_state),
      four.gather(moved.model_state),
    )
    end, whole = (self.advance(mesh, given, 2) for given in (restored, state))
    jax.tree.map(
      np.testing.assert_array_equal,
      mesh.gather((end.params, end.opt_state, end.model_state)),
      mesh.gather((whole.params, whole.opt_state, whole.model_state)),
    )

  def test_consensus_has_the_key_of_replica_0(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = self.trained(mesh)
    params, model_state = pr.engine.consensus(self.ALGORITHM, state)
    np.testing.assert_allclose(
      params, mesh.gather(state.params).mean(axis=0), rtol=1e-6
    )
    np.testing.assert_array_equal(
      jax.random.key_data(model_state['key']),
      mesh.gather(state.model_state)['key'][0],
    )
    self.assertTrue(keys.is_typed(model_state['key']))

  def test_evaluation_takes_the_same_point(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = self.trained(mesh)

    def eval_fn(params, model_state, batch):
      bits = jax.random.key_data(model_state['key']).astype(jnp.float32)
      return {'x': batch * params[0], 'bits': batch * bits[0]}

    examples = pr.engine.shard_examples(mesh, np.ones(4, np.float32), 2)
    got = pr.engine.make_evaluate(mesh, self.ALGORITHM, eval_fn)(
      state, examples
    )
    params, model_state = pr.engine.consensus(self.ALGORITHM, state)
    self.assertAlmostEqual(got['x'], float(params[0]), places=6)
    bits = float(np.float32(jax.random.key_data(model_state['key'])[0]))
    self.assertEqual(got['bits'], bits)

  def test_replicas_draw_apart_in_the_loss(self):
    state = self.trained(pr.engine.ReplicaMesh(N, 2))
    data = pr.engine.ReplicaMesh(N, 2).gather(state.model_state)['key']
    self.assertLen(np.unique(data, axis=0), N)


class RenewTest(parameterized.TestCase):
  def test_only_keys_are_replaced(self):
    block = jax.random.split(jax.random.key(1), 2)
    tree = {
      'count': jnp.zeros(2, jnp.uint32),
      'hashes': jnp.zeros((2, 2), jnp.uint32),
      'key_size': jnp.zeros((2, 3), jnp.uint32),
      'keys': jnp.zeros((2, 2), jnp.float32),
    }
    jax.tree.map(np.testing.assert_array_equal, keys.renew(tree, block), tree)

  def test_keys_of_a_tree_differ_and_keep_their_kind(self):
    block = jax.random.split(jax.random.key(1), 2)
    tree = {
      'rng_key': jnp.zeros((2, 2), jnp.uint32),
      'streams': jax.random.split(jax.random.key(0), (2, 3)),
      'x': jax.random.split(jax.random.key(0, impl='rbg'), 2),
    }
    new = keys.renew(tree, block)
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype), new),
      jax.tree.map(lambda x: (x.shape, x.dtype), tree),
    )
    data = jax.tree.leaves(keys.to_data(new))
    self.assertTrue(all_differ(np.concatenate([np.ravel(x) for x in data])))


class Net(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(4, 16, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.out = nnx.Linear(16, 1, rngs=rngs)

  def __call__(self, x):
    x = self.dropout(nnx.relu(self.norm(self.hidden(x))))
    return self.out(x)[:, 0], x


class NnxTest(parameterized.TestCase):
  """A model of flax nnx with dropout and batch statistics."""

  GRAPH, PARAMS, MODEL_STATE = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
  X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

  def loss(self, params, model_state, batch, key):
    del key
    model = nnx.merge(self.GRAPH, params, model_state, copy=True)
    out, hidden = model(batch)
    model_state = nnx.state(model, nnx.Not(nnx.Param))
    loss = jnp.mean((out - batch.sum(axis=1)) ** 2)
    return loss, (
      model_state,
      {'mask': (hidden[0] == 0) @ 2.0 ** jnp.arange(16)},
    )

  def run_on(self, num_devices, num_steps):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    average = pr.sync(pr.mixing.mean(), ('params', 'model_state'))
    algorithm = pr.k_avg(optax.sgd(0.1), period=2, average=average)
    state = pr.engine.create_train_state(
      mesh, algorithm, self.PARAMS, self.MODEL_STATE
    )
    steps = pr.engine.make_resident_train_steps(
      mesh, algorithm, self.loss, lambda data, step, replica, key: data
    )
    state, metrics = steps(state, mesh.replicate(self.X), num_steps)
    masks = np.moveaxis(np.asarray(metrics['mask']), 1, 0)
    return mesh, algorithm, state, masks.reshape(num_steps, N)

  def test_replicas_drop_other_units_on_every_layout(self):
    *_, masks = self.run_on(1, 3)
    self.assertTrue(all_differ(masks))
    np.testing.assert_array_equal(self.run_on(4, 3)[-1], masks)

  def test_the_averaged_model_is_one_to_evaluate(self):
    mesh, algorithm, state, _ = self.run_on(2, 4)
    params, model_state = pr.engine.consensus(algorithm, state)
    model = nnx.merge(self.GRAPH, params, model_state, copy=True)
    model.eval()
    out, _ = model(self.X)
    first = mesh.gather(state.model_state)['norm']['mean'].get_value()
    np.testing.assert_array_equal(first, first[:1].repeat(N, axis=0))

    def eval_fn(params, model_state, x):
      model = nnx.merge(self.GRAPH, params, model_state, copy=True)
      model.eval()
      return {'out': model(x)[0]}

    evaluate = pr.engine.make_evaluate(mesh, algorithm, eval_fn)
    got = evaluate(state, pr.engine.shard_examples(mesh, self.X, 3))
    self.assertAlmostEqual(got['out'], float(out.mean()), places=5)


class PlacementTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_typed_keys_are_placed_and_fetched(self, num_devices):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    given = jax.random.split(jax.random.key(3), N)
    placed = mesh.place(given)
    self.assertEqual(placed.shape, (num_devices, N // num_devices))
    self.assertTrue(keys.is_typed(placed))
    np.testing.assert_array_equal(
      mesh.gather(placed), jax.random.key_data(given)
    )
    self.assertTrue(keys.is_typed(mesh.replicate(given[0])))

  def test_each_replica_may_bring_its_own(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    given = jax.random.split(jax.random.key(3), N)
    state = pr.engine.create_train_state(
      mesh,
      pr.chain(pr.sync(pr.mixing.mean())),
      np.zeros((N, 2), np.float32),
      {'key': given},
      per_replica=True,
    )
    np.testing.assert_array_equal(
      mesh.gather(state.model_state)['key'], jax.random.key_data(given)
    )


if __name__ == '__main__':
  absltest.main()

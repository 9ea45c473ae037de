"""TRAINER: equal to the engine, without its layouts."""

import copy
import functools
import itertools
import pickle
import tempfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.data import samplers
from prsgd_jax.engine import checkpoints, in_flight, stacking
from tests import harness

N = 8
START = {'w': np.ones(3, np.float32), 'b': np.float32(0)}
COUNT = {'steps': np.int32(0)}
ALGORITHM = pr.k_avg(optax.sgd(0.05, momentum=0.9), period=3)


def examples(size=64, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(size, 3)).astype(np.float32)
  y = x.sum(axis=1) + rng.normal(size=size).astype(np.float32)
  return {'x': x, 'y': y, 'label': np.arange(size) % 4}


DATA = examples()
BATCH = jax.tree.map(lambda x: x[:N], DATA)  # of all replicas
T = 4  # steps of a dispatch: each number of them is another program


def loss_fn(params, model_state, batch, key):
  """Least squares, with a metric that shows the batch and one of the key."""
  e = batch['x'] @ params['w'] + params['b'] - batch['y']
  metrics = {'x': batch['x'], 'drawn': jax.random.uniform(key)}
  return jnp.square(e).mean() / 2, (
    {'steps': model_state['steps'] + 1}, metrics,
  )  # fmt: skip


def eval_fn(params, model_state, batch):
  del model_state
  return {'error': batch['x'] @ params['w'] + params['b'] - batch['y']}


def make(num_devices=2, loss=loss_fn, algorithm=ALGORITHM, **kwargs):
  return pr.trainer(
    algorithm, loss, num_replicas=N, num_devices=num_devices, **kwargs
  )


@functools.cache
def known(num_devices=2):
  return make(num_devices, eval_fn=eval_fn)


def first_rows(data, step, replica, key):
  """Two rows for each replica; without the shuffle, which compiles slowly."""
  del key
  row = (2 * replica + step + jnp.arange(2)) % 64
  return jax.tree.map(lambda x: x[row], data)


def data(arrays=DATA):
  """A value that is written again at every call."""
  return pr.data.drawn(arrays, first_rows)


def shuffled(**kwargs):
  return pr.shared(DATA, **{'batch_size': 2, 'seed': 1, **kwargs})


def shifted(key, batch):
  return {**batch, 'x': batch['x'] + jax.random.normal(key, (3,))}


def start(trainer, **kwargs):
  return trainer.init(START, COUNT, **kwargs)


def counting():
  """`loss_fn`, and how often it was traced."""
  traces = []

  def counted(*args):
    traces.append(1)
    return loss_fn(*args)

  return counted, traces


def assert_same(actual, desired):
  jax.tree.map(np.testing.assert_array_equal, actual, desired)


class EngineTest(absltest.TestCase):
  def test_is_the_engine_bit_for_bit(self):
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(mesh, ALGORITHM, START, COUNT, seed=3)
    train_steps = pr.engine.make_resident_train_steps(
      mesh, ALGORITHM, loss_fn, first_rows
    )
    state, metrics = train_steps(state, mesh.replicate(DATA), T)
    trainer = known()
    found, views = trainer.run(start(trainer, seed=3), data(), T)
    assert_same(harness.to_host(found.on_devices), harness.to_host(state))
    laid_out = jax.tree.map(
      lambda x: np.moveaxis(np.asarray(x), 1, 0).reshape((T, N, *x.shape[3:])),
      metrics,
    )
    assert_same(views, laid_out)
    assert_same(trainer.average(found), pr.engine.consensus(ALGORITHM, state))

  def test_replicas_have_one_order_on_all_devices(self):
    found = [known(d).run(start(known(d)), data(), T)[1] for d in (1, 2, 8)]
    for t, i in itertools.product(range(T), range(N)):
      row = (2 * i + t + np.arange(2)) % 64
      assert_same(found[0]['x'][t, i], DATA['x'][row])
    for other in found[1:]:
      assert_same(other['x'], found[0]['x'])
      assert_same(other['drawn'], found[0]['drawn'])
    self.assertLen(np.unique(found[0]['drawn']), T * N)

  def test_no_steps_do_nothing(self):
    trainer = known()
    state, metrics = trainer.run(start(trainer), data(), num_steps=0)
    self.assertEqual((state.step, metrics['x'].shape), (0, (0, N, 2, 3)))


SHARDS = [np.arange(8 * i, 8 * i + 8) for i in range(N)]
VALUES = {
  'shared': lambda: shuffled(),
  'sharded': lambda: pr.sharded(DATA, batch_size=2),
  'dirichlet': lambda: pr.dirichlet(DATA, alpha=1.0, batch_size=2),
  'shards': lambda: pr.data.from_shards(DATA, [*SHARDS], batch_size=2),
  'drawn': lambda: data(),
  'transform': lambda: shuffled(transform=shifted),
  'seed': lambda: shuffled(seed=2),
}


class ProgramsTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda: shuffled(transform=shifted),
    lambda: pr.stream(itertools.repeat(BATCH), global_batch=True),
  )
  def test_a_value_written_again_is_not_compiled_again(self, value):
    counted, traces = counting()
    trainer = make(1, counted)
    state = start(trainer)
    for _ in range(3):
      state, _ = trainer.run(state, value(), T)
    self.assertEqual((len(traces), state.step), (1, 3 * T))

  def test_values_are_the_same_if_all_of_their_arguments_are(self):
    recipes = {name: value().recipe for name, value in VALUES.items()}
    for name, other in VALUES.items():
      self.assertEqual(other().recipe, recipes[name])
      self.assertEqual(hash(other().recipe), hash(recipes[name]))
    self.assertLen(set(recipes.values()), len(VALUES))

  def test_different_values_are_different_batches(self):
    key = jax.random.key(0)
    batches = [
      np.asarray(
        value().recipe.make(N)(DATA, jnp.int32(3), jnp.int32(2), key)['x']
      )
      for value in VALUES.values()
    ]
    for one, other in itertools.combinations(batches, 2):
      self.assertGreater(np.abs(one - other).max(), 0.1)

  def test_new_arrays_of_the_size_of_the_old_are_not_compiled(self):
    counted, traces = counting()
    trainer = make(1, counted)
    state = start(trainer)
    for seed in range(6):  # more than are remembered
      arrays = examples(seed=seed)
      state, metrics = trainer.run(state, data(arrays), T)
      row = (seed * T + np.arange(2)) % 64
      assert_same(metrics['x'][0, 0], arrays['x'][row])
      del arrays  # a new array may have the address of an old one
    self.assertLen(traces, 1)

  def test_programs_in_turn_do_not_dead_lock(self):
    trainer, other = known(8), known(2)
    state, second = start(trainer), start(other)
    for _ in range(4):
      for stream in (True, False):
        value = data()
        if stream:
          value = pr.stream(itertools.repeat(BATCH), global_batch=True)
        state, _ = trainer.run(state, value, T)
      second, _ = other.run(second, data(), T)
      # Of both trainers, because they share devices.
      self.assertLessEqual(len(in_flight._tokens), in_flight.MAX_IN_FLIGHT)
    self.assertEqual((state.step, second.step), (8 * T, 4 * T))


class DataTest(parameterized.TestCase):
  def test_are_the_samplers(self):
    mesh, key = pr.engine.ReplicaMesh(N, 1), jax.random.key(0)
    wanted = {
      'shared': samplers.shared(64, N, 2, seed=1),
      'sharded': samplers.sharded(64, N, 2, seed=0),
      'shards': samplers.from_shards(64, SHARDS, 2, seed=0),
      'dirichlet': samplers.dirichlet(DATA['label'], N, 2, alpha=1.0, seed=0),
    }
    step, replica = jnp.int32(5), jnp.int32(3)
    for name, sampler in wanted.items():
      batch_fn = VALUES[name]().recipe.make(mesh.num_replicas)
      rows = sampler.rows(step, replica)
      found = batch_fn(DATA, step, replica, key)
      assert_same(found, jax.tree.map(lambda x, rows=rows: x[rows], DATA))

  def test_drawn_may_be_without_arrays(self):
    def loss(params, model_state, batch, key):
      del key
      return (params * batch).sum(), (model_state, {})

    trainer = make(2, loss)
    steps = pr.data.drawn((), lambda data, step, replica, key: 1.0 * step)
    state, _ = trainer.run(trainer.init(np.float32(0)), steps, 4)
    self.assertEqual(state.step, 4)

  def test_a_stream_gives_as_many_batches_as_steps(self):
    trainer, taken = known(), []

    def batches():
      for i in itertools.count():
        taken.append(i)
        yield BATCH

    iterator, state = batches(), start(trainer)
    for _ in range(2):
      value = pr.stream(iterator, global_batch=True)
      state, metrics = trainer.run(state, value, T)
    self.assertEqual((state.step, taken), (2 * T, list(range(2 * T))))
    assert_same(metrics['x'][-1, :, 0], DATA['x'][:N])

  def test_a_long_stream_is_stacked_in_pieces(self):
    trainer, ended = known(), []
    for limit in (64, 2):
      value = pr.stream(itertools.repeat(BATCH), global_batch=True)
      with _limited(limit):
        state, metrics = trainer.run(start(trainer), value, T)
      self.assertEqual(metrics['x'].shape, (T, N, 1, 3))
      ended.append((state.params, jax.tree.map(np.asarray, metrics)))
    assert_same(*ended)

  @parameterized.parameters(
    (lambda: shuffled(), 'shared(64 examples, batch_size=2, seed=1)'),
    (lambda: VALUES['dirichlet'](),
     'dirichlet(64 examples, alpha=1.0, batch_size=2, seed=0)'),
    (lambda: pr.stream(iter([])),
     'stream(a list_iterator, global_batch=False)'),
  )  # fmt: skip
  def test_is_shown_without_its_numbers(self, value, text):
    self.assertEqual(repr(value()), text)


def _limited(steps):
  return absltest.mock.patch.object(stacking, 'MAX_STEPS', steps)


class StateTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_is_shown_by_replica(self, num_devices):
    trainer = known(num_devices)
    points = {
      'w': np.arange(3 * N, dtype=np.float32).reshape(N, 3),
      'b': np.arange(N, dtype=np.float32),
    }
    counts = {'steps': np.arange(N, dtype=np.int32)}
    state = trainer.init(points, counts, per_replica=True)
    assert_same(state.params, points)
    assert_same(state.model_state, counts)
    (trace,) = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
    assert_same(trace, np.zeros((N, 3)))
    self.assertRegex(repr(state), r'^State\(step 0, 4 parameters, 8 replicas')
    used, _ = state, trainer.run(state, data(), T)
    self.assertRegex(repr(used), r'^State\(used up, 4 parameters')

  def test_shows_registers_and_typed_keys(self):
    slow = pr.slowmo(
      optax.sgd(0.1), learning_rate=0.1, period=2, slow_momentum=0.5
    )

    def loss(params, model_state, batch, key):
      del batch, key
      return params.sum(), (model_state, {})

    trainer = make(2, loss, slow)
    state = trainer.init(np.ones(3, np.float32), {'rng': jax.random.key(0)})
    for x in jax.tree.leaves(state.registers):
      self.assertEqual(x.shape, (N, 3))
    self.assertEqual(state.model_state['rng'].shape, (N,))
    average = trainer.average(state)
    self.assertEqual(average[1]['rng'].shape, ())

  def test_a_deep_copy_is_another_state(self):
    state = start(known())
    kept = copy.deepcopy(state)
    state, _ = known().run(state, data(), T)
    self.assertEqual((kept.step, state.step), (0, T))
    known().run(kept, data(), T)
    self.assertEqual(state.step, T)
    with self.assertRaisesRegex(TypeError, 'save a state by trainer.save'):
      pickle.dumps(state)

  def test_trees_of_other_leaves_are_shown(self):
    state = start(known())
    self.assertEqual(repr(jax.device_get(state)), repr(state))
    shapes = jax.eval_shape(lambda x: x, state)
    self.assertStartsWith(repr(shapes), "State(of {'b': float32[2,4], ")

  def test_what_was_read_stays_as_it_was(self):
    trainer = known(1)
    state, _ = trainer.run(start(trainer), data(), T)
    seen = state.params
    kept = jax.tree.map(np.array, seen)
    for _ in range(3):
      state, _ = trainer.run(state, data(), T)
    assert_same(seen, kept)
    self.assertGreater(np.abs(state.params['w'] - seen['w']).max(), 1e-3)


class EvaluateTest(parameterized.TestCase):
  def test_of_the_average_and_of_each_replica(self):
    trainer = known()
    state, _ = trainer.run(start(trainer), data(), T)
    params, _ = trainer.average(state)
    wanted = eval_fn(params, (), DATA)['error'].mean()
    found = trainer.evaluate(state, DATA, batch_size=7)
    np.testing.assert_allclose(found['error'], wanted, rtol=1e-5)
    apart = sum(
      np.square(x - x.mean(axis=0)).sum() / N
      for x in jax.tree.leaves(state.params)
    )
    np.testing.assert_allclose(found['consensus_distance'], apart, rtol=1e-4)
    each = trainer.evaluate_replicas(state, DATA)['error']
    own = jax.vmap(lambda p: eval_fn(p, (), DATA)['error'].mean())
    np.testing.assert_allclose(each, own(state.params), rtol=1e-4, atol=1e-6)

  def test_batch_statistics_may_be_estimated_again(self):
    def loss(params, model_state, batch, key):
      del key
      mean = 0.5 * model_state['mean'] + 0.5 * batch['y'].mean()
      return jnp.square(params - mean), ({'mean': mean}, {})

    def values(params, model_state, batch):
      return {'mean': model_state['mean'] + 0 * batch['y']}

    trainer = make(2, loss, eval_fn=values)
    state = trainer.init(np.float32(0), {'mean': np.float32(100)})
    again = data()
    self.assertEqual(trainer.evaluate(state, DATA)['mean'], 100)
    found = trainer.evaluate(state, DATA, reestimate=again)['mean']
    self.assertLess(abs(found - DATA['y'].mean()), 1)
    _, model_state = trainer.average(state, reestimate=again)
    np.testing.assert_allclose(model_state['mean'], found, rtol=1e-6)

  def test_examples_overwritten_are_placed_again(self):
    trainer = known(1)
    state, arrays = start(trainer), examples()
    before = trainer.evaluate(state, arrays)['error']
    arrays['y'] += 1
    after = trainer.evaluate(state, arrays)['error']
    self.assertAlmostEqual(after, before - 1, places=5)

  def test_places_the_examples_once(self):
    counted = []

    def values(params, model_state, batch):
      counted.append(1)
      return eval_fn(params, model_state, batch)

    trainer = make(1, eval_fn=values)
    for _ in range(3):
      trainer.evaluate(start(trainer), DATA)
    self.assertLen(counted, 1)


class AccountTest(absltest.TestCase):
  def test_of_a_state_of_shapes_and_of_what_was_done(self):
    trainer = known()
    state, _ = trainer.run(start(trainer), data(), T)
    whole = trainer.account(state, T)
    before = trainer.account(trainer.shapes(START, COUNT), T)
    assert_same(before[:3], whole[:3])
    spent = trainer.spent(state)
    self.assertEqual((spent.rounds, spent.gradients), (1, T * N))
    self.assertEqual(spent.bytes_sent, whole.bytes_sent[-1])
    self.assertEqual(trainer.spent(start(trainer)).rounds, 0)

  def test_counts_rounds_that_depend_on_the_data(self):
    algorithm = pr.dynamic_averaging(
      optax.sgd(0.1), check_period=1, threshold=1e-9
    )
    trainer = make(2, algorithm=algorithm)
    state, _ = trainer.run(start(trainer), data(), T)
    checks = trainer.account(state, T).rounds[-1]
    self.assertEqual(trainer.spent(state).rounds, checks + T)


class CheckpointTest(absltest.TestCase):
  def test_a_restored_run_ends_as_the_whole_one(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    trainer = known(2)
    state, _ = trainer.run(start(trainer), data(), T)
    trainer.save(directory, state, {'name': 'mine'}, notes={'epoch': 3})
    self.assertEqual(checkpoints.read_notes(directory, state.step)['epoch'], 3)
    state, _ = trainer.run(state, data(), T)
    other = known(2)
    found = other.restore(directory, start(other), {'name': 'mine'})
    self.assertEqual(found.step, T)
    found, _ = other.run(found, data(), T)
    assert_same(
      harness.to_host(found.on_devices), harness.to_host(state.on_devices)
    )


def used_up():
  state = start(known())
  known().run(state, data(), T)
  return state


def short_stream():
  return pr.stream(iter([BATCH] * 2), global_batch=True)


ERRORS = {
  'no_algorithm': (
    lambda: pr.trainer(optax.sgd(0.1), loss_fn, num_replicas=8),
    'trainer expects .*got .* as the algorithm$',
  ),
  'float_optimizer': (
    lambda: pr.trainer(pr.k_avg(0.1, period=2), loss_fn, num_replicas=8),
    r'got 0.1; write optax.sgd\(0.1\)$',
  ),
  'loss_of_two': (
    lambda: pr.trainer(ALGORITHM, lambda p, b: 0, num_replicas=8),
    r'loss_fn is called as loss_fn\(params, model_state, batch, key\)',
  ),
  'replicas': (
    lambda: pr.trainer(ALGORITHM, loss_fn, num_replicas=0),
    'num_replicas must be an integer >= 1, got 0$',
  ),
  'one_start_for_all': (
    lambda: known().init(START, COUNT, per_replica=True),
    r'expected a leading axis of 8 replicas, got an array of shape \(\)$',
  ),
  'bare_arrays': (
    lambda: known().run(start(known()), DATA, 2),
    r'run expects data such as pr.shared\(arrays, batch_size=16\), got {',
  ),
  'state_of_the_engine': (
    lambda: known().run(start(known()).on_devices, data(), T),
    'run expects the state that trainer.init or trainer.run returns, got a ',
  ),
  'state_of_another_trainer': (
    lambda: known(1).run(start(known(2)), data(), T),
    'run is of a trainer of 8 .* on 1 .* but the state is of .* on 2 cpu',
  ),
  'state_of_another_algorithm': (
    lambda: make(2, algorithm=pr.ssgd(optax.adam(0.1))).run(
      start(known(2)), data(), 2
    ),
    'the state is of another algorithm: its opt_state differs',
  ),
  'spent_by_another_algorithm': (
    lambda: make(2, algorithm=pr.ssgd(optax.adam(0.1))).spent(start(known(2))),
    'the state is of another algorithm: its opt_state differs',
  ),
  'used_up': (
    lambda: known().run(used_up(), data(), T),
    'this state was used up by the call that trained it; use the state',
  ),
  'used_up_and_read': (lambda: used_up().params, 'this state was used up'),
  'used_up_and_counted': (lambda: used_up().step, 'this state was used up'),
  'used_up_and_averaged': (
    lambda: known().average(used_up()), 'this state was used up'
  ),
  'steps': (
    lambda: known().run(start(known()), data(), -1),
    'num_steps must be an integer >= 0, got -1$',
  ),
  'no_eval_fn': (
    lambda: make().evaluate(start(known()), DATA),
    r'evaluate needs pr.trainer\(..., eval_fn=...\)',
  ),
  'no_examples': (
    lambda: known().evaluate(start(known()), ()),
    'examples must be a tree of arrays of one length >= 1, got',
  ),
  'reestimate_of_arrays': (
    lambda: known().average(start(known()), reestimate=DATA),
    'reestimate expects data such as',
  ),
  'lengths': (
    lambda: pr.shared({'x': np.zeros(3), 'y': np.zeros(2)}, batch_size=1),
    r'data must be a tree of arrays of one length >= 1, .*float64\[2\]}$',
  ),
  'batch_size': (
    lambda: shuffled(batch_size=0), 'batch_size must be an integer >= 1, got 0$'
  ),
  'large_batch': (
    lambda: known().run(start(known()), shuffled(batch_size=9), 1),
    'the batch of all replicas, 8 x 9 = 72, is larger than the 64 examples',
  ),
  'labels': (
    lambda: pr.dirichlet(DATA, alpha=1, batch_size=2, labels='class'),
    "labels='class' is no array of the data, which has",
  ),
  'length_of_labels': (
    lambda: pr.dirichlet(DATA, alpha=1, batch_size=2, labels=np.arange(3)),
    r'labels must have one entry for each of the 64 examples, got int64\[3\]$',
  ),
  'shards': (
    lambda: known().run(
      start(known()), pr.data.from_shards(DATA, SHARDS[:3], batch_size=2), 1
    ),
    'the sampler must be of the 8 replicas of the mesh, got one of 3$',
  ),
  'batch_fn': (
    lambda: pr.data.drawn(DATA, lambda data: data),
    'batch_fn is called as',
  ),
  'transform': (
    lambda: shuffled(transform=lambda batch: batch), 'transform is called as'
  ),
  'list_for_a_stream': (
    lambda: pr.stream([DATA]), 'stream expects an iterator .*, got '
  ),
  'stream_of_no_steps': (
    lambda: known().run(start(known()), short_stream(), 0),
    'num_steps must be an integer >= 1, got 0$',
  ),
  'one_device': (
    lambda: make(None, devices=jax.devices()[0]),
    'devices expects a list of different devices, .*, got a Device$',
  ),
  'a_device_twice': (
    lambda: make(None, devices=jax.devices()[:1] * 2),
    'devices expects a list of different devices',
  ),
  'network': (
    lambda: known().spent(start(known()), {'speeds': [1]}),
    r"network expects a pr.ledger.Network\(...\), got {'speeds': \[1\]}$",
  ),
  'shapes_of_nothing': (
    lambda: known().shapes({}), 'params must have an array at least, got {}$'
  ),
  'lower_no_steps': (
    lambda: known().lower(start(known()), data(), 0),
    'num_steps must be an integer >= 1, got 0$',
  ),
  'dates': (
    lambda: pr.shared(np.zeros(9, 'M8[s]'), batch_size=1),
    r'data must be a tree of arrays .*, got datetime64\[s\]\[9\]$',
  ),
  'texts_drawn': (
    lambda: known().run(start(known()), data({'x': np.array(['a'])}), 1),
    r'data must be a tree of arrays, got <U1\[1\] in x$',
  ),
  'examples_of_objects': (
    lambda: known().evaluate(start(known()), {'x': np.array([None] * 3)}),
    r'examples must be a tree of arrays, got object\[3\] in x$',
  ),
  'complex_values': (
    lambda: make(1, eval_fn=lambda p, s, b: {'z': b['y'] * 1j}).evaluate(
      start(known(1)), DATA
    ),
    'eval_fn must give real numbers, got complex z$',
  ),
  'evaluation_batch_size': (
    lambda: known().evaluate(start(known()), DATA, batch_size=[1]),
    r'batch_size must be an integer >= 1, got \[1\]$',
  ),
  'one_hot': (
    lambda: pr.dirichlet(DATA, alpha=1, batch_size=2, labels=np.eye(64)),
    r'labels must be one number .*, got float64\[64,64\]; of one-hot rows',
  ),
  'rows_for_shards': (
    lambda: pr.data.from_shards(DATA, np.arange(9), batch_size=1),
    r'shards expects one list of rows for each replica, int\[n\], got int64',
  ),
  'short_stream': (
    lambda: known().run(start(known()), short_stream(), 3),
    'expected 3 more batches, the iterator ended after 2, which are lost; pass',
  ),
}  # fmt: skip


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(*ERRORS)
  def test_is_one_line(self, name):
    call, wanted = ERRORS[name]
    with self.assertRaisesRegex(ValueError, wanted) as caught:
      call()
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()

"""Data that is read during the run: `pr.pipeline`."""

import functools
import tempfile
import time

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.data import reading, sources

ARRAYS = {
  'x': np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32),
  'id': np.arange(30),
}


class Listed:
  """Examples by number, which counts how many were read."""

  def __init__(self, arrays=ARRAYS):
    self.arrays, self.read = arrays, 0

  def __len__(self):
    return len(self.arrays['id'])

  def __getitem__(self, row):
    self.read += 1
    return {name: x[row] for name, x in self.arrays.items()}


class Broken(Listed):
  """Example 17 fails as the function says."""

  def __init__(self, fail):
    super().__init__()
    self.fail = fail

  def __getitem__(self, row):
    return self.fail() if row == 17 else super().__getitem__(row)


def noisy(key, batch):
  noise = jax.random.normal(key, batch['x'].shape)
  return {**batch, 'x': batch['x'] + 0.1 * noise}


def loss_fn(params, model_state, batch, key):
  del key
  rows = batch['id'].astype(np.float32)
  loss = ((params - batch['x']) ** 2).mean()
  return loss, (model_state, {'rows': rows})


@functools.cache
def trainer():
  return pr.trainer(
    pr.pr_sgd(optax.sgd(0.1), period=2), loss_fn, num_replicas=4, num_devices=2
  )


def train(data, *pieces, state=None, by=None):
  """Parameters and metrics of runs of some lengths, one after the other."""
  by = by or trainer()
  state = state or by.init(np.zeros(3, np.float32))
  collected = []
  for num_steps in pieces:
    state, metrics = by.run(state, data, num_steps)
    collected.append(jax.tree.map(np.asarray, metrics))
  metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *collected)
  return state, metrics


def assert_same(one, other):
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_array_equal(a, b)


def steps(data, replicas, begin, count):
  """The batches of some replicas of 4 in some steps, [count, R, ...]."""
  units = reading.sizes(data, len(replicas))
  batches = reading.open_at(data, data.order(4), replicas, begin, units)
  found = [next(batches) for _ in range(count)]
  return jax.tree.map(lambda *xs: np.stack(xs), *found)


class TrainingTest(parameterized.TestCase):
  @parameterized.product(
    partition=['shared', 'sharded'], source=[Listed(), ARRAYS]
  )
  def test_is_resident_training_bit_for_bit(self, partition, source):
    settings = {'batch_size': 2, 'seed': 3, 'transform': noisy}
    resident = getattr(pr, partition)(ARRAYS, **settings)
    streamed = pr.pipeline(source, partition=partition, **settings)
    state, metrics = train(resident, 20)
    # The pieces begin within an epoch and within a chunk of reading.
    same, same_metrics = train(streamed, 1, 9, 10)
    assert_same(state.params, same.params)
    assert_same(metrics, same_metrics)

  def test_resumes_in_the_middle_of_an_epoch(self):
    data = pr.pipeline(Listed(), batch_size=2, seed=3)
    state, metrics = train(data, 20)
    directory = self.enterContext(tempfile.TemporaryDirectory())
    begun, before = train(data, 7)
    trainer().save(directory, begun)
    other = pr.trainer(
      pr.pr_sgd(optax.sgd(0.1), period=2),
      loss_fn,
      num_replicas=4,
      num_devices=2,
    )
    restored = other.restore(directory, other.init(np.zeros(3, np.float32)))
    resumed, after = train(data, 13, state=restored, by=other)
    assert_same(state.params, resumed.params)
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), before, after)
    assert_same(metrics, joined)

  def test_reads_again_for_a_state_of_another_step(self):
    data = pr.pipeline(Listed(), batch_size=2, seed=3)
    state, metrics = train(data, 6)
    _, again = train(data, 6)
    assert_same(metrics, again)
    del state

  def test_an_equal_pipeline_is_read_on(self):
    source = Listed()
    by = trainer()
    state, _ = train(pr.pipeline(source, batch_size=2), 2)
    read = source.read
    for _ in range(4):
      state, _ = by.run(state, pr.pipeline(source, batch_size=2), 2)
    # 10 steps are in the first chunk of 16; others may have been read ahead.
    self.assertLessEqual(source.read - read, 256 * 8)
    self.assertEqual(state.step, 10)

  def test_rows_may_be_given_for_each_replica(self):
    shards = [np.arange(7), np.arange(7, 12), np.arange(12, 20), [29, 28]]
    data = pr.pipeline(Listed(), batch_size=2, partition=shards)
    _, metrics = train(data, 8)
    for replica, shard in enumerate(shards):
      seen = np.unique(metrics['rows'][:, replica])
      np.testing.assert_array_equal(seen, np.sort(shard))

  def test_refuses_too_few_examples_and_reestimation(self):
    with self.assertRaisesRegex(ValueError, '4 x 8 = 32, is larger than'):
      train(pr.pipeline(ARRAYS, batch_size=8), 1)
    data = pr.pipeline(ARRAYS, batch_size=2)
    state, _ = train(data, 1)
    with self.assertRaisesRegex(ValueError, 'reestimate expects data'):
      trainer().average(state, reestimate=data)

  def test_measures_the_time_without_batches(self):
    class Slow(Listed):
      def __getitem__(self, row):
        time.sleep(0.02)
        return super().__getitem__(row)

    by = pr.trainer(
      pr.pr_sgd(optax.sgd(0.1), period=2), loss_fn, num_replicas=1
    )
    train(pr.shared(ARRAYS, batch_size=1), 4, by=by)
    self.assertEqual(by.waited(), 0.0)
    begun = time.perf_counter()
    train(pr.pipeline(Slow(), batch_size=1), 1, by=by)
    passed = time.perf_counter() - begun
    self.assertBetween(by.waited(), 0.02, passed)


class ReadingTest(parameterized.TestCase):
  def test_processes_read_one_global_sequence(self):
    data = pr.pipeline(Listed(), batch_size=2, seed=5)
    every = steps(data, range(4), 0, 20)
    for replicas in (range(1), range(1, 3), range(2, 4)):
      own = steps(data, replicas, 3, 17)
      part = slice(replicas.start, replicas.stop)
      assert_same(jax.tree.map(lambda x: x[3:, part], every), own)  # noqa: B023

  def test_random_numbers_are_of_seed_step_replica_and_position(self):
    def draw(example, rng):
      return {**example, 'u': rng.random()}

    data = pr.pipeline(Listed(), batch_size=2, seed=5, example_fn=draw)
    every = steps(data, range(4), 0, 20)['u']
    self.assertLen(np.unique(every), every.size)
    own = steps(data, range(2, 4), 11, 9)['u']
    assert_same(every[11:, 2:], own)
    other = pr.pipeline(Listed(), batch_size=2, seed=6, example_fn=draw)
    self.assertNoCommonElements(every, steps(other, range(4), 0, 20)['u'])

  def assertNoCommonElements(self, one, other):
    self.assertEmpty(np.intersect1d(one, other))

  def test_reads_a_bounded_number_of_steps_ahead(self):
    source = Listed()
    data = pr.pipeline(source, batch_size=1, buffer_bytes=16 * 40)
    units = reading.sizes(data, 1)
    self.assertLessEqual(units.chunk * units.chunks, 40)
    batches = reading.open_at(data, data.order(1), range(1), 0, units)
    ahead = []
    for i in range(10_000):
      next(batches)
      ahead.append(source.read - i)
    self.assertLessEqual(max(ahead), 40 + 2 * units.chunk)

  def test_other_processes_read_the_same(self):
    data = pr.pipeline(ARRAYS, batch_size=2, num_processes=1)
    here = pr.pipeline(ARRAYS, batch_size=2)
    assert_same(steps(here, range(4), 5, 3), steps(data, range(4), 5, 3))

  @parameterized.named_parameters(
    ('raises', lambda: 1 // 0,
     r'example 17 .* cannot be read \(ZeroDivisionError: .*\); look at '
     r'source\[17\]$'),
    ('shape', lambda: {'x': np.zeros(4, np.float32), 'id': np.array(17)},
     r'example 17 .* differs from example \d+: x: float32\[3\] became '),
    ('missing', lambda: {'x': np.zeros(3, np.float32)},
     r'example 17 .* differs from example \d+: id: .* is gone'),
    ('large', lambda: {'x': np.zeros(3, np.float32), 'id': np.array(2**40)},
     f"'id' of example 17 .* must be in int32, got {2**40}$"),
  )  # fmt: skip
  def test_names_an_example_that_cannot_be_used(self, fail, message):
    data = pr.pipeline(Broken(fail), batch_size=2)
    with self.assertRaisesRegex(pr.data.DataError, message) as raised:
      steps(data, range(4), 0, 20)
    self.assertNotIn('\n', str(raised.exception))

  def test_names_an_example_of_many_and_of_example_fn(self):
    class Many(Broken):
      def __getitems__(self, rows):
        return [self[row] for row in rows]

    with self.assertRaisesRegex(pr.data.DataError, 'example 17 of the source'):
      steps(pr.pipeline(Many(lambda: 1 // 0), batch_size=2), range(4), 0, 20)

    def change(example, rng):
      del rng
      return example if 1 // int(example['id'] - 17) < 2 else None

    data = pr.pipeline(ARRAYS, batch_size=2, example_fn=change)
    message = 'example 17 .* cannot be changed by example_fn'
    with self.assertRaisesRegex(pr.data.DataError, message):
      steps(data, range(4), 0, 20)

  def test_texts_are_no_examples(self):
    data = pr.pipeline([{'x': 'a'}, {'x': 'b'}], batch_size=1)
    with self.assertRaisesRegex(
      pr.data.DataError, "'x' of example 0 .*numbers"
    ):
      data.example()


class ValueTest(parameterized.TestCase):
  def test_is_equal_for_the_same_arrays(self):
    data = pr.pipeline(ARRAYS, batch_size=2)
    self.assertEqual(data, pr.pipeline({**ARRAYS}, batch_size=2))
    self.assertNotEqual(data, pr.pipeline(ARRAYS, batch_size=2, seed=1))
    copied = jax.tree.map(np.copy, ARRAYS)
    self.assertNotEqual(data, pr.pipeline(copied, batch_size=2))
    rows = [np.arange(15), np.arange(15, 30)]
    parts = (
      pr.pipeline(ARRAYS, batch_size=2, partition=list(rows)) for _ in range(2)
    )
    self.assertLen(set(parts), 1)

  def test_shows_its_size(self):
    self.assertEqual(
      repr(pr.pipeline(ARRAYS, batch_size=2, seed=4)),
      "pipeline(30 examples, batch_size=2, seed=4, partition='shared')",
    )

  @parameterized.parameters(
    ({'source': []}, r'pipeline expects a source .*, got \[\]'),
    ({'source': iter([1])}, 'expects a source .* got a list_iterator'),
    ({'source': 'abc'}, "expects a source .* got 'abc'"),
    ({'source': {'x': np.zeros(2), 'y': np.zeros(3)}}, 'of one length >= 1'),
    ({'source': range(2**31)}, r'at most 2\^31 - 1 examples, got 2147483648'),
    ({'batch_size': 0}, 'batch_size must be an integer >= 1, got 0'),
    ({'num_threads': 0}, 'num_threads must be an integer >= 1'),
    ({'num_processes': -1}, 'num_processes must be an integer >= 0'),
    ({'partition': 'mine'}, "partition must be 'shared' or 'sharded', or"),
    ({'partition': 3}, 'partition expects one list of rows for each replica'),
    ({'partition': [[0, 30]]}, r'rows in 0 \.\. 29, got int64 0 \.\. 30'),
    ({'partition': [[0, 1], []]}, 'larger than the shard of replica 1, 0'),
    ({'transform': 3}, 'transform must be a function'),
    ({'example_fn': lambda x: x}, 'example_fn is called as'),
  )
  def test_refuses(self, changes, message):
    settings = {'source': ARRAYS, 'batch_size': 2, **changes}
    with self.assertRaisesRegex(ValueError, message):
      pr.pipeline(settings.pop('source'), **settings)

  def test_memory_maps_are_read_by_row(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    np.save(f'{directory}/x.npy', ARRAYS['x'])
    mapped = np.load(f'{directory}/x.npy', mmap_mode='r')
    found = sources.Arrays({'x': mapped}).read(np.array([3, 1]))
    self.assertIs(type(found['x']), np.ndarray)
    np.testing.assert_array_equal(found['x'], ARRAYS['x'][[3, 1]])


if __name__ == '__main__':
  absltest.main()

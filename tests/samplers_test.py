"""Tests of `prsgd_jax.data.samplers`."""

import itertools
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.data import samplers
from prsgd_jax.engine import feeding


def rows(sampler, num_replicas, steps):
  """int[steps, num_replicas, batch_size]."""
  per_replica = jax.vmap(sampler.rows, in_axes=(None, 0))
  per_step = jax.vmap(per_replica, in_axes=(0, None))
  return np.asarray(
    jax.jit(per_step)(jnp.asarray(steps), jnp.arange(num_replicas))
  )


def shuffle(seed, stream, size):
  position = jnp.arange(size)
  stream = jnp.uint32(stream)
  return np.asarray(samplers.shuffled_index(seed, stream, position, size))


def mixed(x):
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))


def swap_or_not(seed, stream, size):
  """The shuffle of Hoang, Morris, Rogaway 2012, of all positions, in NumPy."""
  words = np.random.default_rng(seed).integers(2**32, size=(32, 2), dtype='u4')
  x = np.arange(size, dtype=np.uint32)
  stream = np.uint32(stream)
  with np.errstate(over='ignore'):
    for pivot_word, swap_word in words:
      pivot = int(mixed(stream ^ pivot_word)) % size
      partner = ((pivot - x.astype(np.int64)) % size).astype(np.uint32)
      pair = np.maximum(x, partner) ^ mixed(stream ^ swap_word)
      x = np.where(mixed(pair) & 1, partner, x)
  return x


class ShuffleTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, 1437, 60000)
  def test_equals_the_papers_shuffle(self, size):
    for seed, stream in ((0, 0), (3, 2**32 - 1)):
      np.testing.assert_array_equal(
        shuffle(seed, stream, size), swap_or_not(seed, stream, size)
      )

  def test_few_rounds_are_fused_into_one_loop(self):
    # Because LLVM's time to compile a fused loop is exponential in them.
    size = jnp.uint32(50)
    traced = jax.make_jaxpr(lambda x: samplers.shuffled_index(0, x, x, size))
    longest = together = 0
    for eqn in traced(size).eqns:
      if eqn.primitive.name == 'optimization_barrier':
        together = 0
      together += eqn.params.get('name') == '_swap_or_not'
      longest = max(longest, together)
    self.assertBetween(longest, 1, 4)

  @parameterized.parameters(1, 2, 3, 7, 64, 1000, 1437, 60000)
  def test_is_a_permutation_for_every_stream(self, size):
    for stream in (0, 1, 2**32 - 1):
      found = shuffle(3, stream, size)
      np.testing.assert_array_equal(np.sort(found), np.arange(size))

  def test_streams_and_seeds_differ(self):
    found = {tuple(shuffle(s, e, 50)) for s in range(5) for e in range(20)}
    self.assertLen(found, 100)

  def test_images_of_a_position_are_uniform(self):
    size, streams = 37, 20000
    index = samplers.shuffled_index(
      0, jnp.arange(streams, dtype=jnp.uint32), jnp.uint32(5), size
    )
    counts = np.bincount(np.asarray(index), minlength=size)
    chi2 = (np.square(counts - streams / size) / (streams / size)).sum()
    # 36 degrees of freedom: mean 36, deviation 8.5; five deviations off.
    self.assertLess(chi2, 36 + 5 * 8.5)

  def test_neighbors_do_not_stay_together(self):
    size, streams = 41, 5000
    index = samplers.shuffled_index(
      0,
      jnp.arange(streams, dtype=jnp.uint32)[:, None],
      jnp.asarray([[10, 11]]),
      size,
    )
    gap = np.diff(np.asarray(index), axis=1)[:, 0] % size
    counts = np.bincount(gap, minlength=size)[1:]
    expected = streams / (size - 1)
    chi2 = (np.square(counts - expected) / expected).sum()
    # 39 degrees of freedom: mean 39, deviation 8.8; five deviations off.
    self.assertLess(chi2, 39 + 5 * 8.8)

  def test_order_is_the_same_for_a_traced_size(self):
    traced = jax.jit(
      lambda n: samplers.shuffled_index(1, jnp.uint32(4), jnp.arange(30), n)
    )(30)
    np.testing.assert_array_equal(traced, shuffle(1, 4, 30))


class PositionTest(parameterized.TestCase):
  @parameterized.product(
    step=[0, 1, 255, 256, 70000, 2**31 - 1],
    per_step=[1, 256, 8192, 2**23],
    size=[1, 1437, 60000, 2**23],
  )
  def test_long_division_is_exact(self, step, per_step, size):
    row = np.array([0, 1, per_step - 1])
    epoch, position = samplers._locate(
      jnp.int32(step), per_step, jnp.asarray(row), size
    )
    expected = [divmod(step * per_step + int(r), size) for r in row]
    # Epochs are the names of shuffles and may wrap at 2**32.
    np.testing.assert_array_equal(epoch, [e % 2**32 for e, _ in expected])
    np.testing.assert_array_equal(position, [p for _, p in expected])


class SharedTest(parameterized.TestCase):
  def test_replicas_together_see_every_example_once_per_epoch(self):
    found = rows(samplers.shared(48, 4, 3, seed=0), 4, np.arange(12)).reshape(
      3, 48
    )
    for epoch in found:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(48))
    self.assertFalse((found[0] == found[1]).all())

  def test_epoch_ends_within_a_batch(self):
    found = rows(samplers.shared(50, 4, 3, seed=0), 4, np.arange(25))
    for epoch in found.reshape(-1, 50):
      np.testing.assert_array_equal(np.sort(epoch), np.arange(50))

  def test_every_replica_draws_from_all(self):
    found = rows(samplers.shared(40, 4, 5, seed=0), 4, np.arange(200))
    for replica in range(4):
      self.assertLen(np.unique(found[:, replica]), 40)

  def test_refuses_a_batch_larger_than_the_data(self):
    with self.assertRaisesRegex(ValueError, '8 x 7 = 56.* 50 .* fewer rep'):
      samplers.shared(50, 8, 7, seed=0)

  def test_refuses_an_empty_data_set(self):
    with self.assertRaisesRegex(ValueError, '1 to 8388608 examples, got 0'):
      samplers.shared(0, 8, 1, seed=0)

  def test_refuses_batch_size_zero(self):
    with self.assertRaisesRegex(ValueError, 'batch_size .* >= 1, got 0'):
      samplers.shared(10, 2, 0, seed=0)


class ShardedTest(parameterized.TestCase):
  def test_shards_are_disjoint_and_cover_the_data(self):
    found = rows(samplers.sharded(43, 4, 2, seed=0), 4, np.arange(40))
    shards = [set(found[:, replica].ravel()) for replica in range(4)]
    for one, other in itertools.combinations(shards, 2):
      self.assertEmpty(one & other)
    self.assertEqual(set.union(*shards), set(range(43)))
    self.assertEqual(sorted(map(len, shards)), [10, 11, 11, 11])

  def test_replica_goes_through_its_shard_before_it_begins_again(self):
    found = rows(samplers.sharded(48, 4, 3, seed=0), 4, np.arange(12))
    for replica in range(4):
      rounds = found[:, replica].reshape(3, 12)
      for one in rounds:
        self.assertLen(set(one), 12)
      self.assertFalse((rounds[0] == rounds[1]).all())

  def test_refuses_a_batch_larger_than_a_shard(self):
    with self.assertRaisesRegex(ValueError, 'batch of 13 .* 12 examples'):
      samplers.sharded(50, 4, 13, seed=0)


class DirichletTest(parameterized.TestCase):
  def shards(self, alpha, labels, num_replicas=8):
    sampler = samplers.dirichlet(labels, num_replicas, 5, alpha=alpha, seed=0)
    steps = np.arange(2 * len(labels) // (5 * num_replicas))
    found = rows(sampler, num_replicas, steps)
    return [np.unique(found[:, i]) for i in range(num_replicas)]

  @parameterized.parameters(0.01, 0.5, 100.0)
  def test_shards_are_disjoint_equal_and_cover_the_data(self, alpha):
    labels = np.random.default_rng(0).integers(10, size=803)
    shards = self.shards(alpha, labels)
    self.assertLen(np.unique(np.concatenate(shards)), 803)
    self.assertEqual({len(shard) for shard in shards}, {100, 101})

  def test_small_alpha_is_skewed_and_large_alpha_alike(self):
    labels = np.repeat(np.arange(10), 80)

    def largest_share(alpha):
      return np.mean(
        [
          np.bincount(labels[shard], minlength=10).max() / len(shard)
          for shard in self.shards(alpha, labels)
        ]
      )

    # One class in ten has a tenth of an even shard; the maximum of ten is more.
    self.assertLess(largest_share(1000.0), 0.2)
    self.assertGreater(largest_share(0.05), 0.5)

  def test_shares_are_drawn_with_the_papers_concentration(self):
    # Dirichlet(alpha p) with p = 1/10: the variance of a share is
    # p (1 - p) / (alpha + 1) = 0.045 for alpha = 1. Small shards of a large
    # pool show it, but for their own multinomial noise p (1 - p) / n.
    labels = np.repeat(np.arange(10), 4000)
    sampler = samplers.dirichlet(labels, 400, 1, alpha=1.0, seed=0)
    found = rows(sampler, 400, np.arange(100))[..., 0]
    shares = np.stack(
      [np.bincount(labels[found[:, i]], minlength=10) / 100 for i in range(20)]
    )
    # 20 replicas of 10 classes, before the pools run low.
    self.assertBetween(shares.var(), 0.03, 0.06)

  @parameterized.parameters(2, 3, 8)
  def test_the_smaller_alpha_the_more_skewed(self, num_replicas):
    # The mean over replicas and seeds of sum_c |share - share in the whole|.
    # At either end it is a limit, which is reached to the noise of the seeds.
    alphas = (1e-300, 1e-100, 1e-3, 1e-2, 0.3, 1, 10, 100, 1e6, 1e300)
    labels = np.random.default_rng(0).integers(10, size=1797)
    whole = np.bincount(labels) / len(labels)

    def skew(alpha):
      found = []
      for seed in range(20):
        for shard in self.drawn(labels, num_replicas, alpha, seed):
          share = np.bincount(labels[shard], minlength=10) / len(shard)
          found.append(np.abs(share - whole).sum())
      return np.mean(found)

    skews = [skew(alpha) for alpha in alphas]
    for more, less in itertools.pairwise(skews):
      self.assertLess(less, more + 0.02)
    for more, less in itertools.pairwise(skews[3:8]):
      self.assertLess(less, more - 0.02)
    # Fewest classes: shards are filled one class after the other.
    self.assertGreater(skews[0], {2: 0.95, 3: 1.18, 8: 1.55}[num_replicas])

  def test_at_the_smallest_alpha_one_class_follows_another(self):
    labels = np.repeat(np.arange(10), 100)
    for shard in self.drawn(labels, 4, 1e-300, seed=0):
      counts = np.bincount(labels[shard], minlength=10)
      # 250 examples of 100 each: few classes, all but two of them whole.
      self.assertLen(np.flatnonzero((counts > 0) & (counts < 100)), 1)

  def test_ordinary_draws_are_numpys(self):
    labels = np.random.default_rng(0).integers(10, size=1797)
    counts = np.bincount(labels)
    rng = np.random.default_rng(5)
    for c in range(10):
      rng.permutation(np.flatnonzero(labels == c))
    (shard, *_) = self.drawn(labels, 8, 10.0, seed=5)
    wish = rng.dirichlet(10.0 * counts / len(labels))
    want = rng.multinomial(len(shard), wish)
    np.testing.assert_array_equal(np.bincount(labels[shard]), want)

  def drawn(self, labels, num_replicas, alpha, seed):
    with mock.patch.object(samplers, 'from_shards') as from_shards:
      samplers.dirichlet(labels, num_replicas, 1, alpha=alpha, seed=seed)
    return from_shards.call_args.args[1]

  @parameterized.parameters(0, -1.0, float('nan'), float('inf'))
  def test_refuses_alpha(self, alpha):
    with self.assertRaisesRegex(ValueError, f'alpha must be > 0.* got {alpha}'):
      samplers.dirichlet(np.arange(40), 2, 2, alpha=alpha, seed=0)

  def test_labels_may_be_a_list_or_texts(self):
    labels = np.random.default_rng(0).integers(3, size=60)
    want = self.drawn(labels, 4, 1.0, seed=0)
    for same in (
      labels.tolist(),
      np.array(['a', 'b', 'c'])[labels],
      1.0 * labels,
    ):
      got = self.drawn(same, 4, 1.0, seed=0)
      for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)

  @parameterized.parameters(
    (np.eye(4), r'float64\[4,4\].*argmax'),
    (np.array([0.0, np.nan]), r'float64\[2\]'),
    (np.array([None, 1]), r'object\[2\]'),
  )
  def test_refuses_what_are_no_labels(self, labels, pattern):
    with self.assertRaisesRegex(ValueError, f'labels must be.*{pattern}'):
      samplers.dirichlet(labels, 2, 1, alpha=1.0, seed=0)

  @parameterized.parameters(-1, 2**32, 1.0)
  def test_refuses_a_seed(self, seed):
    for make in (samplers.shared, samplers.sharded):
      with self.assertRaisesRegex(ValueError, f'seed must be .* got {seed}'):
        make(40, 2, 2, seed=seed)
    with self.assertRaisesRegex(ValueError, f'seed must be .* got {seed}'):
      samplers.dirichlet(np.arange(40), 2, 2, alpha=1.0, seed=seed)

  def test_a_seed_may_be_of_numpy(self):
    make = samplers.shared
    rows = [
      make(40, 2, 2, seed=s).rows(jnp.int32(3), jnp.int32(1))
      for s in (7, np.int64(7), np.uint64(7))
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])

  def test_refuses_a_batch_larger_than_a_shard(self):
    with self.assertRaisesRegex(ValueError, 'batch of 6 is larger'):
      samplers.dirichlet(np.arange(40), 8, 6, alpha=1, seed=0)


class FromShardsTest(parameterized.TestCase):
  def test_replicas_draw_from_their_own_rows_alone(self):
    shards = [np.array([1, 5, 7]), np.array([2, 3, 4, 0])]
    sampler = samplers.from_shards(8, shards, 2, seed=0)
    found = rows(sampler, 2, np.arange(12))
    for replica, shard in enumerate(shards):
      self.assertEqual(set(found[:, replica].ravel()), set(shard))

  @parameterized.parameters(
    ([np.array([0, 8]), np.array([1, 2])], 'integer rows in 0 .. 7, got .* 8'),
    ([np.array([0, -1]), np.array([1, 2])], 'integer rows .* -1'),
    ([np.array([0.0, 1.5]), np.array([1, 2])], 'integer rows .* float64'),
    ([], 'num_replicas must be an integer >= 1, got 0'),
    ([np.zeros((2, 2), int)] * 2, r'rows for each replica.*int64\[2,2\]'),
  )
  def test_refuses_what_is_no_row(self, shards, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      samplers.from_shards(8, shards, 2, seed=0)


class BatchTest(parameterized.TestCase):
  def test_sampler_is_of_the_mesh(self):
    sampler = samplers.sharded(100, 4, 5, seed=0)
    with self.assertRaisesRegex(ValueError, 'of the 8 replicas.*one of 4'):
      feeding.make_batch_fn(pr.engine.ReplicaMesh(8, 1), sampler)

  def test_sampler_is_of_the_data(self):
    sampler = samplers.shared(400, 4, 5, seed=0)
    batch_fn = feeding.make_batch_fn(pr.engine.ReplicaMesh(4, 1), sampler)
    data = {'x': jnp.zeros(100)}
    step = replica = jnp.int32(0)
    with self.assertRaisesRegex(ValueError, '400 examples, got data of 100'):
      batch_fn(data, step, replica, jax.random.key(0))

  def test_batch_fn_gathers_rows_and_transforms_them(self):
    sampler = samplers.shared(12, 2, 3, seed=0)
    batch_fn = feeding.make_batch_fn(
      pr.engine.ReplicaMesh(2, 1),
      sampler,
      lambda key, batch: {'x': batch['x'] * 2},
    )
    data = {'x': jnp.arange(12.0)}
    key = jax.random.key(0)
    batch = batch_fn(data, jnp.int32(1), jnp.int32(1), key)
    expected = 2 * np.asarray(sampler.rows(jnp.int32(1), jnp.int32(1)))
    np.testing.assert_array_equal(batch['x'], expected)

  @parameterized.parameters(1, 2, 4)
  def test_stacked_batches_keep_replicas_and_steps_in_place(self, num_devices):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    each = [
      {'x': 100 * t + 10 * np.arange(4)[:, None] + np.arange(3)}
      for t in range(5)
    ]
    stacked = feeding.stack_batches(mesh, iter(each), 5)
    self.assertEqual(stacked['x'].shape, (num_devices, 5, 4 // num_devices, 3))
    for t, replica in itertools.product(range(5), range(4)):
      device, row = divmod(replica, mesh.block_size)
      np.testing.assert_array_equal(
        stacked['x'][device, t, row], each[t]['x'][replica]
      )

  def test_refuses_an_iterator_that_ends(self):
    mesh = pr.engine.ReplicaMesh(2, 1)
    with self.assertRaisesRegex(
      ValueError, '3 more batches.*ended after 1, which are lost.*while True'
    ) as caught:
      feeding.stack_batches(mesh, iter([np.zeros((2, 1))]), 3)
    self.assertNotIn('cycle', str(caught.exception))

  @parameterized.parameters(
    ([np.zeros((2, 1))] * 9,),
    ({'x': np.zeros((2, 1))},),
    (np.zeros((9, 2, 1)),),
  )
  def test_refuses_what_would_be_read_from_its_start(self, batches):
    mesh = pr.engine.ReplicaMesh(2, 1)
    with self.assertRaisesRegex(ValueError, r'must be an iterator.*iter\('):
      feeding.stack_batches(mesh, batches, 3)

  def test_a_generator_of_epochs_is_read_on(self):
    # What the error advises: all batches in turn, a new shuffle each epoch.
    mesh, rng = pr.engine.ReplicaMesh(2, 1), np.random.default_rng(0)

    def epochs():
      while True:
        for x in rng.permutation(5):
          yield np.full((2, 1), x)

    stream = epochs()
    seen = np.concatenate(
      [
        np.asarray(feeding.stack_batches(mesh, stream, 4))[0, :, 0, 0]
        for _ in range(5)
      ]
    ).reshape(4, 5)
    for epoch in seen:
      self.assertEqual(sorted(epoch.tolist()), [0, 1, 2, 3, 4])
    self.assertGreater(len({tuple(epoch) for epoch in seen.tolist()}), 1)

  def test_a_loader_that_starts_again_by_iter_is_read_on(self):
    class Loader:
      """Its own iterator, as those of many libraries, into one buffer."""

      def __init__(self):
        self.buffer = np.zeros((2, 1))

      def __iter__(self):
        self.buffer[:] = 0
        return self

      def __next__(self):
        self.buffer += 1
        return self.buffer

    mesh, loader = pr.engine.ReplicaMesh(2, 1), iter(Loader())
    for first in (1, 4):
      got = feeding.stack_batches(mesh, loader, 3)
      np.testing.assert_array_equal(
        got[0, :, 1, 0], [first, first + 1, first + 2]
      )

  @parameterized.parameters((np.array([['a', 'b']] * 2),), ([[None]] * 2,))
  def test_refuses_what_are_no_numbers(self, batch):
    with self.assertRaisesRegex(ValueError, 'a batch must be of numbers, got'):
      feeding.stack_batches(
        pr.engine.ReplicaMesh(2, 1), iter([{'x': np.array(batch)}]), 1
      )

  @parameterized.parameters(1, 2, 4)
  def test_splits_batches_of_all_replicas(self, num_devices):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    whole = [
      {'x': np.arange(24).reshape(12, 2) + 100 * t, 'y': (jnp.arange(12),)}
      for t in range(3)
    ]
    split = [
      jax.tree.map(lambda x: x.reshape((4, 3, *x.shape[1:])), b) for b in whole
    ]
    got = feeding.stack_batches(mesh, iter(whole), 3, global_batch=True)
    want = feeding.stack_batches(mesh, iter(split), 3)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    # Replica r has the rows 3 r, 3 r + 1, 3 r + 2 of step t.
    self.assertEqual(got['x'].shape, (num_devices, 3, 4 // num_devices, 3, 2))
    np.testing.assert_array_equal(
      got['x'][-1, 2, -1], [[218, 219], [220, 221], [222, 223]]
    )

  @parameterized.parameters(
    (13, True, r'multiple of 4 examples.*\(13, 2\).*drop_last'),
    (0, True, r'multiple of 4 examples.*\(0, 2\)'),
    (
      8,
      True,
      r'same structure and shapes.*float32\[4,3,2\] became float32\[4,',
    ),
    (12, False, r'axis of 4 replicas.*\(12, 2\).*global_batch=True'),
  )
  def test_refuses_a_last_short_batch(self, size, global_batch, pattern):
    mesh = pr.engine.ReplicaMesh(4, 1)
    batches = [np.zeros((12, 2), np.float32), np.zeros((size, 2), np.float32)]
    with self.assertRaisesRegex(ValueError, pattern):
      feeding.stack_batches(mesh, iter(batches), 2, global_batch=global_batch)

  def test_refuses_batches_of_other_structure(self):
    mesh, x = pr.engine.ReplicaMesh(2, 1), np.zeros((2, 1), np.float32)
    for batches, pattern in (
      ([{'x': x}, {'x': x, 'y': x}], 'y: float32.* is new'),
      ([(), ()], r'a batch must have an array, got \(\)'),
    ):
      with self.assertRaisesRegex(ValueError, pattern):
        feeding.stack_batches(mesh, iter(batches), 2)

  @parameterized.parameters(0, -1, True, 2.0)
  def test_refuses_no_steps(self, num_steps):
    stream = iter([np.zeros((2, 1))])
    with self.assertRaisesRegex(
      ValueError, 'num_steps must be an integer >= 1'
    ):
      feeding.stack_batches(pr.engine.ReplicaMesh(2, 1), stream, num_steps)
    next(stream)  # nothing was taken

  def test_refuses_batches_without_the_axis_of_replicas(self):
    mesh = pr.engine.ReplicaMesh(2, 1)
    with self.assertRaisesRegex(ValueError, r'2 replicas.*\(3, 1\)'):
      feeding.stack_batches(mesh, iter([np.zeros((3, 1))]), 1)


if __name__ == '__main__':
  absltest.main()

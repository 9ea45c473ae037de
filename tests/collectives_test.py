"""Every primitive against NumPy on many layouts, and its messages."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing import collectives
from tests import harness

# (N, D): V = 1, V = N, blocks of primes, and sizes that do not divide.
LAYOUTS = (
  (1, 1),
  (2, 2),
  (8, 1),
  (8, 2),
  (8, 4),
  (8, 8),
  (6, 2),
  (6, 3),
  (12, 4),
  (12, 2),
  (15, 5),
)


def data(num_replicas, seed=0):
  """A tree of two leaves, integers in float32 so that sums are exact."""
  rng = np.random.default_rng(seed)
  return {
    'matrix': rng.integers(-99, 99, (num_replicas, 3, 2)).astype(np.float32),
    'scalar': rng.integers(-99, 99, (num_replicas,)).astype(np.float32),
  }


def run(num_replicas, num_devices, primitive, *calls):
  """The results of a primitive called with each of `calls`, in one program."""
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  fn = mesh.map(lambda tree: [primitive(tree, *args) for args in calls])
  return mesh.gather(fn(mesh.place(data(num_replicas))))


def messages(num_replicas, num_devices, primitive, *args):
  """The collectives of a primitive on one leaf `[V, 5]`."""
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  fn = mesh.map(lambda leaf: primitive(leaf, *args))
  leaf = jnp.zeros((num_devices, mesh.block_size, 5))
  return harness.collectives_of(fn, leaf)


def every_layout():
  return [(f'{n}_on_{d}', n, d) for n, d in LAYOUTS]


def expected(function):
  return lambda n: jax.tree.map(function, data(n))


PRIMITIVES = {
  'mean': collectives.replica_mean,
  'sum': collectives.replica_sum,
  'groups': lambda tree: collectives.replica_group_mean(tree, 4),
  'gather': collectives.all_gather,
  'shift': lambda tree: collectives.shift(tree, 3),
  'shift_by': lambda tree: collectives.shift_by(tree, jnp.int32(3)),
  'permute': lambda tree: collectives.permute(tree, [3, 1, 0, 2, 7, 4, 6, 5]),
  'meet': lambda tree: collectives.meet(tree, jnp.int32(2)),
}


class BetweenProcessesTest(parameterized.TestCase):
  """Between CPU processes, leaves of one dtype are one message."""

  @parameterized.product(name=tuple(PRIMITIVES), num_devices=(2, 8))
  def test_of_joined_leaves(self, name, num_devices):
    mesh = pr.engine.ReplicaMesh(8, num_devices)
    tree = mesh.place({
      **data(8), 'more': np.arange(16, dtype=np.float32).reshape(8, 2),
      'count': np.arange(8, dtype=np.int32),
    })  # fmt: skip
    found, sent = [], []
    for joined in (False, True):
      with mock.patch.object(
        collectives, '_is_between_cpu_processes', lambda joined=joined: joined
      ):
        fn = mesh.map(lambda tree: PRIMITIVES[name](tree))
        found.append(mesh.gather_per_device(fn(tree)))
        sent.append(len(harness.collectives_of(fn, tree)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    self.assertEqual(2 * sent[1], sent[0])  # two dtypes, not four leaves


class MeanTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_mean_is_the_mean(self, n, d):
    (out,) = run(n, d, collectives.replica_mean, ())
    want = expected(lambda x: np.broadcast_to(x.mean(axis=0), x.shape))(n)
    for name in want:
      # Division by N rounds once per factor of it.
      np.testing.assert_allclose(out[name], want[name], rtol=2e-7, atol=1e-6)
      np.testing.assert_array_equal(
        out[name], np.broadcast_to(out[name][0], out[name].shape)
      )

  @parameterized.named_parameters(every_layout())
  def test_sum_is_the_sum(self, n, d):
    (out,) = run(n, d, collectives.replica_sum, ())
    want = expected(lambda x: np.broadcast_to(x.sum(axis=0), x.shape))(n)
    for name in want:
      np.testing.assert_array_equal(out[name], want[name])

  @parameterized.parameters(collectives.replica_mean, collectives.replica_sum)
  def test_one_replica_per_device_is_one_all_reduce(self, primitive):
    (sent,) = messages(8, 8, primitive)
    self.assertStartsWith(sent.name, 'psum')
    self.assertEqual(sent.operands[0].size, 5)
    self.assertIsNone(sent.params.get('axis_index_groups'))

  @parameterized.parameters(collectives.replica_mean, collectives.replica_sum)
  def test_a_block_is_reduced_before_it_is_sent(self, primitive):
    (sent,) = messages(8, 2, primitive)
    self.assertEqual(sent.operands[0].size, 5)


class GroupMeanTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_group_mean_is_the_mean_of_consecutive_replicas(self, n, d):
    sizes = [size for size in range(1, n + 1) if n % size == 0]
    outs = run(n, d, collectives.replica_group_mean, *[(s,) for s in sizes])
    for size, out in zip(sizes, outs):
      for name, x in data(n).items():
        groups = x.reshape((n // size, size, *x.shape[1:]))
        want = np.repeat(groups.mean(axis=1), size, axis=0)
        np.testing.assert_allclose(out[name], want, rtol=2e-7, atol=1e-6)
        got = out[name].reshape(groups.shape)
        np.testing.assert_array_equal(
          got, np.broadcast_to(got[:, :1], got.shape)
        )

  @parameterized.parameters((8, 2, 4), (8, 2, 2), (8, 8, 1), (12, 4, 3))
  def test_groups_inside_a_device_send_nothing(self, n, d, size):
    self.assertEmpty(messages(n, d, collectives.replica_group_mean, size))

  @parameterized.parameters(
    (8, 8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]), (8, 4, 4, [[0, 1], [2, 3]])
  )
  def test_groups_of_whole_devices_are_one_grouped_all_reduce(
    self, n, d, size, groups
  ):
    (sent,) = messages(n, d, collectives.replica_group_mean, size)
    self.assertStartsWith(sent.name, 'psum')
    self.assertEqual(sent.operands[0].size, 5)
    got = [list(g) for g in sent.params['axis_index_groups']]
    self.assertEqual(got, groups)

  def test_groups_across_devices_are_one_all_reduce_of_their_sums(self):
    (sent,) = messages(12, 4, collectives.replica_group_mean, 2)
    self.assertEqual(sent.operands[0].size, 12 // 2 * 5)


class ShiftTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_replica_receives_from_k_before_it(self, n, d):
    shifts = sorted({0, 1, -1, 2, n // 2, n - 1, n, -n - 1, 5 * n + 3, -137})
    outs = run(n, d, collectives.shift, *[(k,) for k in shifts])
    for k, out in zip(shifts, outs):
      want = expected(lambda x, k=k: np.roll(x, k, axis=0))(n)
      jax.tree.map(np.testing.assert_array_equal, out, want)

  @parameterized.product(
    layout=((8, 8), (8, 4), (8, 1), (12, 3)), k=tuple(range(-1, 13))
  )
  def test_sends_only_the_rows_that_must_move(self, layout, k):
    n, d = layout
    block = n // d
    found = messages(n, d, collectives.shift, k)
    # Rows of device 0 whose new owner is another device.
    must_move = sum((r + k) % n // block != 0 for r in range(block))
    rows = sum(sent.operands[0].shape[0] for sent in found)
    self.assertEqual(rows, must_move)
    self.assertLessEqual(len(found), 2)
    for sent in found:
      self.assertEqual(sent.name, 'ppermute')
      for source, target in sent.params['perm']:
        self.assertNotEqual(source, target)


def run_by(num_replicas, num_devices, primitive, arguments):
  """As `run`, with arguments that are known at run time only."""
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  fn, placed = mesh.map(primitive), mesh.place(data(num_replicas))
  return [
    mesh.gather(fn(placed, mesh.replicate(np.int32(argument))))
    for argument in arguments
  ]


class ShiftByTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_is_the_shift_of_that_length(self, n, d):
    shifts = range(n)
    for k, out in zip(shifts, run_by(n, d, collectives.shift_by, shifts)):
      want = expected(lambda x, k=k: np.roll(x, k, axis=0))(n)
      jax.tree.map(np.testing.assert_array_equal, out, want)

  @parameterized.parameters((8, 8, 1), (8, 4, 2), (12, 3, 2), (8, 1, 0))
  def test_a_branch_sends_whole_blocks_to_two_devices(self, n, d, most):
    found = messages(
      n,
      d,
      lambda x: collectives.shift_by(x, jnp.int32(3) * x[0, 0].astype(int)),
    )
    for sent in found:
      self.assertEqual(sent.name, 'ppermute')
      self.assertEqual(sent.operands[0].shape, (n // d, 5))
      self.assertTrue(all(a != b for a, b in sent.params['perm']))
    # One of the D branches keeps a block, and its neighbor the other one.
    self.assertLen(found, most * (d - 1))


class MeetTest(parameterized.TestCase):
  LAYOUTS = (
    (2, 1), (2, 2), (4, 2), (6, 2), (6, 3), (8, 1), (8, 2), (8, 4), (8, 8),
    (12, 4), (18, 3), (30, 5),
  )  # fmt: skip

  @parameterized.parameters(*LAYOUTS)
  def test_receives_what_the_partner_holds(self, n, d):
    rounds = range(n - 1)
    for r, out in zip(rounds, run_by(n, d, collectives.meet, rounds)):
      partner = collectives.partner(np.arange(n), r, n)
      want = expected(lambda x, p=partner: x[p])(n)
      jax.tree.map(np.testing.assert_array_equal, out, want)

  @parameterized.parameters(2, 4, 8, 14)
  def test_every_pair_meets_once(self, n):
    met = np.zeros((n, n), int)
    for r in range(n - 1):
      partner = collectives.partner(np.arange(n), r, n)
      np.testing.assert_array_equal(partner[partner], np.arange(n))
      met[np.arange(n), partner] += 1
    np.testing.assert_array_equal(met, 1 - np.eye(n))

  def test_draws_are_those_of_the_circle_method(self):
    # Written out: rounds are as they were when each was a matrix.
    want = [
      [5, 4, 3, 2, 1, 0], [1, 0, 4, 5, 2, 3], [2, 5, 0, 4, 3, 1],
      [3, 2, 1, 0, 5, 4], [4, 3, 5, 1, 0, 2],
    ]  # fmt: skip
    got = [collectives.partner(np.arange(6), r, 6).tolist() for r in range(5)]
    self.assertEqual(got, want)


class GroupGatherTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_rows_of_the_group_are_there_in_order(self, n, d):
    mesh = pr.engine.ReplicaMesh(n, d)
    for size in (s for s in range(1, n + 1) if n % s == 0):

      def fn(x, size=size):
        rows, starts, group = collectives.group_gather(
          x, mesh.replica_index(), size
        )
        return rows[starts[group][:, None] + jnp.arange(size)]

      got = mesh.gather(mesh.map(fn)(mesh.place(np.arange(n))))
      groups = np.arange(n).reshape(-1, size)
      np.testing.assert_array_equal(got, np.repeat(groups, size, axis=0))


def rows_sent(found):
  """The rows that all devices send together."""
  return sum(
    len(sent.params['perm']) * sent.operands[0].shape[0] for sent in found
  )


class PermuteTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_replica_receives_from_its_source(self, n, d):
    rng = np.random.default_rng(n + 100 * d)
    sources = [rng.permutation(n), np.arange(n), np.arange(n)[::-1]]
    outs = run(n, d, collectives.permute, *[(s,) for s in sources])
    for source, out in zip(sources, outs):
      want = expected(lambda x, s=source: x[s])(n)
      jax.tree.map(np.testing.assert_array_equal, out, want)

  @parameterized.product(
    layout=((8, 8), (8, 4), (12, 3), (8, 1)), seed=(0, 1, 2)
  )
  def test_sends_no_row_that_stays_on_its_device(self, layout, seed):
    n, d = layout
    block = n // d
    source = np.random.default_rng(seed).permutation(n)
    if seed == 0:  # Only two replicas, of two devices, trade places.
      source = np.arange(n)
      source[[0, n - 1]] = source[[n - 1, 0]]
    found = messages(n, d, collectives.permute, source)
    moving = np.count_nonzero(source // block != np.arange(n) // block)
    self.assertEqual(rows_sent(found), moving)
    self.assertLessEqual(len(found), block)
    for sent in found:
      self.assertEqual(sent.name, 'ppermute')
      self.assertTrue(all(a != b for a, b in sent.params['perm']))

  @parameterized.parameters((64, 2, 2), (256, 2, 2), (256, 4, 24))
  def test_messages_do_not_grow_with_the_block(self, n, d, most):
    source = np.random.default_rng(0).permutation(n)
    found = messages(n, d, collectives.permute, source)
    self.assertLessEqual(len(found), most)
    block = n // d
    moving = np.count_nonzero(source // block != np.arange(n) // block)
    self.assertEqual(rows_sent(found), moving)

  def test_a_replica_without_a_sender_gets_zeros_and_costs_nothing(self):
    rng = np.random.default_rng(1)
    source = rng.permutation(60)
    source[rng.permutation(60)[:25]] = -1
    for d in (1, 2, 3, 6):
      (out,) = run(60, d, collectives.permute, (source,))
      for name, x in data(60).items():
        here = (source >= 0).reshape((-1, *[1] * (x.ndim - 1)))
        want = np.where(here, x[source], 0)
        np.testing.assert_array_equal(out[name], want)
      found = messages(60, d, collectives.permute, source)
      away = source // (60 // d) != np.arange(60) // (60 // d)
      self.assertEqual(rows_sent(found), np.count_nonzero(away & (source >= 0)))
      self.assertLessEqual(len(found), 2 * d**2)

  def test_empty_tree_stays_empty(self):
    mesh = pr.engine.ReplicaMesh(4, 2)
    out = mesh.map(lambda x: (x, collectives.permute((), np.arange(4))))(
      jnp.zeros((2, 2))
    )
    self.assertEqual(out[1], ())

  @parameterized.parameters(
    ((0, 1, 2),), ((0, 1, 2, 2),), ((1, 2, 3, 4),), ((0, 1, 2, 3, 4),)
  )
  def test_source_is_a_permutation(self, source):
    mesh = pr.engine.ReplicaMesh(4, 2)
    fn = mesh.map(lambda x: collectives.permute(x, source))
    with self.assertRaisesRegex(
      ValueError, r'permutation of 0 \.\. 3.*, got \[' + str(source[0])
    ):
      fn(jnp.zeros((2, 2)))


class AllGatherTest(parameterized.TestCase):
  @parameterized.named_parameters(every_layout())
  def test_every_device_has_all_replicas(self, n, d):
    mesh = pr.engine.ReplicaMesh(n, d)
    fn = mesh.map(collectives.all_gather)
    tree = data(n)
    out = fn(mesh.place(tree))
    for name, x in tree.items():
      got = np.asarray(out[name])
      self.assertEqual(got.shape, (d, *x.shape))
      np.testing.assert_array_equal(got, np.broadcast_to(x, got.shape))

  def test_int8_travels_as_int8(self):
    mesh = pr.engine.ReplicaMesh(8, 4)
    fn = mesh.map(collectives.all_gather)
    codes = np.arange(-8, 8, dtype=np.int8).reshape(8, 2)
    out = fn(mesh.place(codes))
    self.assertEqual(out.dtype, np.int8)
    np.testing.assert_array_equal(out[3], codes)


class NumReplicasTest(parameterized.TestCase):
  @parameterized.parameters(*LAYOUTS)
  def test_is_block_times_devices(self, n, d):
    mesh = pr.engine.ReplicaMesh(n, d)
    seen = []
    jax.eval_shape(
      mesh.map(lambda x: seen.append(collectives.num_replicas(x)) or x),
      jax.ShapeDtypeStruct((d, n // d), jnp.float32),
    )
    self.assertEqual(seen, [n])


if __name__ == '__main__':
  absltest.main()

"""Every mixing: `apply` equals `matrix`, and `message` its collectives."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import harness, reference

ROW_STOCHASTIC = np.array(
  [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0.25] * 4, [1.5, -0.5, 0, 0]]
)

# name -> (the mixing, W as the papers write it, for N replicas)
TABLE = {
  'mean': (pr.mixing.mean, lambda n: np.full((n, n), 1 / n)),
  'ring': (pr.graphs.ring, reference.ring_weights),
  'ring_without_self': (
    lambda: pr.graphs.ring(0.0),
    lambda n: reference.ring_weights(n, 0.0),
  ),
  'ring_heavy': (
    lambda: pr.graphs.ring(0.9),
    lambda n: reference.ring_weights(n, 0.9),
  ),
  'groups_of_1': (lambda: pr.mixing.group_mean(1), np.eye),
  'groups_of_2': (
    lambda: pr.mixing.group_mean(2),
    lambda n: np.kron(np.eye(n // 2), np.full((2, 2), 1 / 2)),
  ),
  'groups_of_4': (
    lambda: pr.mixing.group_mean(4),
    lambda n: np.kron(np.eye(n // 4), np.full((4, 4), 1 / 4)),
  ),
}
LAYOUTS = ((4, 1), (4, 2), (4, 4), (8, 2), (8, 8), (12, 4), (12, 3))


def apply(mixing, num_replicas, num_devices, tree):
  """`mixing.apply` of a tree `[N, ...]`, on the host."""
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  fn = mesh.map(lambda x: mixing.apply(x, harness.bare_context(mesh)))
  return mesh.gather(fn(mesh.place(tree)))


def data(num_replicas):
  rng = np.random.default_rng(num_replicas)
  return {
    'matrix': rng.normal(size=(num_replicas, 3, 2)),
    'scalar': rng.normal(size=num_replicas),
  }


class EveryMixingTest(parameterized.TestCase):
  @parameterized.product(name=tuple(TABLE), layout=LAYOUTS)
  def test_apply_is_the_matrix(self, name, layout):
    make, weights = TABLE[name]
    n, d = layout
    tree = data(n)
    with jax.enable_x64(True):
      out = apply(make(), n, d, tree)
    want = jax.tree.map(lambda x: np.tensordot(weights(n), x, 1), tree)
    for leaf in tree:
      np.testing.assert_allclose(out[leaf], want[leaf], rtol=0, atol=1e-14)
    np.testing.assert_allclose(make().matrices(n)[0], weights(n), atol=1e-15)

  @parameterized.product(name=('ring', 'mean'), layout=((1, 1), (2, 1), (2, 2)))
  def test_one_and_two_replicas(self, name, layout):
    make, weights = TABLE[name]
    n, d = layout
    x = np.arange(3.0 * n).reshape(n, 3)
    with jax.enable_x64(True):
      np.testing.assert_allclose(
        apply(make(), n, d, x), weights(n) @ x, rtol=0, atol=1e-15
      )
    np.testing.assert_allclose(make().matrices(n)[0], weights(n), atol=1e-15)

  @parameterized.product(name=tuple(TABLE), n=(4, 8, 12))
  def test_is_doubly_stochastic(self, name, n):
    matrix = TABLE[name][0]().matrices(n)[0]
    self.assertEqual(matrix.dtype, np.float64)
    self.assertEqual(matrix.shape, (n, n))
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    self.assertGreaterEqual(matrix.min(), 0)

  @parameterized.parameters(*TABLE)
  def test_keeps_single_precision(self, name):
    tree = jax.tree.map(lambda x: x.astype(np.float32), data(8))
    out = apply(TABLE[name][0](), 8, 4, tree)
    for leaf in jax.tree.leaves(out):
      self.assertEqual(leaf.dtype, np.float32)

  @parameterized.parameters(*TABLE)
  def test_empty_tree_stays_empty(self, name):
    mesh = pr.engine.ReplicaMesh(4, 2)

    def fn(x):
      return x, TABLE[name][0]().apply([], harness.bare_context(mesh))

    self.assertEqual(mesh.map(fn)(jnp.zeros((2, 2)))[1], [])


class DenseTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_row_stochastic_matrix_is_applied_as_it_is(self, num_devices):
    x = data(4)
    with jax.enable_x64(True):
      out = apply(pr.mixing.dense(ROW_STOCHASTIC), 4, num_devices, x)
    for leaf in x:
      want = np.tensordot(ROW_STOCHASTIC, x[leaf], 1)
      np.testing.assert_allclose(out[leaf], want, rtol=0, atol=1e-14)

  def test_later_changes_of_the_callers_matrix_are_not_seen(self):
    matrix = np.eye(4)
    mixing = pr.mixing.dense(matrix)
    matrix[:] = 0.25
    np.testing.assert_array_equal(mixing.matrices(4)[0], np.eye(4))

  @parameterized.parameters(
    (np.ones((2, 3)) / 3, r'square matrix \[N, N\], got shape \(2, 3\)'),
    (np.ones(4), r'square matrix \[N, N\], got shape \(4,\)'),
    (np.eye(2) * np.nan, 'finite weights, got NaN'),
    (
      np.diag([1.0, 0.5]),
      r'that sum to 1, got 0.5 in row 1',
    ),
    (
      np.diag([1.0, 1 + 1e-4]),
      r'that sum to 1, got 1.0001 in row 1',
    ),
  )
  def test_matrix_is_checked(self, matrix, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.mixing.dense(matrix)

  def test_matrix_is_of_the_replicas(self):
    with self.assertRaisesRegex(ValueError, r'\[8, 8\].*got \(4, 4\)'):
      pr.mixing.dense(np.eye(4)).matrices(8)[0]


class WeightedMeanTest(parameterized.TestCase):
  @parameterized.product(
    layout=LAYOUTS, decode=(None, lambda tree: jax.tree.map(jnp.negative, tree))
  )
  def test_is_its_matrix_and_leaves_all_replicas_bit_equal(
    self, layout, decode
  ):
    n, d = layout
    weights = np.random.default_rng(n).uniform(0.1, 9, n)
    tree, mesh = data(n), pr.engine.ReplicaMesh(n, d)
    mixing = pr.mixing.weighted_mean(weights)

    def fn(tree):
      return mixing.apply(tree, harness.bare_context(mesh), decode)

    with jax.enable_x64(True):
      out = mesh.gather(mesh.map(fn)(mesh.place(tree)))
    sign = 1 if decode is None else -1
    matrix = np.tile(weights / weights.sum(), (n, 1))
    for leaf, x in tree.items():
      want = sign * np.tensordot(matrix, x, 1)
      np.testing.assert_allclose(out[leaf], want, rtol=0, atol=1e-14)
      np.testing.assert_array_equal(
        out[leaf], np.broadcast_to(out[leaf][0], x.shape)
      )
    np.testing.assert_allclose(mixing.matrices(n), matrix[None], atol=1e-15)

  def test_one_replica_per_device_is_one_all_reduce(self):
    mesh = pr.engine.ReplicaMesh(8, 8)
    mixing = pr.mixing.weighted_mean(range(1, 9))
    fn = mesh.map(lambda x: mixing.apply(x, harness.bare_context(mesh)))
    (sent,) = harness.collectives_of(fn, jnp.zeros((8, 1, 5)))
    self.assertStartsWith(sent.name, 'psum')
    self.assertEqual(sent.operands[0].size, 5)

  def test_later_changes_of_the_callers_weights_are_not_seen(self):
    weights = np.ones(4)
    mixing = pr.mixing.weighted_mean(weights)
    weights[:] = 9, 1, 1, 1
    np.testing.assert_array_equal(mixing.matrices(4)[0], np.full((4, 4), 1 / 4))

  @parameterized.parameters(
    ([1, 0],), ([1, -1],), ([1, np.inf],), ([np.nan],), ([],), (2.0,), (None,)
  )
  def test_weights_are_positive_numbers(self, weights):
    with self.assertRaisesRegex(
      ValueError, 'weights expects one number > 0 for each replica, got'
    ):
      pr.mixing.weighted_mean(weights)

  def test_there_is_one_weight_per_replica(self):
    with self.assertRaisesRegex(ValueError, 'each of the 8 replicas, got 2'):
      pr.mixing.weighted_mean([1, 2]).matrices(8)


class CodesTest(parameterized.TestCase):
  """With `decode` the tree is codes: sum_j W_ij decode(code_j)."""

  CODES = np.random.default_rng(0).integers(-99, 99, (8, 3)).astype(np.int8)

  def apply(self, mixing, num_devices):
    mesh = pr.engine.ReplicaMesh(8, num_devices)

    def fn(codes):
      def decode(tree):
        return {'x': tree['code'] * jnp.float32(0.5)}

      return mixing.apply({'code': codes}, harness.bare_context(mesh), decode)

    sent = harness.collectives_of(mesh.map(fn), mesh.place(self.CODES))
    return mesh.gather(mesh.map(fn)(mesh.place(self.CODES)))['x'], sent

  @parameterized.product(
    make=(
      pr.mixing.mean,
      lambda: pr.mixing.dense(reference.random_doubly_stochastic(8)),
      pr.graphs.ring,
      pr.graphs.star,
    ),
    num_devices=(1, 2, 8),
  )
  def test_is_the_matrix_on_what_was_coded(self, make, num_devices):
    out, sent = self.apply(make(), num_devices)
    want = make().matrices(8)[0] @ (self.CODES * 0.5)
    self.assertEqual(out.dtype, np.float32)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-5)
    # They travel as they are.
    for each in sent:
      self.assertEqual(each.operands[0].dtype, np.int8)

  @parameterized.parameters(1, 2, 8)
  def test_replicas_agree_on_a_mean_of_codes(self, num_devices):
    out, _ = self.apply(pr.mixing.mean(), num_devices)
    np.testing.assert_array_equal(out, np.broadcast_to(out[0], out.shape))

  # Groups inside a device, of whole devices, and across two.
  @parameterized.parameters(
    (8, 2, 2), (8, 2, 4), (8, 4, 4), (8, 8, 4), (8, 8, 1), (12, 4, 2),
    (12, 3, 6), (12, 4, 4), (6, 3, 3), (15, 5, 5),
  )  # fmt: skip
  def test_groups_gather_their_codes(self, n, d, size):
    codes = np.random.default_rng(1).integers(-99, 99, (n, 3)).astype(np.int8)
    mesh = pr.engine.ReplicaMesh(n, d)

    def fn(codes):
      return pr.mixing.group_mean(size).apply(
        codes, harness.bare_context(mesh), lambda x: x * jnp.float32(0.5)
      )

    out = mesh.gather(mesh.map(fn)(mesh.place(codes)))
    want = (codes * 0.5).reshape(-1, size, 3).mean(axis=1)
    np.testing.assert_allclose(out, np.repeat(want, size, axis=0), atol=1e-5)
    groups = out.reshape(-1, size, 3)
    np.testing.assert_array_equal(
      groups, np.broadcast_to(groups[:, :1], groups.shape)
    )
    sent = harness.collectives_of(mesh.map(fn), mesh.place(codes))
    if (n // d) % size == 0:
      self.assertEmpty(sent)
    for each in sent:
      self.assertEqual(each.operands[0].dtype, np.int8)
      if size % (n // d) == 0:
        self.assertLen(each.params['axis_index_groups'][0], size // (n // d))


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -2, 1.5, True, None)
  def test_group_size_is_a_positive_integer(self, size):
    with self.assertRaisesRegex(
      ValueError, f'group_size must be an integer >= 1, got {size}'
    ):
      pr.mixing.group_mean(size)

  def test_group_size_divides_the_replicas(self):
    with self.assertRaisesRegex(
      ValueError, r'divide the 8 replicas, got 3; use one of \[1, 2, 4, 8\]'
    ):
      pr.mixing.group_mean(3).matrices(8)[0]

  @parameterized.parameters(-0.1, 1, 1.5, float('nan'))
  def test_self_weight_is_in_range(self, weight):
    with self.assertRaisesRegex(
      ValueError, rf'self_weight must be in \[0, 1\), got {weight}'
    ):
      pr.graphs.ring(weight)


class MessageTest(parameterized.TestCase):
  """The conventions of the ledger, by hand, for a payload of 120 bytes."""

  @parameterized.parameters(
    # A ring all-reduce: 2 (N - 1) / N payloads in 2 (N - 1) latencies.
    (pr.mixing.mean(), 8, (210.0, 14, 'global')),
    (pr.mixing.mean(), 2, (120.0, 2, 'global')),
    (pr.mixing.mean(), 1, (0.0, 0, 'global')),
    (pr.mixing.weighted_mean(range(1, 9)), 8, (210.0, 14, 'global')),
    (pr.mixing.group_mean(4), 8, (180.0, 6, 'group')),
    (pr.mixing.group_mean(1), 8, (0.0, 0, 'group')),
    # A payload to each neighbor; the two neighbors of two are one.
    (pr.graphs.ring(), 8, (240.0, 2, 'neighbor')),
    (pr.graphs.ring(), 3, (240.0, 2, 'neighbor')),
    (pr.graphs.ring(), 2, (120.0, 1, 'neighbor')),
    (pr.graphs.ring(), 1, (0.0, 0, 'neighbor')),
    # Gathering all: N - 1 payloads.
    (pr.mixing.dense(np.eye(8)), 8, (840.0, 7, 'neighbor')),
  )
  def test_message(self, mixing, num_replicas, expected):
    self.assertEqual(tuple(mixing.message(120.0, num_replicas)), expected)


if __name__ == '__main__':
  absltest.main()

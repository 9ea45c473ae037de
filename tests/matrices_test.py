"""Mixing matrices: errors, and every link is used once."""

from absl.testing import absltest, parameterized
import numpy as np

from prsgd_jax.mixing import matrices
from tests import reference


def shift(n, k):
  """W of x_i <- x_{i + k}."""
  return np.roll(np.eye(n), k, axis=1)


def star(n):
  """A star's links, the first replica in the middle."""
  weights = np.eye(n)
  weights[0] = weights[:, 0] = 1
  return weights


def random_links(n, seed):
  return np.random.default_rng(seed).integers(0, 2, (n, n)).astype(float)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    (np.array([[0.5, 0.5], [0.0, 1.0]]),),  # rows
    (np.array([[0.5, 0.0], [0.5, 1.0]]),),  # columns
    (np.array([[1.5, -0.5], [0.0, 1.0]]),),
  )
  def test_stochastic_in_one_way_is_taken(self, given):
    checked = matrices.check_stochastic(given)
    np.testing.assert_array_equal(checked, given)
    self.assertIsNot(checked, given)
    self.assertEqual(checked.dtype, np.float64)

  @parameterized.parameters(
    (np.ones(4), r'square matrix \[N, N\], got shape \(4,\)'),
    (np.ones((2, 3)) / 3, r'square matrix \[N, N\], got shape \(2, 3\)'),
    (np.diag([1.0, np.inf]), 'finite weights'),
    (np.diag([1.0, 0.5]), 'sum to 1, got 0.5 in row 1'),
  )
  def test_others_are_refused(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      matrices.check_stochastic(given)

  def test_sums_are_over_the_axis_given(self):
    rows = np.array([[0.5, 0.5], [0.0, 1.0]])
    self.assertTrue(matrices.sums_to_one(rows, 1))
    self.assertFalse(matrices.sums_to_one(rows, 0))
    self.assertTrue(matrices.sums_to_one(np.stack([rows, rows]), -1))

  def test_matrices_are_of_their_own_size(self):
    one, two = np.eye(3), np.stack([np.eye(3), shift(3, 1)])
    self.assertEqual(matrices.of_size(one)(3).dense().shape, (1, 3, 3))
    np.testing.assert_array_equal(matrices.of_size(two)(3).dense(), two)
    with self.assertRaisesRegex(ValueError, r'\[4, 4\].*got \(3, 3\)'):
      matrices.of_size(one)(4)


class ConnectedTest(parameterized.TestCase):
  @parameterized.parameters(
    (reference.ring_weights(6)[None],),
    (shift(5, 1)[None],),  # a directed cycle
    (star(4)[None],),
    # Pairs of which neither graph by itself reaches all.
    (np.stack([np.kron(np.eye(2), np.ones((2, 2))), shift(4, 1)]),),
  )
  def test_all_that_reach_each_other_are_taken(self, given):
    matrices.check_connected(given)

  @parameterized.parameters(
    (np.eye(3)[None], '3 parts'),
    (np.kron(np.eye(2), np.ones((2, 2)))[None], '2 parts'),
    (np.array([[[1.0, 0.0], [0.5, 0.5]]]), '2 parts'),  # one way only
  )
  def test_others_are_refused(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      matrices.check_connected(given)


def checked(matrix):
  """The matrix of a sparse one, whose rows are sorted and have no zeros."""
  assert matrix.data.all()
  assert all(
    (np.diff(row) > 0).all()
    for row in np.split(matrix.indices, matrix.indptr[1:-1])
  )
  return matrix.toarray()


class SparseTest(parameterized.TestCase):
  @parameterized.parameters(
    (6, {0: 0.5, 2: 0.5}),
    (2, {0: 1 / 3, 1: 1 / 3, -1: 1 / 3}),  # one neighbor on both sides
    (1, {0: 0.5, 1: 0.25, -1: 0.25}),
    (5, {0: 0.0, 1: 0.5, -1: 0.5}),
  )
  def test_circulant(self, n, shifts):
    want = sum(w * np.roll(np.eye(n), k, axis=0) for k, w in shifts.items())
    np.testing.assert_allclose(
      checked(matrices.circulant(n, shifts)), want, atol=1e-15
    )

  def test_pairs(self):
    got = matrices.pairs(np.array([1, 0, 2, 4, 3]))
    want = np.zeros((5, 5))
    want[:2, :2] = want[3:, 3:] = 0.5
    want[2, 2] = 1
    np.testing.assert_array_equal(got.toarray(), want)

  def test_groups(self):
    got = matrices.from_groups(np.array([[0, 3], [1, 2]]))
    want = np.zeros((4, 4))
    want[np.ix_([0, 3], [0, 3])] = want[1:3, 1:3] = 0.5
    np.testing.assert_array_equal(checked(got), want)

  @parameterized.parameters(range(5))
  def test_entries(self, seed):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(6, 6)) * random_links(6, seed)[:6, :6]
    source = rng.integers(-1, 6, 6)
    got = matrices.entries(matrices.listed([dense]).matrix(0), source)
    want = np.where(source < 0, 0, dense[np.arange(6), source])
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(
    (reference.ring_weights(6),),
    (star(40),),  # too unlike for a table
    (np.eye(3),),
    (shift(5, 2),),  # not even its own
    *((random_links(n, seed),) for n in (3, 9, 30) for seed in range(3)),
  )
  def test_senders_are_the_links_and_oneself(self, weights):
    clock = np.random.default_rng(0).normal(size=len(weights))
    found = matrices.senders(matrices.listed([weights]).matrix(0))
    if isinstance(found, tuple):
      got = np.maximum.reduceat(clock[found[0]], found[1])
    else:
      got = clock[found].max(axis=0)
    waits = (weights != 0) | np.eye(len(weights), dtype=bool)
    want = np.where(waits, clock, -np.inf).max(axis=1)
    np.testing.assert_array_equal(got, want)

  def test_a_star_is_no_table(self):
    found = matrices.senders(matrices.listed([star(1000)]).matrix(0))
    self.assertLen(found[0], 1000 + 2 * 999)

  def test_sums_of_all_matrices(self):
    rows = np.array([[0.5, 0.5], [0.0, 1.0]])
    self.assertTrue(matrices.listed([rows]).sum_to_one(1))
    self.assertFalse(matrices.listed([rows]).sum_to_one(0))
    self.assertFalse(matrices.listed([rows, rows.T]).sum_to_one(1))
    self.assertTrue(matrices.listed([rows, np.eye(2)]).sum_to_one(1))


class PermutationsTest(parameterized.TestCase):
  @parameterized.parameters(
    (np.eye(4), 0),
    (shift(5, 2), 1),
    (reference.ring_weights(6), 2),
    (reference.ring_weights(2), 1),
    (np.ones((5, 5)), 4),
    (star(6), 5),
    *((random_links(n, seed), None) for n in (3, 6, 9) for seed in range(5)),
  )
  def test_every_link_is_sent_once(self, weights, degree):
    rounds = matrices.permutations(weights)
    linked = (weights != 0) & ~np.eye(len(weights), dtype=bool)
    sent = np.zeros(weights.shape, int)
    for source in rounds:
      receivers = np.flatnonzero(source >= 0)
      senders = source[receivers]
      # In one round a replica sends to one, and receives from one.
      self.assertLen(set(senders.tolist()), len(senders))
      sent[receivers, senders] += 1
    np.testing.assert_array_equal(sent, linked.astype(int))
    # As few rounds as the busiest replica has messages (König).
    busiest = max(linked.sum(axis=0).max(), linked.sum(axis=1).max())
    self.assertLen(rounds, busiest)
    if degree is not None:
      self.assertLen(rounds, degree)

  def test_what_looks_alike_from_all_is_sent_in_shifts(self):
    n = 6
    for source in matrices.permutations(reference.ring_weights(n)):
      self.assertLen(set(((source - np.arange(n)) % n).tolist()), 1)


if __name__ == '__main__':
  absltest.main()

"""Mixing matrices: what is refused, and that their links are all sent once."""

from absl.testing import absltest, parameterized
import numpy as np

from prsgd_jax import matrices
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
    self.assertEqual(matrices.of_size(one)(3).shape, (1, 3, 3))
    np.testing.assert_array_equal(matrices.of_size(two)(3), two)
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
    linked = matrices.links(weights)
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

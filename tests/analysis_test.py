"""Measurements of the replicas, against NumPy."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import reference


def distance(tree, num_replicas, num_devices):
  """[D], what every device gets."""
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  return np.asarray(mesh.map(pr.mixing.consensus_distance)(mesh.place(tree)))


class ConsensusDistanceTest(parameterized.TestCase):
  @parameterized.parameters((8, 1), (8, 2), (8, 4), (8, 8), (6, 3), (1, 1))
  def test_is_the_mean_square_distance_from_the_mean(self, n, d):
    rng = np.random.default_rng(0)
    tree = {
      'w': rng.normal(size=(n, 3, 2)).astype(np.float32),
      'b': rng.normal(size=n).astype(np.float32),
    }
    flat = np.concatenate([tree['w'].reshape(n, -1), tree['b'][:, None]], 1)
    got = distance(tree, n, d)
    want = reference.consensus_distance(flat.astype(np.float64))
    np.testing.assert_allclose(got, np.full(d, want), rtol=1e-5, atol=1e-12)

  @parameterized.parameters(1, 2, 8)
  def test_does_not_cancel_far_from_the_origin(self, num_devices):
    # |x|^2 - |xbar|^2 would be lost in the last digits.
    x = 4096 + np.arange(8, dtype=np.float32) / 256
    want = np.var(np.arange(8) / 256)
    np.testing.assert_allclose(distance(x, 8, num_devices), want, rtol=1e-5)

  def test_equal_replicas_have_none(self):
    np.testing.assert_array_equal(distance(np.ones((8, 3)), 8, 4), np.zeros(4))

  def test_integers_do_not_count(self):
    tree = {'count': np.arange(8), 'x': np.zeros(8, np.float32)}
    np.testing.assert_array_equal(distance(tree, 8, 2), np.zeros(2))

  def test_half_precision_is_measured_in_single(self):
    x = np.asarray(np.arange(8) + 256, jnp.bfloat16)
    want = np.var(x.astype(np.float64))
    got = distance(x, 8, 2)
    self.assertEqual(got.dtype, np.float32)
    np.testing.assert_allclose(got, np.full(2, want), rtol=1e-5)

  def test_double_precision_stays(self):
    with jax.enable_x64(True):
      x = 1 + np.arange(8) * 1e-10
      got = distance(x, 8, 2)
    self.assertEqual(got.dtype, np.float64)
    np.testing.assert_allclose(got, np.full(2, np.var(x)), rtol=1e-5)

  def test_complex_parameters_have_a_real_distance(self):
    x = np.array([1, 1j, -1, -1j] * 2, np.complex64)
    got = distance(x, 8, 2)
    np.testing.assert_allclose(got, np.ones(2), rtol=1e-6)


class SpectralGapTest(parameterized.TestCase):
  """1 - sqrt of the largest eigenvalue of E[(W - J)'(W - J)], by hand."""

  @parameterized.product(n=(3, 5, 8, 16), self_weight=(1 / 3, 0.5, 0.0))
  def test_ring(self, n, self_weight):
    # Circulant: lambda_k = w + (1 - w) cos(2 pi k / n).
    k = np.arange(1, n)
    roots = self_weight + (1 - self_weight) * np.cos(2 * np.pi * k / n)
    got = pr.mixing.spectral_gap(pr.graphs.ring(self_weight), n)
    self.assertAlmostEqual(got, 1 - np.abs(roots).max(), places=12)

  @parameterized.parameters(2, 4, 8, 16)
  def test_hypercube(self, n):
    # lambda = 1 - 2 k / (d + 1), k = 0 .. d digits that differ, d = log2 n.
    d = n.bit_length() - 1
    roots = 1 - 2 * np.arange(1, d + 1) / (d + 1)
    got = pr.mixing.spectral_gap(pr.graphs.hypercube(), n)
    # lambda_2 is 0 at n = 2, and the square root of 1e-17 is not.
    self.assertAlmostEqual(got, 1 - np.abs(roots).max(), places=7)

  @parameterized.parameters(
    (pr.mixing.mean, 8, 1),
    (pr.graphs.complete, 8, 1),
    (lambda: pr.mixing.dense(np.eye(4)), 4, 0),
    (lambda: pr.mixing.group_mean(2), 4, 0),
    (pr.mixing.mean, 1, 1),
    # A star's leaves differ by 1 - 1/n from one round to the next.
    (pr.graphs.star, 8, 1 / 8),
  )
  def test_known(self, make, n, gap):
    self.assertAlmostEqual(pr.mixing.spectral_gap(make(), n), gap, places=7)

  @parameterized.parameters(4, 8, 16)
  def test_random_matching(self, n):
    # W'W = W, and E W = I/2 + (11' - I) / (2 (n - 1)).
    root = 1 / 2 - 1 / (2 * (n - 1))
    got = pr.mixing.spectral_gap(pr.graphs.random_matching(), n)
    self.assertAlmostEqual(got, 1 - np.sqrt(root), places=12)

  @parameterized.parameters(3, 8)
  def test_random_neighbor(self, n):
    # E W'W = I/2 + E[P + P'] / 4 = I/2 + (11' - I) / (2 (n - 1)).
    root = 1 / 2 - 1 / (2 * (n - 1))
    got = pr.mixing.spectral_gap(pr.graphs.random_neighbor(), n)
    self.assertAlmostEqual(got, 1 - np.sqrt(root), places=12)

  def test_not_symmetric(self):
    # The norm of W - J, not an eigenvalue, bounds what one round leaves.
    weights = reference.random_doubly_stochastic(6)
    norm = np.linalg.norm(weights - 1 / 6, 2)
    got = pr.mixing.spectral_gap(pr.mixing.dense(weights), 6)
    self.assertAlmostEqual(got, 1 - norm, places=12)

  @parameterized.parameters(0, 1)
  def test_is_of_doubly_stochastic_mixings(self, axis):
    weights = np.array([[0.5, 0.5], [0.25, 0.75]])
    mixing = pr.mixing.dense(weights if axis else weights.T)
    with self.assertRaisesRegex(ValueError, 'expects a doubly stochastic'):
      pr.mixing.spectral_gap(mixing, 2)


if __name__ == '__main__':
  absltest.main()

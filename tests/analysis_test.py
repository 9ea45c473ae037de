"""What is measured of the replicas, against NumPy."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import reference


def distance(tree, num_replicas, num_devices):
  """[D], what every device gets."""
  mesh = pr.ReplicaMesh(num_replicas, num_devices)
  return np.asarray(mesh.map(pr.consensus_distance)(mesh.place(tree)))


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


if __name__ == '__main__':
  absltest.main()

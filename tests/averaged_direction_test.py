"""Average-direction SAM, where the turns are known in closed form."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from prsgd_jax.science import averaged_direction as module

KEY = jax.random.key(0)


def measure(gradient, points, **kwargs):
  with jax.enable_x64(True):
    return module.averaged_direction(
      gradient, points, np.zeros(1), KEY, **kwargs
    )


class AveragedDirectionTest(parameterized.TestCase):
  def cubic(self, seed=0, dim=4):
    """A symmetric T, of the loss T[w, w, w] / 6 + w'Aw / 2."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(dim,) * 3)
    t = sum(t.transpose(p) for p in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    t = t + t.transpose(0, 2, 1)
    a = rng.normal(size=(dim, dim))

    def gradient(w, batch, key):
      return np.einsum('ijk,j,k->i', t, w, w) / 2 + (a + a.T) @ w

    def traced(w, batch, key):
      return jax.numpy.einsum('ijk,j,k->i', t, w, w) / 2 + (a + a.T) @ w

    return t, gradient, traced

  def test_cubic_by_hand(self):
    t, gradient, traced = self.cubic()
    points = np.random.default_rng(1).normal(size=(5, 4))
    mean = points.mean(axis=0)
    xi = (points - mean).T @ (points - mean) / 5
    got = measure(traced, points, num_pairs=300)
    # The third derivative is constant, so both turns are T[Xi] / 2.
    turn = np.einsum('ijk,jk->i', t, xi) / 2
    np.testing.assert_allclose(got.turn, np.linalg.norm(turn))
    np.testing.assert_allclose(
      got.gradient, np.linalg.norm(gradient(mean, None, None))
    )
    np.testing.assert_allclose(got.spread, np.trace(xi))
    self.assertGreater(got.cosine, 0.99)
    self.assertAlmostEqual(got.ratio, 1, delta=0.1)

  def test_isotropic_noise_turns_elsewhere(self):
    t, _, traced = self.cubic()
    points = np.zeros((2, 4))
    points[:, 0] = -3.0, 3.0
    got = measure(traced, points, num_pairs=300, isotropic=True)
    xi, own = np.eye(4) * 9 / 4, t[:, 0, 0] * 9 / 2
    turn = np.einsum('ijk,jk->i', t, xi) / 2
    cosine = own @ turn / np.linalg.norm(own) / np.linalg.norm(turn)
    self.assertAlmostEqual(got.cosine, cosine, delta=0.05)
    self.assertLess(got.cosine, 0.9)

  def test_one_hessian_turns_nothing(self):
    got = measure(lambda w, batch, key: 2 * w, np.array([[0.0], [1.0]]))
    self.assertLess(got.turn, 1e-15)

  def test_quintic_by_the_same_draws(self):
    # x^5 / 5 at 1 +- d: the turn is 6 d^2 + d^4, and Gaussian 6 d^2 + 3 d^4.
    d = 0.5
    got = measure(
      lambda x, batch, key: x**4,
      np.array([[1 - d], [1 + d]]),
      num_pairs=50,
      seed=3,
    )
    np.testing.assert_allclose(got.turn, 6 * d**2 + d**4)
    rng = np.random.default_rng(3)
    halves = [list(module.orthogonal_gaussians(rng, 25, 2)) for _ in range(2)]
    e = np.concatenate(halves) @ [-d, d] / 2**0.5
    sam = np.mean([(1 + e) ** 4, (1 - e) ** 4]) - 1
    np.testing.assert_allclose(got.ratio, got.turn / sam)
    self.assertAlmostEqual(got.cosine, 1)

  def test_replicas_that_agree_have_no_direction(self):
    got = measure(lambda x, batch, key: x**2, np.ones((3, 2)))
    self.assertEqual((got.turn, got.spread), (0, 0))
    self.assertTrue(np.isnan(got.cosine))

  def test_coefficients_are_gaussian_and_orthogonal(self):
    rng = np.random.default_rng(0)
    drawn = np.array(list(module.orthogonal_gaussians(rng, 3998, 4)))
    self.assertEqual(drawn.shape, (3998, 4))
    products = drawn[:4] @ drawn[:4].T
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.06)
    # Five standard errors of independent draws would be 0.11; this is a third.
    np.testing.assert_allclose(drawn.T @ drawn / 3998, np.eye(4), atol=0.04)
    # E x^4 = 3 of a Gaussian, within five standard errors.
    np.testing.assert_allclose((drawn**4).mean(axis=0), 3, atol=0.8)

  def test_ceiling_is_the_cosine_that_the_noise_of_the_pairs_leaves(self):
    _, _, traced = self.cubic()
    points = np.random.default_rng(1).normal(size=(5, 4))
    found = [
      measure(traced, points, num_pairs=6, seed=seed) for seed in range(25)
    ]
    # On a cubic, both turns are equal but for the noise.
    cosines = np.mean([f.cosine for f in found])
    typical = found[0]._replace(halves=np.mean([f.halves for f in found]))
    self.assertLess(cosines, 0.97)
    self.assertAlmostEqual(typical.ceiling, cosines, delta=0.03)
    self.assertTrue(np.isnan(found[0]._replace(halves=-0.1).ceiling))
    self.assertTrue(np.isnan(measure(traced, points, num_pairs=1).halves))

  def test_refuses_no_pairs(self):
    with self.assertRaisesRegex(ValueError, 'num_pairs must be an integer'):
      measure(lambda x, batch, key: x, np.ones((3, 2)), num_pairs=0)


if __name__ == '__main__':
  absltest.main()

"""Curvature and effective steps, where they are known in closed form."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.science import landscape
from tests import reference

KEY = jax.random.key(0)


def to_tree(x):
  return {'a': x[..., :2], 'b': x[..., 2:].reshape((*x.shape[:-1], -1, 1))}


def to_vector(tree):
  return jnp.concatenate([tree['a'], tree['b'].ravel()])


@jax.grad
def quadratic(params, batch, key):
  """(x - e)' H (x - e) / 2 with (H, e) for a batch."""
  del key
  hessian, target = batch
  e = to_vector(params) - target
  return e @ hessian @ e / 2


def with_eigenvalues(values, seed=0):
  rng = np.random.default_rng(seed)
  q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
  return (q * np.array(values)) @ q.T


class CurvatureTest(parameterized.TestCase):
  @parameterized.parameters(
    ([3, 1, 0.5, 0, -1],),
    ([-5, 2, 1, 0, 0],),  # the largest in size is not the largest
    ([-4, -3, -2, -1, -1],),  # the largest is negative
    ([2, 2, 2, 2, 2],),
    ([-2, -2, -2, -2, -2],),
    ([3, -3, 1, 0, 0],),  # between these a power iteration of H swings
    ([1e-3, 1e-4, 0, 0, 0],),
    ([1e4, 1, 0, 0, -3],),
  )
  def test_quadratic(self, values):
    hessian = with_eigenvalues(values).astype(np.float32)
    target = np.ones(5, np.float32)
    params = to_tree(np.arange(5, dtype=np.float32))
    got = landscape.curvature(quadratic, params, (hessian, target), KEY)
    largest = np.abs(values).max()
    self.assertLessEqual(got.residual, 1e-3)
    np.testing.assert_allclose(got.smoothness, largest, rtol=1e-3)
    np.testing.assert_allclose(
      got.sharpness, max(values), atol=1e-3 * largest, rtol=0
    )

  def test_flat(self):
    params = to_tree(np.ones(5, np.float32))
    batch = (np.zeros((5, 5), np.float32), np.ones(5, np.float32))
    got = landscape.curvature(quadratic, params, batch, KEY)
    self.assertEqual(got, (0, 0, 0))

  @parameterized.parameters(-2.0, 3.0)
  def test_one_parameter(self, value):
    got = landscape.curvature(
      lambda x, batch, key: batch * x, np.ones(1), np.float32(value), KEY
    )
    self.assertEqual(got, (abs(value), value, 0))

  @parameterized.parameters(1, -1)
  def test_is_nan_if_the_iterations_do_not_suffice(self, sign):
    values = sign * np.linspace(0.99, 1, 200, dtype=np.float32)

    def curvature(**kwargs):
      return landscape.curvature(
        lambda x, batch, key: batch * x, np.ones(200), values, KEY, **kwargs
      )

    short = curvature(tolerance=1e-5, max_iterations=1)
    np.testing.assert_array_equal(short, [np.nan] * 3)
    enough = curvature(tolerance=1e-5)
    np.testing.assert_allclose(enough.sharpness, values.max(), rtol=1e-5)

  def test_is_nan_if_the_hessian_is_not_finite(self):
    got = landscape.curvature(
      lambda x, batch, key: batch * x, np.ones(3), np.float32(np.inf), KEY
    )
    np.testing.assert_array_equal(got, [np.nan] * 3)

  @parameterized.parameters(np.float32, jnp.bfloat16)
  def test_network(self, dtype):
    rng = np.random.default_rng(3)
    params = {
      'w': jnp.asarray(rng.normal(size=(3, 4)), dtype),
      'v': jnp.asarray(rng.normal(size=4), dtype),
    }
    x = rng.normal(size=(16, 3)).astype(np.float32)
    y = rng.normal(size=16).astype(np.float32)

    def loss(params, batch, key):
      hidden = jnp.tanh(batch[0] @ params['w'])
      return jnp.square(hidden @ params['v'] - batch[1]).mean()

    wide = jax.tree.map(lambda p: p.astype(np.float32), params)
    flat, unravel = jax.flatten_util.ravel_pytree(wide)
    hessian = jax.hessian(lambda p: loss(unravel(p), (x, y), KEY))(flat)
    values = np.linalg.eigvalsh(hessian)
    got = landscape.curvature(jax.grad(loss), params, (x, y), KEY)
    np.testing.assert_allclose(got.smoothness, np.abs(values).max(), rtol=1e-3)
    np.testing.assert_allclose(got.sharpness, values.max(), rtol=1e-3)

  def test_iterations_are_checked(self):
    with self.assertRaisesRegex(ValueError, 'max_iterations must be an int'):
      landscape.curvature(quadratic, {}, (), KEY, max_iterations=0)


class EffectiveStepTest(parameterized.TestCase):
  def measure(self, problem, points, learning_rate=0.3, full=None):
    """On the replicas' quadratics, all of which are the full loss."""
    batches = (problem.hessian, problem.target)
    with jax.enable_x64(True):
      return landscape.effective_step(
        quadratic,
        to_tree(points),
        batches,
        batches if full is None else full,
        KEY,
        learning_rate=learning_rate,
      )

  def gradients(self, problem, points):
    """g_a, g_S, and the replicas' mean, by hand."""
    mean = points.mean(axis=0)
    own = [h @ (x - e) for h, x, e in zip(problem[0], points, problem.target)]
    there = [h @ (mean - e) for h, e in zip(problem[0], problem.target)]
    return np.mean(own, axis=0), np.mean(there, axis=0), mean

  def test_by_hand(self):
    problem = reference.make_problem(num_replicas=4, dim=5)
    full = reference.make_problem(num_replicas=7, dim=5, seed=1)
    points = np.random.default_rng(2).normal(size=(4, 5))
    g_a, g_s, mean = self.gradients(problem, points)
    g = np.mean(
      [h @ (mean - e) for h, e in zip(full.hessian, full.target)], axis=0
    )
    got = self.measure(problem, points, 0.3, (full.hessian, full.target))
    unit = g / np.linalg.norm(g)
    rate = 0.3 * g_a @ g / (g @ g)
    eta = 0.3 * g_a - rate * g
    self.assertAlmostEqual(eta @ g, 0)
    ssgd = 0.09 * np.square(g_s - g).sum()
    across = 0.3 * (g_s - (g_s @ unit) * unit)
    want = landscape.EffectiveStep(
      learning_rate=rate,
      noise=eta @ eta,
      ssgd_noise=ssgd,
      landscape_noise=eta @ eta - ssgd,
      ssgd_learning_rate=0.3 * (g_s @ g) / (g @ g),
      ssgd_across=across @ across,
      displacement=0.09 * np.square(g_a - g_s).sum(),
      square_gradient=g @ g,
    )
    np.testing.assert_allclose(got, want, rtol=1e-9)
    # Pythagoras: what a step is off is across g, or along it.
    off = np.square(0.3 * g_a - 0.3 * g).sum()
    along = (got.learning_rate - 0.3) ** 2 * got.square_gradient
    self.assertAlmostEqual(got.noise + along, off)

  def test_one_hessian(self):
    # However far the replicas are apart, the step is SSGD's.
    problem = reference.make_problem(num_replicas=4, dim=5, common_hessian=True)
    points = 100 * np.random.default_rng(2).normal(size=(4, 5))
    full = reference.make_problem(
      num_replicas=4, dim=5, seed=5, common_hessian=True
    )
    full = (problem.hessian, full.target)  # so that there is sampling noise
    got = self.measure(problem, points, 0.3, full)
    self.assertGreater(got.ssgd_noise, 1e-2)
    self.assertLess(got.displacement, 1e-20 * got.square_gradient)
    self.assertAlmostEqual(got.learning_rate, got.ssgd_learning_rate)
    np.testing.assert_allclose(got.noise, got.ssgd_across, rtol=1e-6)
    # Delta_2 itself is not 0, but what Delta_S has along g.
    along = (got.learning_rate - 0.3) ** 2 * got.square_gradient
    np.testing.assert_allclose(got.landscape_noise, -along, rtol=1e-6)
    self.assertGreater(along, 1e-6)

  def test_replicas_that_agree_take_ssgds_step(self):
    problem = reference.make_problem(num_replicas=4, dim=5)
    got = self.measure(problem, np.tile(np.arange(5.0), (4, 1)))
    # The batches are all there is: no noise of any kind.
    for value in (got.displacement, got.ssgd_noise, got.noise):
      self.assertLess(value, 1e-20)
    self.assertAlmostEqual(got.learning_rate, 0.3)

  def test_quartic_by_hand(self):
    # f = sum_i w_i^4 / 4, two replicas at w +- d: mean w_j^3 = w^3 + 3 w d^2.
    w, d = np.array([1.0, 2.0]), np.array([0.5, 0.1])

    def gradient(params, batch, key):
      return params**3

    with jax.enable_x64(True):
      got = landscape.effective_step(
        gradient,
        np.stack([w - d, w + d]),
        np.zeros(2),
        np.zeros(1),
        KEY,
        learning_rate=0.1,
      )
    g, extra = w**3, 3 * w * d**2
    np.testing.assert_allclose(
      got.learning_rate, 0.1 * (1 + extra @ g / (g @ g))
    )
    turned = (extra[0] * g[1] - extra[1] * g[0]) ** 2 / (g @ g)
    np.testing.assert_allclose(got.noise, 0.01 * turned)
    np.testing.assert_allclose(got.landscape_noise, 0.01 * turned)
    np.testing.assert_allclose(got.displacement, 0.01 * extra @ extra)

  def test_both_gradients_draw_alike(self):
    # Noise that the same key gives at every point is SSGD's noise.
    def gradient(params, batch, key):
      return params + jax.random.normal(key, params.shape)

    points = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    got = landscape.effective_step(
      gradient, points, np.zeros(4), np.zeros(4), KEY, learning_rate=1.0
    )
    self.assertLess(got.displacement, 1e-10)
    self.assertGreater(got.ssgd_noise, 0.1)

  def test_at_a_stationary_point_there_is_no_rate(self):
    got = landscape.effective_step(
      lambda x, batch, key: x * batch,
      np.array([[-1.0], [1.0]]),
      np.array([1.0, 2.0]),
      np.ones(1),
      KEY,
      learning_rate=1.0,
    )
    self.assertTrue(np.isnan(got.learning_rate))
    self.assertEqual(got.displacement, 0.25)

  def test_needs_a_batch_for_each_point(self):
    with self.assertRaisesRegex(ValueError, 'a batch for each of 3 points'):
      landscape.effective_step(
        quadratic,
        np.zeros((3, 2)),
        np.zeros(2),
        np.zeros(2),
        KEY,
        learning_rate=1.0,
      )


if __name__ == '__main__':
  absltest.main()

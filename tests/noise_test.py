"""Moments of stochastic gradients, where they are known in closed form."""

import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.science import noise

KEY = jax.random.key(0)


def to_tree(x):
  return {'a': x[..., :2], 'b': x[..., 2:].reshape((*x.shape[:-1], -1, 1))}


def squares(params, batch, key):
  """mean_j |x - e_j|^2 / 2 over a batch of targets [batch, d]: x - mean e."""
  del key
  x = jnp.concatenate([params['a'], params['b'].ravel()])
  return to_tree(x - batch.mean(axis=0))


def envelope(params, batch, key):
  """c w - b w - h, of Zhang et al. 2016, with (b, h) for a batch."""
  del key
  return 2.0 * params - batch[0] * params - batch[1]


class GradientNoiseTest(parameterized.TestCase):
  @parameterized.parameters((2, 1), (5, 1), (40, 3))
  def test_squares_have_the_variance_of_their_targets(self, size, batch_size):
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(size, batch_size, 4)).astype(np.float32)
    x = np.arange(4, dtype=np.float32)
    means = targets.astype(np.float64).mean(axis=1)
    for exhaustive in (False, True):
      got = noise.gradient_noise(
        squares, to_tree(x), targets, KEY, exhaustive=exhaustive
      )
      variance = means.var(axis=0, ddof=0 if exhaustive else 1).sum()
      second = np.square(x - means).sum(axis=1)
      self.assertAlmostEqual(got.variance, variance, places=5)
      self.assertAlmostEqual(got.second_moment, second.mean(), places=5)
      self.assertAlmostEqual(got.largest, second.max(), places=4)
      self.assertAlmostEqual(
        got.square_gradient, second.mean() - variance, places=4
      )

  def test_is_exhaustive_or_without_bias(self):
    # Over all pairs that may be drawn from three targets, the mean of the
    # estimates of sigma^2 and of |grad f|^2 equals these moments.
    targets = np.array([0.0, 1.0, 5.0], np.float32)
    x = np.float32(3)

    def gradient(x, batch, key):
      return x - batch

    every = noise.gradient_noise(gradient, x, targets, KEY, exhaustive=True)
    np.testing.assert_allclose(
      every[:3], [np.var(targets), np.mean((3 - targets) ** 2), 1.0], rtol=1e-6
    )
    pairs = [
      noise.gradient_noise(gradient, x, np.array(pair), KEY)
      for pair in itertools.product(targets, repeat=2)
    ]
    np.testing.assert_allclose(np.mean(pairs, axis=0)[:3], every[:3], rtol=1e-6)

  def test_does_not_cancel_under_a_large_gradient(self):
    shifts = np.arange(8, dtype=np.float32) / 256

    def gradient(x, batch, key):
      return x + batch

    got = noise.gradient_noise(
      gradient, np.float32(4096), shifts, KEY, exhaustive=True
    )
    np.testing.assert_allclose(got.variance, np.var(shifts), rtol=1e-6)

  def test_every_gradient_draws_for_itself(self):
    def gradient(x, batch, key):
      return x + jax.random.normal(key, x.shape)

    size, dim = 400, 50
    got = noise.gradient_noise(
      gradient, np.zeros(dim, np.float32), np.zeros(size), KEY
    )
    # Chi-square of 20000 numbers: 1 % of standard deviation.
    self.assertAlmostEqual(got.variance / dim, 1, delta=0.04)
    again = noise.gradient_noise(
      gradient, np.zeros(dim, np.float32), np.zeros(size), KEY
    )
    self.assertEqual(got, again)

  def test_needs_two_batches(self):
    with self.assertRaisesRegex(ValueError, r'expects batches \[K, ...\]'):
      noise.gradient_noise(squares, to_tree(np.zeros(4)), np.ones((1, 2)), KEY)

  def test_is_compiled_once(self):
    traces = []

    def gradient(x, batch, key):
      traces.append(x)
      return x * batch

    for point in np.ones((3, 2), np.float32):
      noise.gradient_noise(gradient, point, np.ones(5, np.float32), KEY)
    self.assertLen(traces, 1)


class SecondMomentBoundTest(absltest.TestCase):
  def test_is_the_mean_over_batches_at_the_worst_point(self):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(6, 4)).astype(np.float32)
    targets = rng.normal(size=(5, 2, 4)).astype(np.float32)
    gradients = points[:, None] - targets.mean(axis=1)
    want = np.square(gradients).sum(axis=2).mean(axis=1).max()
    got = noise.second_moment_bound(squares, to_tree(points), targets, KEY)
    np.testing.assert_allclose(got, want, rtol=1e-5)


class VarianceEnvelopeTest(parameterized.TestCase):
  @parameterized.parameters((10.0, 1.0), (0.0, 0.5), (3.0, 0.0))
  def test_is_that_of_the_model(self, beta_squared, sigma_squared):
    # b = +-beta and h = +-sigma, all four equally likely, are all there is.
    beta, sigma = np.sqrt(beta_squared), np.sqrt(sigma_squared)
    draws = np.array(
      list(itertools.product((-beta, beta), (-sigma, sigma))), np.float32
    )
    points = np.linspace(-2, 3, 7, dtype=np.float32)
    variances = [
      noise.gradient_noise(envelope, w, draws, KEY, exhaustive=True).variance
      for w in points
    ]
    got = noise.variance_envelope(points**2, variances)
    np.testing.assert_allclose(
      got, (beta_squared, sigma_squared), rtol=1e-4, atol=1e-5
    )

  def test_is_least_squares(self):
    rng = np.random.default_rng(2)
    distance = rng.uniform(0, 100, size=30)
    variance = 2 * distance + 7 + rng.normal(size=30)
    slope, intercept = np.polyfit(distance, variance, 1)
    got = noise.variance_envelope(distance, variance)
    np.testing.assert_allclose(got, (slope, intercept), rtol=1e-9)

  def test_neither_is_negative(self):
    falling = noise.variance_envelope([0, 1, 2], [3, 2, 1])
    np.testing.assert_allclose(falling, (0, 2), atol=1e-12)
    # Through the origin: sum d v / sum d^2.
    steep = noise.variance_envelope([1, 2], [0, 5])
    np.testing.assert_allclose(steep, (2, 0), atol=1e-12)

  @parameterized.parameters(
    ([1, 1], [2, 3]), ([1, 2], [1, np.nan]), ([1, 2], [1, 2, 3]), ([], [])
  )
  def test_refuses(self, distances, variances):
    with self.assertRaisesRegex(ValueError, 'expects a finite variance for'):
      noise.variance_envelope(distances, variances)


if __name__ == '__main__':
  absltest.main()

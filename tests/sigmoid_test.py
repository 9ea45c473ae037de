"""Tests of `experiments/papers/sigmoid.py`."""

from absl.testing import absltest
import jax
import numpy as np

from experiments.papers import sigmoid

PROBLEM = sigmoid.make_problem(num_examples=32, dimension=3)
POINTS = np.random.default_rng(1).normal(size=(6, 3))


def stochastic_gradients(x, num_keys=4000):
  """Of as many draws."""
  loss_fn = sigmoid.sampled_loss(PROBLEM)
  keys = jax.random.split(jax.random.key(0), num_keys)
  x = np.float32(x)
  return jax.vmap(lambda key: jax.grad(loss_fn)(x, 0, 0, key))(keys)


class ProblemTest(absltest.TestCase):
  def test_gradient_is_that_of_the_loss(self):
    shifts = 1e-6 * np.eye(3)
    for x in POINTS:
      rise = sigmoid.loss(PROBLEM, x + shifts)
      fall = sigmoid.loss(PROBLEM, x - shifts)
      np.testing.assert_allclose(
        sigmoid.gradient(PROBLEM, x), (rise - fall) / 2e-6, atol=1e-9
      )

  def test_moments_are_those_of_the_draws(self):
    x = POINTS[0]
    drawn = np.asarray(stochastic_gradients(x), np.float64)
    # Of 4000 draws: 6 % is about four standard errors.
    self.assertLess(
      np.abs(drawn.mean(axis=0) - sigmoid.gradient(PROBLEM, x)).max(), 5e-3
    )
    np.testing.assert_allclose(
      np.square(drawn).sum(axis=1).mean(),
      sigmoid.second_moment(PROBLEM, x),
      rtol=0.06,
    )
    np.testing.assert_allclose(
      drawn.var(axis=0).sum(), sigmoid.variance(PROBLEM, x), rtol=0.06
    )

  def test_gradient_is_lipschitz_with_the_smoothness_and_not_much_less(self):
    ratios = []
    for x in 3 * POINTS:
      for y in x + 1e-4 * np.eye(3):
        change = sigmoid.gradient(PROBLEM, x) - sigmoid.gradient(PROBLEM, y)
        ratios.append(np.linalg.norm(change) / 1e-4)
    self.assertLess(max(ratios), PROBLEM.smoothness)
    self.assertGreater(max(ratios), PROBLEM.smoothness / 5)

  def test_minimum_is_one_and_the_loss_is_not_convex(self):
    slope = sigmoid.gradient(PROBLEM, PROBLEM.minimizer)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    losses = sigmoid.loss(PROBLEM, 3 * POINTS)
    self.assertGreater(losses.min(), PROBLEM.minimum)
    # A bounded loss that is not constant is not convex: above its chord.
    far, near = -40 * PROBLEM.minimizer, PROBLEM.minimizer
    middle = sigmoid.loss(PROBLEM, (far + near) / 2)
    chord = (sigmoid.loss(PROBLEM, far) + sigmoid.loss(PROBLEM, near)) / 2
    self.assertGreater(middle, chord)

  def test_shards_are_the_replicas_own_examples(self):
    own = sigmoid.own_loss(PROBLEM, 4)
    x = POINTS[1]
    losses = [
      float(own(np.float32(x), 0, i, jax.random.key(0))) for i in range(4)
    ]
    np.testing.assert_allclose(
      losses,
      [sigmoid.loss(sigmoid.shard(PROBLEM, i, 4), x) for i in range(4)],
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      np.mean(losses), sigmoid.loss(PROBLEM, x), rtol=1e-5
    )

  def test_replicas_draw_from_their_own_shards(self):
    own = sigmoid.own_sampled_loss(PROBLEM, 4)
    x = np.float32(POINTS[1])
    keys = jax.random.split(jax.random.key(0), 400)
    for i in range(4):
      drawn = jax.vmap(lambda key, i=i: own(x, 0, i, key))(keys)
      shard = sigmoid.shard(PROBLEM, i, 4)
      each = [
        sigmoid.loss(
          shard._replace(features=shard.features[k : k + 1],
                         labels=shard.labels[k : k + 1]), x)
        for k in range(len(shard.labels))
      ]  # fmt: skip
      found = np.array(drawn)[:, None]
      apart = np.abs(found - np.array(each))
      np.testing.assert_allclose(apart.min(axis=1), 0, atol=1e-5)
      np.testing.assert_allclose(apart.min(axis=0), 0, atol=1e-5)

  def test_moments_of_the_shards(self):
    points = np.stack([POINTS[i % len(POINTS)] for i in range(4)])
    variance, second = sigmoid.own_moments(PROBLEM, 4)(np.float32(points))
    for i in range(4):
      shard = sigmoid.shard(PROBLEM, i, 4)
      np.testing.assert_allclose(
        [variance[i], second[i]],
        [
          sigmoid.variance(shard, points[i]),
          sigmoid.second_moment(shard, points[i]),
        ],
        rtol=1e-4,
      )

  def test_names_what_is_wrong(self):
    odd = sigmoid.make_problem(num_examples=24, dimension=2)
    with self.assertRaisesRegex(ValueError, 'must be a power of two, got 24'):
      sigmoid.sampled_loss(odd)
    with self.assertRaisesRegex(ValueError, 'got 24 for 4 replicas'):
      sigmoid.own_sampled_loss(odd, 4)


if __name__ == '__main__':
  absltest.main()

"""The papers' bounds: by hand, valid where they must be, broken elsewhere."""

from absl.testing import absltest, parameterized
import numpy as np

from prsgd_jax.science import theory
from tests import reference

CONSTANTS = {
  'num_replicas': 4,
  'num_steps': 1000,
  'period': 5,
  'learning_rate': 0.01,
  'smoothness': 2.0,
  'initial_gap': 3.0,
  'variance': 1.5,
  'second_moment': 7.0,
}
HIERARCHY = {
  'num_replicas': 16,
  'num_rounds': 20,
  'learning_rate': 0.01,
  'smoothness': 2.0,
  'initial_gap': 3.0,
  'variance': 1.5,
  'batch_size': 8,
  'delta': 0.3,
}


def one_dimensional(curvatures, targets, start, num_steps, noise=None):
  """f_i = h_i (x - e_i)^2 / 2, and the constants of the bounds."""
  n = len(curvatures)
  hessian = np.array(curvatures, np.float64).reshape(n, 1, 1)
  return reference.Problem(
    hessian=hessian,
    target=np.array(targets, np.float64).reshape(n, 1),
    features=np.zeros((n, 1, 1)),
    noise=np.zeros((num_steps, n, 1)) if noise is None else noise,
    start=np.array([start], np.float64),
  )


def run(problem, **keywords):
  """x_i^t of PR-SGD, [T + 1, N], and grad f(xbar^t), [T + 1]."""
  x = reference.pr_sgd(problem, **keywords)[..., 0]
  h, e = problem.hessian[:, 0, 0], problem.target[:, 0]
  return x, np.mean(h * (x.mean(axis=1)[:, None] - e), axis=1)


class PrSgdBoundTest(parameterized.TestCase):
  def test_terms(self):
    got = theory.pr_sgd_bound(**CONSTANTS)
    # 2 * 3 / (.01 * 1000), 2 * .01 * 1.5 / 4, 4 * 1e-4 * 25 * 7 * 4.
    np.testing.assert_allclose(got, (0.6, 0.0075, 0.28), rtol=1e-12)
    drift = theory.drift_bound(learning_rate=0.01, period=5, second_moment=7)
    np.testing.assert_allclose(drift, 0.07)

  def test_units(self):
    # f -> c f, x -> d x: the gradient's square, and so each term, by (c / d)^2.
    c, d = 3.0, 0.5
    scaled = dict(
      CONSTANTS,
      learning_rate=0.01 * d**2 / c,
      smoothness=2.0 * c / d**2,
      initial_gap=3.0 * c,
      variance=1.5 * (c / d) ** 2,
      second_moment=7.0 * (c / d) ** 2,
    )
    np.testing.assert_allclose(
      theory.pr_sgd_bound(**scaled),
      (c / d) ** 2 * np.array(theory.pr_sgd_bound(**CONSTANTS)),
    )

  # Each case is one in which a single term of the bound is at work; without it
  # the theorem is broken.
  def test_the_start_is_needed(self):
    problem = one_dimensional([1, 1], [0, 0], 1.0, 100)
    _, gradient = run(problem, period=1, learning_rate=0.01)
    left = np.mean(gradient[:-1] ** 2)
    bound = theory.pr_sgd_bound(
      num_replicas=2,
      num_steps=100,
      period=1,
      learning_rate=0.01,
      smoothness=1,
      initial_gap=0.5,
      variance=0,
      second_moment=1,
    )
    self.assertLessEqual(left, sum(bound))
    self.assertGreater(left, sum(bound._replace(start=0)))

  def test_the_noise_is_needed(self):
    # From the optimum, I = 1: noise +-1, one sequence of 4000 steps.
    rng = np.random.default_rng(0)
    noise = rng.choice([-1.0, 1.0], size=(4000, 2, 1))
    problem = one_dimensional([1, 1], [0, 0], 0.0, 4000, noise)
    x, gradient = run(problem, period=1, learning_rate=0.05)
    g = x[:-1] + noise[..., 0]
    bound = theory.pr_sgd_bound(
      num_replicas=2,
      num_steps=4000,
      period=1,
      learning_rate=0.05,
      smoothness=1,
      initial_gap=0,
      variance=1,
      second_moment=np.mean(g**2, axis=0).max(),
    )
    left = np.mean(gradient[:-1] ** 2)
    self.assertLessEqual(left, sum(bound))
    self.assertGreater(left, sum(bound._replace(noise=0)))

  def test_the_drift_is_needed(self):
    # Curvatures 1 and 3 pull to -1 and 1: averaged rarely, xbar settles off the
    # optimum of their sum, without any noise.
    num_steps = 20000
    problem = one_dimensional([1, 3], [-1, 1], 0.5, num_steps)
    x, gradient = run(problem, period=10, learning_rate=0.02)
    own = problem.hessian[:, 0, 0] * (x[:-1] - problem.target[:, 0])
    bound = theory.pr_sgd_bound(
      num_replicas=2,
      num_steps=num_steps,
      period=10,
      learning_rate=0.02,
      smoothness=3,
      initial_gap=0,
      variance=0,
      second_moment=np.square(own).max(),
    )
    left = np.mean(gradient[:-1] ** 2)
    self.assertLessEqual(left, sum(bound))
    self.assertGreater(left, 1e-3)
    self.assertGreater(left, sum(bound._replace(drift=0)))

  @parameterized.product(period=(1, 3, 8), learning_rate=(0.01, 0.05))
  def test_drift_lemma(self, period, learning_rate):
    problem = reference.make_problem(num_steps=48)
    x = reference.pr_sgd(problem, period=period, learning_rate=learning_rate)
    g = [
      problem.gradient(i, x[t - 1, i], t)
      for t in range(1, 49)
      for i in range(problem.num_replicas)
    ]
    # For one run, |G_i| <= G at every step is the lemma's condition.
    bound = theory.drift_bound(
      learning_rate=learning_rate,
      period=period,
      second_moment=np.square(g).sum(axis=1).max(),
    )
    drift = np.square(x - x.mean(axis=1, keepdims=True)).sum(axis=2).max()
    self.assertLessEqual(drift, bound)
    # Nor is it empty: replicas pulled apart get within its constant 4.
    self.assertGreater(drift, bound / 100)

  @parameterized.parameters(
    ({'learning_rate': 0.51}, r'in \(0, 1 / smoothness\] = \(0, 0.5\], got'),
    ({'learning_rate': 0}, 'learning_rate must be in'),
    ({'num_steps': 0}, 'num_steps must be an integer >= 1, got 0'),
    ({'period': 2.5}, 'period must be an integer >= 1, got 2.5'),
    ({'num_replicas': 0}, 'num_replicas must be an integer >= 1'),
    ({'smoothness': 0}, 'smoothness must be > 0, got 0'),
    ({'initial_gap': -1}, 'initial_gap must be >= 0, got -1'),
    ({'variance': float('nan')}, 'variance must be >= 0, got nan'),
    ({'second_moment': None}, 'second_moment must be >= 0'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(ValueError, message):
      theory.pr_sgd_bound(**{**CONSTANTS, **changed})


class CorollaryTest(parameterized.TestCase):
  @parameterized.parameters((1, 16, 0.5), (4, 10_000, 2.0), (8, 60_000, 1.0))
  def test_gives_the_rate(self, n, num_steps, smoothness):
    chosen = theory.pr_sgd_corollary(
      num_replicas=n, num_steps=num_steps, smoothness=smoothness
    )
    # The period need not be whole in the bound: by hand.
    gamma, period = chosen.learning_rate, chosen.period
    f, g, sigma = 3.0, 7.0, 1.5
    bound = (
      2 * f / (gamma * num_steps)
      + 4 * gamma**2 * period**2 * g * smoothness**2
      + smoothness * gamma * sigma / n
    )
    rate = (2 * smoothness * f + 4 * g + sigma) / np.sqrt(n * num_steps)
    self.assertAlmostEqual(bound, rate)
    self.assertLessEqual(gamma, 1 / smoothness)
    self.assertAlmostEqual(chosen.rounds, num_steps / period)

  def test_at_whole_periods_it_is_the_theorem(self):
    chosen = theory.pr_sgd_corollary(
      num_replicas=16, num_steps=16**3 * 3**4, smoothness=2.0
    )
    self.assertAlmostEqual(chosen.period, 3)
    total = sum(
      theory.pr_sgd_bound(
        **dict(
          CONSTANTS,
          num_replicas=16,
          num_steps=16**3 * 3**4,
          period=3,
          learning_rate=chosen.learning_rate,
        )
      )
    )
    self.assertAlmostEqual(total, (12 + 28 + 1.5) / np.sqrt(16**4 * 3**4))

  def test_the_papers_own_run_is_allowed_little(self):
    # N = 8 and about 5.9e4 steps.
    chosen = theory.pr_sgd_corollary(
      num_replicas=8, num_steps=59_000, smoothness=1
    )
    self.assertAlmostEqual(chosen.period, 3.28, places=2)

  def test_needs_enough_steps(self):
    with self.assertRaisesRegex(ValueError, r'>= num_replicas\^3 = 512, .*511'):
      theory.pr_sgd_corollary(num_replicas=8, num_steps=511, smoothness=1)
    chosen = theory.pr_sgd_corollary(
      num_replicas=8, num_steps=512, smoothness=1
    )
    self.assertEqual(chosen.period, 1)


class HierarchyBoundsTest(parameterized.TestCase):
  def test_k_avg_by_hand(self):
    got = theory.k_avg_bound(period=4, **HIERARCHY)
    # K - 1 + d = 3.3; L K gamma M / (B 3.3) = 2 * 4 * .01 * 1.5 / 26.4.
    scale = 0.12 / 26.4
    want = (6 / (20 * 3.3 * 0.01), scale * 4 / 16, scale * 2 * 7 * 3 * 0.01 / 6)
    np.testing.assert_allclose(got, want)

  def test_hier_avg_by_hand(self):
    got = theory.hier_avg_bound(
      local_period=2, global_period=8, group_size=4, **HIERARCHY
    )
    # K2 - 1 + d = 7.3; (6 * 31 / 4 + 1 * 24) = 70.5.
    want = (
      6 / (20 * 7.3 * 0.01),
      2 * 0.01 * 1.5 * 64 / (16 * 8 * 7.3),
      4 * 1e-4 * 1.5 * 8 / (12 * 8 * 7.3) * 70.5,
    )
    np.testing.assert_allclose(got, want)

  @parameterized.parameters((1, 8, 1), (2, 8, 1), (8, 8, 4), (8, 8, 16))
  def test_hier_avg_reduces_to_k_avg(self, local, period, group_size):
    got = theory.hier_avg_bound(
      local_period=local,
      global_period=period,
      group_size=group_size,
      **HIERARCHY,
    )
    np.testing.assert_allclose(
      got, theory.k_avg_bound(period=period, **HIERARCHY)
    )

  def test_drift_rises_with_the_local_period_and_falls_with_the_group(self):
    def drift(k1, size):
      return theory.hier_avg_bound(
        local_period=k1, global_period=16, group_size=size, **HIERARCHY
      ).drift

    by_period = [drift(k1, 4) for k1 in (1, 2, 4, 8, 16)]
    self.assertEqual(by_period, sorted(set(by_period)))
    by_size = [drift(4, size) for size in (16, 8, 4, 2, 1)]
    self.assertEqual(by_size, sorted(set(by_size)))

  @parameterized.parameters(
    ({'local_period': 3}, 'local_period must divide global_period 8, got 3'),
    ({'group_size': 3}, 'group_size must divide the 16 replicas, got 3'),
    ({'delta': 1}, r'delta must be in \(0, 1\), got 1'),
    ({'batch_size': 0}, 'batch_size must be an integer >= 1'),
  )
  def test_hier_avg_refuses(self, changed, message):
    keywords = {'local_period': 2, 'global_period': 8, 'group_size': 4}
    with self.assertRaisesRegex(ValueError, message):
      theory.hier_avg_bound(**{**HIERARCHY, **keywords, **changed})

  # By hand: x = L gamma <= 1/2 for K = 2, x^2 <= 1 - d = 0.7 for K = 1, and
  # the root of 5 x^2 + 4 x = 1, 1/5, for K = 4.
  @parameterized.parameters((1, 0.7**0.5), (2, 0.5), (4, 0.2))
  def test_gamma_must_be_small_enough(self, period, most):
    def bound(x):
      fields = {**HIERARCHY, 'learning_rate': x / HIERARCHY['smoothness']}
      hierarchy = {'global_period': period, 'local_period': 1, 'group_size': 4}
      theory.k_avg_bound(period=period, **fields)
      theory.hier_avg_bound(**hierarchy, **fields)

    bound(most)
    with self.assertRaisesRegex(
      ValueError,
      rf'learning_rate must be in \(0, {most / 2:g}\], where the bound holds '
      rf'for a period of {period}, smoothness 2 and delta 0.3, got',
    ):
      bound(1.001 * most)

  def test_without_the_condition_it_is_no_bound(self):
    # Gradient descent on x^2 / 2 with gamma = 1.9, K = 2, from 1. After
    # rounds of two steps x = 0.81^r, so the mean square of the first is 1.
    first, gap, gamma, delta = 1.0, 0.5, 1.9, 0.5
    start = 2 * gap / (1 * (2 - 1 + delta) * gamma)
    self.assertAlmostEqual(start, 0.351, places=3)
    self.assertGreater(first, start)
    with self.assertRaisesRegex(ValueError, r'in \(0, 0.5\], .*got 1.9'):
      theory.k_avg_bound(
        num_replicas=1,
        num_rounds=1,
        period=2,
        learning_rate=gamma,
        smoothness=1,
        initial_gap=gap,
        variance=0,
      )

  def test_k_avg_refuses(self):
    with self.assertRaisesRegex(ValueError, r'delta must be in \(0, 1\)'):
      theory.k_avg_bound(**{**HIERARCHY, 'period': 4, 'delta': 0})


if __name__ == '__main__':
  absltest.main()

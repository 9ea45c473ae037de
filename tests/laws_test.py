"""Exact laws, against the oracles, recursions of moments, and simulation.

With zero gradients a trajectory is linear in its noise. Noise that is a unit
vector of its own for every replica and step makes squared norms what
expectations are for independent noise of unit variance: no sample is drawn.
"""

import math

from absl.testing import absltest, parameterized
import networkx as nx
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing.matrices import of_size
from prsgd_jax.mixing.mixings import sparse
from prsgd_jax.science import laws
from tests import reference


def noise_alone(n, num_steps):
  """f_i = 0; every replica and step has a dimension of its own."""
  dim = n * num_steps
  return reference.Problem(
    hessian=np.zeros((n, dim, dim)),
    target=np.zeros((n, dim)),
    features=np.zeros((n, 1, dim)),
    noise=np.eye(dim).reshape(num_steps, n, dim),
    start=np.zeros(dim),
  )


def drifts(trajectory):
  """[T + 1], (1/N) sum_i |x_i - xbar|^2 of x_i^t."""
  return np.array([reference.consensus_distance(x) for x in trajectory])


def before_averages(problem, trajectory):
  """Order C, learning rate 1: the last local step, not yet averaged, [T]."""
  return drifts(trajectory[:-1] - problem.noise)


class HierAvgDriftTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 8, 2), (2, 8, 2), (4, 8, 4), (8, 8, 2), (2, 4, 1)
  )
  def test_is_the_oracles(self, local_period, global_period, group_size):
    problem = noise_alone(4, 16)
    periods = {
      'local_period': local_period,
      'global_period': global_period,
      'group_size': group_size,
    }
    x = reference.hier_avg(problem, learning_rate=1.0, **periods)
    got = laws.hier_avg_drift(np.arange(16), num_replicas=4, **periods)
    np.testing.assert_allclose(got, before_averages(problem, x))

  def test_rises_with_the_local_period_and_falls_with_the_group(self):
    def drift(k1, size):
      return laws.hier_avg_drift(
        np.arange(16),
        num_replicas=8,
        local_period=k1,
        global_period=16,
        group_size=size,
      ).mean()

    by_period = [drift(k1, 4) for k1 in (1, 2, 4, 8, 16)]
    self.assertEqual(by_period, sorted(set(by_period)))
    by_size = [drift(4, size) for size in (8, 4, 2, 1)]
    self.assertEqual(by_size, sorted(set(by_size)))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'must divide the 8 replicas'):
      laws.hier_avg_drift(
        0, num_replicas=8, local_period=1, global_period=2, group_size=3
      )


class MeanDriftTest(parameterized.TestCase):
  @parameterized.product(period=(1, 2, 5), n=(1, 3))
  def test_is_the_oracles(self, period, n):
    problem = noise_alone(n, 4 * period)
    got = laws.mean_drift(period, n)
    k_avg = reference.k_avg(problem, period=period, learning_rate=1.0)
    at_ends = drifts(k_avg[1:]).mean()
    due = before_averages(problem, k_avg).mean()
    np.testing.assert_allclose(got, (due, at_ends), atol=1e-14)
    pr_sgd = reference.pr_sgd(problem, period=period, learning_rate=1.0)
    # From the first average on: its interval ends at t = 2 I - 1.
    at_ends = drifts(pr_sgd[period : 4 * period]).mean()
    np.testing.assert_allclose(got.mix_then_step, at_ends, atol=1e-14)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'period must be an integer >= 1'):
      laws.mean_drift(0, 4)


class ConsensusVarianceTest(parameterized.TestCase):
  @parameterized.parameters(
    (pr.graphs.ring, 16, 2.410, 1.472),
    (pr.graphs.random_matching, 16, 1.758, 0.820),
    (pr.mixing.mean, 16, 0.9375, 0),
  )
  def test_sixteen_replicas(self, mixing, n, order_a, order_c):
    # Computed once and for all from the eigenvalues.
    got = laws.consensus_variance(mixing(), n)
    np.testing.assert_allclose(got, (order_a, order_c), atol=6e-4)

  @parameterized.product(n=(2, 3, 8, 17), self_weight=(1 / 3, 0.5, 0.1))
  def test_symmetric(self, n, self_weight):
    k = np.arange(1, n)
    square = (self_weight + (1 - self_weight) * np.cos(2 * np.pi * k / n)) ** 2
    want = (np.sum(1 / (1 - square)) / n, np.sum(square / (1 - square)) / n)
    got = laws.consensus_variance(pr.graphs.ring(self_weight), n)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)

  @parameterized.parameters(4, 8)
  def test_matrices_to_which_all_are_alike(self, n):
    # E[W'W] = I/2 + (11' - I) / (2 (n - 1)).
    square = 1 / 2 - 1 / (2 * (n - 1))
    want = ((n - 1) / n / (1 - square), (n - 1) / n * square / (1 - square))
    for mixing in (pr.graphs.random_matching(), pr.graphs.random_neighbor()):
      got = laws.consensus_variance(mixing, n)
      np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)

  def test_random_matrices_to_which_they_are_not(self):
    # Pairs along a path of four: the formula with E[W'W] does not hold, and a
    # long simulation of both orders decides.
    mixing = pr.graphs.random_matching(nx.path_graph(4))
    choices = mixing.matrices(4)
    got = laws.consensus_variance(mixing, 4)
    rng = np.random.default_rng(0)
    x = np.zeros((4, 2000))
    seen = []
    for _ in range(1000):
      x = choices[rng.integers(len(choices))] @ x + rng.normal(size=x.shape)
      seen.append(x.var(axis=0).mean())
    np.testing.assert_allclose(
      got.mix_then_step, np.mean(seen[200:]), rtol=0.02
    )
    roots = np.linalg.eigvalsh(
      (choices.swapaxes(1, 2) @ choices).mean(axis=0) - 1 / 4
    )[1:]
    naive = np.sum(1 / (1 - roots)) / 4
    self.assertGreater(abs(naive / got.mix_then_step - 1), 0.03)

  def test_is_the_oracles(self):
    # Not symmetric; noise older than 50 steps is gone.
    weights = reference.random_doubly_stochastic(5)
    problem = noise_alone(5, 50)
    got = laws.consensus_variance(pr.mixing.dense(weights), 5)
    order_a = reference.d_psgd(problem, weights=weights, learning_rate=1.0)
    order_c = reference.adapt_then_combine(
      problem, weights=weights, learning_rate=1.0
    )
    want = (drifts(order_a)[-1], drifts(order_c)[-1])
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_matrices_that_take_turns(self):
    # N = 8: after three rounds, all of the noise is averaged.
    mixing = pr.graphs.one_peer_exponential()
    matrices = mixing.matrices(8)
    problem = noise_alone(8, 12)
    x, record = np.zeros((8, 96)), []
    for t in range(12):
      x = matrices[t % 3] @ x + problem.noise[t]
      record.append(reference.consensus_distance(x))
    got = laws.consensus_variance(mixing, 8)
    np.testing.assert_allclose(got.mix_then_step, np.mean(record[-3:]))
    np.testing.assert_allclose(got.mix_then_step - 7 / 8, got.step_then_mix)

  def test_turns_of_any_matrices(self):
    # Neither symmetric nor alike: where the cycle begins matters.
    cycle = np.stack(
      [
        reference.random_doubly_stochastic(4, seed=1),
        np.kron(np.eye(2), np.full((2, 2), 0.5)),
        reference.ring_weights(4),
      ]
    )
    problem = noise_alone(4, 60)
    got = laws.consensus_variance(sparse(of_size(cycle)), 4)
    weights = np.tile(cycle, (20, 1, 1))
    for run, want in zip((reference.d_psgd, reference.adapt_then_combine), got):
      x = run(problem, weights=weights, learning_rate=1.0)
      np.testing.assert_allclose(drifts(x)[-3:].mean(), want, rtol=1e-9)

  def test_one_replica(self):
    self.assertEqual(laws.consensus_variance(pr.mixing.mean(), 1), (0, 0))

  @parameterized.parameters(
    (pr.graphs.ring(0.0), 4, 'never does'),  # -1 is an eigenvalue
    (pr.mixing.group_mean(2), 4, 'never does'),
    (pr.mixing.dense(np.eye(3)), 3, 'never does'),
    (pr.mixing.dense(np.roll(np.eye(3), 1, axis=0)), 3, 'never does'),
    (
      pr.mixing.dense(np.array([[0.5, 0.2], [0.5, 0.8]])),
      2,
      'a doubly stochastic',
    ),
    (pr.mixing.weighted_mean([1, 2]), 2, 'a doubly stochastic'),
  )
  def test_refuses(self, mixing, n, message):
    with self.assertRaisesRegex(ValueError, message):
      laws.consensus_variance(mixing, n)


QUADRATIC = {
  'num_replicas': 8,
  'learning_rate': 0.1,
  'curvature': 1.0,
  'beta_squared': 10.0,
  'sigma_squared': 1.0,
}


class AveragedQuadraticVarianceTest(parameterized.TestCase):
  @parameterized.product(
    zeta=(0, 0.01, 0.05, 0.2, 1),
    constants=({}, {'num_replicas': 1}, {'curvature': 3, 'beta_squared': 2}),
  )
  def test_is_where_the_moments_settle(self, zeta, constants):
    # m = E wbar^2 and v = E w_i^2, step by step.
    constants = {**QUADRATIC, **constants}
    n, alpha, c = (
      constants[k] for k in ('num_replicas', 'learning_rate', 'curvature')
    )
    m = v = 1.0
    for _ in range(5000):
      fresh = alpha**2 * (
        constants['beta_squared'] * v + constants['sigma_squared']
      )
      m = (1 - alpha * c) ** 2 * m + fresh / n
      v = (1 - alpha * c) ** 2 * v + fresh
      v = (1 - zeta) * v + zeta * m
    got = laws.averaged_quadratic_variance(probability=zeta, **constants)
    np.testing.assert_allclose(got, m, rtol=1e-9)

  def test_simulation(self):
    rng = np.random.default_rng(0)
    w, seen = np.zeros((4000, 8)), []
    for t in range(400):
      b = np.sqrt(10) * rng.choice([-1.0, 1.0], size=w.shape)
      h = rng.choice([-1.0, 1.0], size=w.shape)
      w = w - 0.1 * (w - b * w - h)
      together = rng.random(4000) < 0.2
      w[together] = w[together].mean(axis=1, keepdims=True)
      if t >= 100:
        seen.append(np.square(w.mean(axis=1)).mean())
    got = laws.averaged_quadratic_variance(probability=0.2, **QUADRATIC)
    # 4000 runs of some thirty correlation times: below 1 %.
    np.testing.assert_allclose(np.mean(seen), got, rtol=0.02)

  @parameterized.parameters(
    (0, 0.01389), (0.01, 0.01324), (0.05, 0.01147), (0.2, 0.00895), (1, 0.00704)
  )
  def test_known(self, zeta, value):
    got = laws.averaged_quadratic_variance(probability=zeta, **QUADRATIC)
    self.assertAlmostEqual(got, value, places=5)

  def test_additive_noise_does_not_care(self):
    constants = {**QUADRATIC, 'beta_squared': 0}
    values = [
      laws.averaged_quadratic_variance(probability=zeta, **constants)
      for zeta in (0, 0.1, 1)
    ]
    np.testing.assert_allclose(values, values[0])
    # alpha sigma^2 / (M c (2 - alpha c)).
    self.assertAlmostEqual(values[0], 0.1 / 8 / 1.9)

  def test_diverges(self):
    def limit(**changed):
      return laws.averaged_quadratic_variance(**{**QUADRATIC, **changed})

    # 1.9 - 0.1 beta^2: averaging is what keeps it together.
    self.assertEqual(limit(probability=0, beta_squared=19.5), math.inf)
    self.assertLess(limit(probability=1, beta_squared=19.5), math.inf)
    self.assertEqual(limit(probability=1, learning_rate=2), math.inf)
    self.assertEqual(limit(probability=0, learning_rate=2.5), math.inf)

  @parameterized.parameters(
    ({'probability': 1.5}, r'probability must be in \[0, 1\], got 1.5'),
    ({'curvature': 0}, 'curvature must be > 0, got 0'),
    ({'beta_squared': -1}, 'beta_squared must be >= 0, got -1'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(ValueError, message):
      laws.averaged_quadratic_variance(
        **{'probability': 0.5, **QUADRATIC, **changed}
      )


class PeriodicQuadraticVarianceTest(parameterized.TestCase):
  @parameterized.product(
    period=(1, 2, 5, 10, 50),
    constants=(
      {}, {'num_replicas': 1}, {'curvature': 3, 'beta_squared': 2},
      {'num_replicas': 2, 'beta_squared': 19.2},
      {'learning_rate': 1.0, 'beta_squared': 0.3},
    ),
  )  # fmt: skip
  def test_is_where_the_moments_settle(self, period, constants):
    # A = E w_i^2 and C = E w_i w_j, step by step.
    constants = {**QUADRATIC, **constants}
    n, alpha, c, beta2, sigma2 = (
      constants[k]
      for k in (
        'num_replicas', 'learning_rate', 'curvature', 'beta_squared',
        'sigma_squared',
      )
    )  # fmt: skip
    A = C = 0.0
    values = []
    for t in range(8000):
      A, C = (
        (1 - alpha * c) ** 2 * A + alpha**2 * (beta2 * A + sigma2),
        (1 - alpha * c) ** 2 * C,
      )
      values.append((A + (n - 1) * C) / n)
      if (t + 1) % period == 0:
        A = C = values[-1]
    got = laws.periodic_quadratic_variance(period=period, **constants)
    last = values[-period:]
    np.testing.assert_allclose(got, (last[-1], np.mean(last)), rtol=1e-9)

  def test_every_step_is_certain(self):
    got = laws.periodic_quadratic_variance(period=1, **QUADRATIC)
    want = laws.averaged_quadratic_variance(probability=1, **QUADRATIC)
    np.testing.assert_allclose(got, (want, want), rtol=1e-14)

  def test_is_not_the_law_of_averages_by_chance(self):
    got = laws.periodic_quadratic_variance(period=20, **QUADRATIC)
    other = laws.averaged_quadratic_variance(probability=0.05, **QUADRATIC)
    self.assertAlmostEqual(other / got.mean, 1.060, places=3)

  @parameterized.parameters(10**6, 10**12)
  def test_ever_rarer_averages_are_none(self, period):
    got = laws.periodic_quadratic_variance(period=period, **QUADRATIC)
    never = laws.averaged_quadratic_variance(probability=0, **QUADRATIC)
    np.testing.assert_allclose(got.mean, never, rtol=1e-4)

  def test_diverges(self):
    def limit(**changed):
      return laws.periodic_quadratic_variance(**{**QUADRATIC, **changed})

    self.assertLess(limit(period=2, beta_squared=19.5).mean, math.inf)
    for changed in (
      {'period': 10**4, 'beta_squared': 19.5},
      {'period': 2**40, 'beta_squared': 19.5},
      {'period': 1, 'learning_rate': 2},
      {'period': 3, 'learning_rate': 2.5},
    ):
      self.assertEqual(limit(**changed), (math.inf, math.inf))

  @parameterized.parameters(
    ({'period': 0}, 'period must be an integer >= 1, got 0'),
    ({'curvature': math.nan}, 'curvature must be > 0, got nan'),
    ({'sigma_squared': math.inf}, 'sigma_squared must be >= 0 and finite'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(ValueError, message):
      laws.periodic_quadratic_variance(**{'period': 5, **QUADRATIC, **changed})


class OneShotQuarticTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 6)
  def test_is_the_mean_over_all_ends(self, m):
    ends = 2 * ((np.arange(2**m)[:, None] >> np.arange(m)) & 1) - 1
    values = (ends.mean(axis=1) ** 2 - 1) ** 2
    self.assertAlmostEqual(laws.one_shot_quartic(m), values.mean())

  def test_of_many_replicas_is_no_better_than_the_start(self):
    self.assertAlmostEqual(laws.one_shot_quartic(24), 0.9217, places=4)


class HeterogeneousFixedPointTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 0.02, 1.5)
  def test_is_where_the_oracle_ends(self, learning_rate):
    targets = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, -3.0]])
    problem = reference.Problem(
      hessian=np.tile(np.eye(2), (3, 1, 1)),
      target=targets,
      features=np.zeros((3, 1, 2)),
      noise=np.zeros((8 * 400, 3, 2)),
      start=np.array([9.0, 9.0]),
    )
    x = reference.pr_sgd_heterogeneous(
      problem, local_steps=(1, 3, 8), learning_rate=learning_rate
    )
    got = laws.heterogeneous_fixed_point(
      targets, (1, 3, 8), learning_rate=learning_rate
    )
    np.testing.assert_allclose(got, x[-1, 0], atol=1e-9)

  @parameterized.parameters((0.2, 2.51075), (0.02, 2.87556), (0.002, 2.91257))
  def test_known(self, learning_rate, value):
    got = laws.heterogeneous_fixed_point(
      [0, 1, 4], [1, 3, 8], learning_rate=learning_rate
    )
    self.assertAlmostEqual(float(got), value, places=5)

  def test_limits(self):
    def point(counts, learning_rate):
      return float(
        laws.heterogeneous_fixed_point(
          [0, 1, 4], counts, learning_rate=learning_rate
        )
      )

    self.assertAlmostEqual(point([5, 5, 5], 0.2), 5 / 3)
    self.assertAlmostEqual(point([1, 3, 8], 1e-7), 35 / 12, places=5)

  @parameterized.parameters(
    ([1, 2], [1], 0.1, 'one number for each of the 2 targets, got 1'),
    ([], [], 0.1, 'one number for each of the 0 targets, got 0'),
    ([1], [0], 0.1, 'local_steps must be an integer >= 1, got 0'),
    ([1], [1], 2, r'learning_rate must be in \(0, 2\), got 2'),
  )
  def test_refuses(self, targets, counts, learning_rate, message):
    with self.assertRaisesRegex(ValueError, message):
      laws.heterogeneous_fixed_point(
        targets, counts, learning_rate=learning_rate
      )


if __name__ == '__main__':
  absltest.main()

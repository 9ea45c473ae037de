"""Exact risks of least squares, against operators on all second moments."""

import itertools

from absl.testing import absltest, parameterized
import numpy as np

from prsgd_jax.science import least_squares

H = np.array([1.0, 0.3])
START = np.array([0.5, -2.0])


def moments(h, second, rate, batch_size, noise_variance):
  """E[e+ e+'] from all of E[e e'], by Isserlis' theorem entry by entry."""
  d = len(h)
  cov = np.diag(h)
  new = np.zeros((d, d))
  for i, j in itertools.product(range(d), repeat=2):
    new[i, j] = second[i, j] - rate * (h[i] + h[j]) * second[i, j]
    for k, m in itertools.product(range(d), repeat=2):
      # E[x_i x_k x_j x_m], for one example, and for two different ones.
      one = cov[i, k] * cov[j, m] + cov[i, j] * cov[k, m]
      one += cov[i, m] * cov[k, j]
      two = cov[i, k] * cov[j, m]
      mixed = one / batch_size + (1 - 1 / batch_size) * two
      new[i, j] += rate**2 * mixed * second[k, m]
  return new + rate**2 * noise_variance * cov / batch_size


def oracle(start, noise_variance, rate, batch_size, n, steps, first):
  """Risks of the mean of the last and of the tail, over all pairs of times."""
  seconds, means = [np.outer(start, start)], [start]
  for _ in range(steps):
    seconds.append(moments(H, seconds[-1], rate, batch_size, noise_variance))
    means.append((1 - rate * H) * means[-1])

  def risk(times):
    total = np.zeros((2, 2))
    for t, u in itertools.product(times, repeat=2):
      early, late = min(t, u), max(t, u)
      decay = np.diag((1 - rate * H) ** (late - early))
      same = decay @ seconds[early]
      same = same if t == late else same.T
      other = np.outer(means[t], means[u])
      total += same / n + other * (n - 1) / n
    return np.trace(np.diag(H) @ total) / len(times) ** 2 / 2

  return risk([steps]), risk(range(first + 1, steps + 1))


class ExcessRisksTest(parameterized.TestCase):
  @parameterized.product(batch_size=(1, 3), n=(1, 4), span=((5, 2), (6, 0)))
  def test_is_what_all_second_moments_give(self, batch_size, n, span):
    steps, first = span
    found = least_squares.excess_risks(
      eigenvalues=H,
      start=START,
      noise_variance=0.7,
      learning_rate=0.2,
      batch_size=batch_size,
      num_replicas=n,
      num_steps=steps,
      start_step=first,
    )
    numbers = (0.2, batch_size, n, steps, first)
    bias = oracle(START, 0.0, *numbers)
    variance = oracle(np.zeros(2), 0.7, *numbers)
    np.testing.assert_allclose([r.bias for r in found], bias)
    np.testing.assert_allclose([r.variance for r in found], variance)

  def test_is_infinite_where_it_diverges(self):
    found = self.of(learning_rate=40.0, num_steps=4000)
    self.assertEqual(found.last, (np.inf, np.inf))

  def of(self, **changed):
    numbers = {
      'eigenvalues': H, 'start': START, 'noise_variance': 1.0,
      'learning_rate': 0.1, 'batch_size': 1, 'num_replicas': 2,
      'num_steps': 9, 'start_step': 3, **changed,
    }  # fmt: skip
    return least_squares.excess_risks(**numbers)

  @parameterized.parameters(
    ({'start': [1.0]}, 'start must be 2 finite numbers'),
    ({'eigenvalues': [1.0, 0.0]}, 'eigenvalues must be a list of finite'),
    ({'start_step': 9}, r'start_step must be in 0 \.\. 8, got 9'),
    ({'batch_size': 0}, 'batch_size must be an integer >= 1'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(ValueError, message):
      self.of(**changed)


class ReplicaMomentsTest(absltest.TestCase):
  def test_is_what_all_second_moments_give(self):
    steps, rate = (1, 4, 2), 0.3
    got = least_squares.replica_moments(
      eigenvalues=H, start=START, noise_variance=0.7, learning_rate=rate,
      batch_size=2, local_steps=steps,
    )  # fmt: skip
    for i, j in itertools.product(range(3), repeat=2):
      if i == j:
        second = np.outer(START, START)
        for _ in range(steps[i]):
          second = moments(H, second, rate, 2, 0.7)
      else:
        one, other = ((1 - rate * H) ** steps[k] * START for k in (i, j))
        second = np.outer(one, other)
      want = np.trace(np.diag(H) @ second) / 2
      np.testing.assert_allclose(got[i, j], want)

  def test_best_weights_are_better_than_any_others(self):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    matrix = a @ a.T + np.eye(4)
    best = least_squares.best_weights(matrix)
    self.assertAlmostEqual(best.sum(), 1)
    for _ in range(20):
      other = best + 0.1 * (step := rng.normal(size=4)) - 0.1 * step.mean()
      self.assertLess(best @ matrix @ best, other @ matrix @ other)


class TailBoundTest(parameterized.TestCase):
  @parameterized.parameters(1, 4, 64)
  def test_is_above_the_exact_risk(self, batch_size):
    rate = least_squares.largest_rate(H, batch_size=batch_size) / 2
    span = {
      'eigenvalues': H, 'noise_variance': 0.5, 'learning_rate': rate,
      'batch_size': batch_size, 'num_steps': 60, 'start_step': 30,
    }  # fmt: skip
    exact = least_squares.excess_risks(start=START, num_replicas=1, **span).tail
    bound = least_squares.tail_bound(start_risk=H @ START**2 / 2, **span)
    self.assertLess(exact.bias, bound.bias)
    self.assertLess(exact.variance, bound.variance)
    self.assertLess(bound.variance, 5 * exact.variance)

  def test_has_a_condition(self):
    with self.assertRaisesRegex(ValueError, 'half of the largest rate'):
      least_squares.tail_bound(
        eigenvalues=H, start_risk=1.0, noise_variance=1.0, learning_rate=0.9,
        batch_size=1, num_steps=9, start_step=3,
      )  # fmt: skip


if __name__ == '__main__':
  absltest.main()

"""Corrections for differing data on a graph: identities, optima, errors."""

import functools

from absl.testing import absltest, parameterized
import jax
import networkx as nx
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows.exact import PARENTS, TABLE
from tests.rows.row import LEARNING_RATE, MOMENTUM, PLAIN, SGD, N, T

PROBLEM = reference.make_problem(N, T)
DIRECTED = reference.random_column_stochastic(N)


def run_problem(algorithm, problem=PROBLEM):
  """Run on one device, because a law of every row compares the layouts."""
  return harness.run_problem(algorithm, problem, num_devices=1)


@functools.cache
def x_of(make):
  """x[T + 1, N, d] of the algorithm that `make` makes."""
  return run_problem(make()).x


def k_gt(local=SGD, **more):
  return pr.k_gt(local, learning_rate=LEARNING_RATE, **more)


def qg_dsgdm(momentum, **more):
  return pr.qg_dsgdm(
    PLAIN, learning_rate=LEARNING_RATE, momentum=momentum, **more
  )


class SpecialCasesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'gradient_tracking_with_the_mean_is_ssgd',
      lambda: pr.gradient_tracking(SGD, mixing=pr.mixing.mean()),
      lambda: pr.ssgd(SGD),
    ),
    (
      'd2_with_the_mean_is_ssgd',
      lambda: pr.d2(SGD, mixing=pr.mixing.mean()),
      lambda: pr.ssgd(SGD),
    ),
    (
      'k_gt_of_one_step_is_gradient_tracking',
      lambda: k_gt(period=1),
      lambda: pr.gradient_tracking(SGD),
    ),
    (
      'k_gt_with_the_mean_is_scaffold',
      lambda: k_gt(period=4, mixing=pr.mixing.mean()),
      lambda: pr.scaffold(SGD, period=4, learning_rate=LEARNING_RATE),
    ),
    (
      'qg_dsgdm_without_momentum_is_diffusion',
      lambda: qg_dsgdm(0.0),
      lambda: pr.diffusion(PLAIN),
    ),
  )
  def test_collapses(self, special, general):
    assert_close(x_of(special), x_of(general))

  @parameterized.named_parameters(
    (
      'what_is_corrected',
      lambda: pr.gradient_tracking(SGD),
      lambda: pr.diffusion(SGD),
    ),
    (
      'whether_the_correction_is_mixed',
      lambda: pr.d2(SGD, mixing=pr.graphs.ring(0.5)),
      lambda: pr.gradient_tracking(SGD, mixing=pr.graphs.ring(0.5)),
    ),
    (
      'order_a_corrected',
      lambda: pr.extra(SGD),
      lambda: pr.d_psgd(SGD, mixing=pr.graphs.ring(0.5)),
    ),
    (
      'order_a_is_not_ssgd_with_the_mean',
      lambda: pr.extra(SGD, mixing=pr.mixing.mean()),
      lambda: pr.ssgd(SGD),
    ),
    (
      'local_steps_corrected',
      lambda: k_gt(period=4),
      lambda: pr.diffusion(SGD, period=4),
    ),
    (
      'one_neighbor_for_all',
      lambda: k_gt(period=4),
      lambda: pr.scaffold(SGD, period=4, learning_rate=LEARNING_RATE),
    ),
    (
      'whose_momentum_it_is',
      lambda: qg_dsgdm(MOMENTUM),
      lambda: pr.diffusion(SGD),
    ),
    (
      'what_is_relayed',
      lambda: pr.relay_sgd(SGD, parents=PARENTS),
      lambda: pr.diffusion(SGD, mixing=pr.mixing.mean()),
    ),
  )
  def test_these_are_different(self, one, other):
    self.assertGreater(np.abs(x_of(one) - x_of(other)).max(), 1e-3)

  def test_relayed_over_one_link_is_ssgd(self):
    two = reference.make_problem(2, T)
    algorithms = pr.relay_sgd(SGD), pr.ssgd(SGD)
    assert_close(*(run_problem(a, two).x for a in algorithms))

  def test_qg_dsgdm_with_the_mean_is_sgd_with_that_momentum(self):
    # m <- beta (2 - beta) m + (1 - beta) g after x <- x - gamma (beta m + g).
    x, m, beta = PROBLEM.start, np.zeros_like(PROBLEM.start), MOMENTUM
    want = [x]
    for t in range(1, T + 1):
      g = np.mean([PROBLEM.gradient(i, x, t) for i in range(N)], axis=0)
      x = x - LEARNING_RATE * (beta * m + g)
      m = beta * (2 - beta) * m + (1 - beta) * g
      want.append(x)
    got = run_problem(qg_dsgdm(beta, mixing=pr.mixing.mean())).x
    assert_close(got, np.stack([np.stack([x] * N) for x in want]))


class CorrectionsTest(parameterized.TestCase):
  @parameterized.parameters('gradient_tracking', 'd2', 'extra', 'k_gt')
  def test_add_up_to_nothing(self, name):
    run = run_problem(TABLE[name].make())
    c = harness.to_vector(run.mesh.gather(run.state.registers[f'{name}.c']))
    self.assertGreater(np.abs(c).max(), 1e-3)
    assert_close(c.sum(axis=0), np.zeros_like(c[0]))


def quadratic(params, model_state, b, key):
  """f_i = |x - b_i|^2 / 2."""
  del key
  return 0.5 * ((params - b) ** 2).sum(), (model_state, {})


class OptimumTest(parameterized.TestCase):
  """Exact gradients of unlike f_i, of which the mean of the b_i is optimal."""

  GAMMA = 0.1
  TARGETS = np.random.default_rng(0).normal(size=(N, 3))

  def settle(self, algorithm, num_steps=1200):
    """x[N, d] after `num_steps` steps from 0."""
    with jax.enable_x64(True):
      mesh = pr.engine.ReplicaMesh(N, 1)
      state = pr.engine.create_train_state(mesh, algorithm, np.zeros(3))
      train_steps = pr.engine.make_resident_train_steps(
        mesh,
        algorithm,
        quadratic,
        lambda data, step, replica, key: data[replica],
      )
      state, _ = train_steps(state, mesh.replicate(self.TARGETS), num_steps)
      return mesh.gather(state.params)

  def distance(self, x):
    return np.abs(x - self.TARGETS.mean(axis=0)).max()

  @parameterized.named_parameters(
    ('gradient_tracking', pr.gradient_tracking),
    ('d2', pr.d2),
    ('extra', pr.extra),
    ('k_gt', lambda tx: pr.k_gt(tx, period=4, learning_rate=0.1)),
    ('relay_sgd', pr.relay_sgd),
  )
  def test_is_reached(self, make):
    x = self.settle(make(optax.sgd(self.GAMMA)))
    self.assertLess(self.distance(x), 1e-6)

  def fixed_point(self, order):
    """x = W x - gamma (x - b), order A; x = W (x - gamma (x - b)), order C."""
    eye, W = np.eye(N), reference.ring_weights(N)
    if order == 'A':
      system, known = (1 + self.GAMMA) * eye - W, self.TARGETS
    else:
      system, known = eye - (1 - self.GAMMA) * W, W @ self.TARGETS
    return np.linalg.solve(system, self.GAMMA * known)

  @parameterized.named_parameters(
    ('d_psgd', pr.d_psgd, 'A'),
    ('diffusion', pr.diffusion, 'C'),
    (
      'qg_dsgdm',
      lambda tx: pr.qg_dsgdm(tx, learning_rate=0.1, momentum=0.5),
      'C',
    ),
  )
  def test_is_missed_by_the_bias_of_the_fixed_point(self, make, order):
    want = self.fixed_point(order)
    self.assertGreater(self.distance(want), 0.05)
    x = self.settle(make(optax.sgd(self.GAMMA)))
    np.testing.assert_allclose(x, want, rtol=0, atol=1e-9)

  @parameterized.parameters((-0.34, False), (-0.33, True))
  def test_one_third_is_the_bound_of_d2(self, eigenvalue, stable):
    # x+ = W (2 x - x^-) on an eigenvector: z^2 - 2 l z + l = 0.
    roots = np.roots([1, -2 * eigenvalue, eigenvalue])
    self.assertEqual(np.abs(roots).max() < 1, stable)


class ErrorsTest(parameterized.TestCase):
  def assert_refused(self, algorithm, message, num_replicas=N):
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(num_replicas), algorithm, np.zeros(2)
      )

  def test_d2_needs_eigenvalues_above_minus_one_third(self):
    self.assert_refused(
      pr.d2(SGD, mixing=pr.graphs.ring()),
      r'> -1/3, got a minimum of -0.333333; .* pr.graphs.ring\(0.5\)',
    )
    # On an odd ring they are.
    algorithm = pr.d2(SGD, mixing=pr.graphs.ring())
    pr.engine.create_train_state(
      pr.engine.ReplicaMesh(5, 1), algorithm, np.zeros(2)
    )

  def test_extra_needs_eigenvalues_above_minus_one(self):
    self.assert_refused(
      pr.extra(SGD, mixing=pr.graphs.ring(0.0)), '> -1, got a minimum of -1;'
    )

  @parameterized.parameters(pr.d2, pr.extra)
  def test_symmetric(self, make):
    self.assert_refused(
      make(SGD, mixing=pr.graphs.exponential()),
      'symmetric W, got one that is not',
    )

  @parameterized.parameters(
    pr.gradient_tracking,
    lambda tx, mixing: k_gt(tx, period=2, mixing=mixing),
    lambda tx, mixing: qg_dsgdm(0.9, mixing=mixing),
  )
  def test_the_mean_is_kept(self, make):
    self.assert_refused(
      make(SGD, mixing=pr.graphs.graph(DIRECTED.T)),
      r'columns that sum to 1, got [0-9.]+ in column 1',
    )

  @parameterized.parameters(
    pr.gradient_tracking,
    pr.d2,
    pr.extra,
    lambda tx, mixing: k_gt(tx, period=2, mixing=mixing),
    lambda tx, mixing: qg_dsgdm(0.9, mixing=mixing),
  )
  def test_mixing_is_one(self, make):
    with self.assertRaisesRegex(ValueError, 'expected a mixing such as'):
      make(SGD, mixing=nx.path_graph(N))

  @parameterized.parameters(
    (lambda: k_gt(period=0), 'period must be an integer >= 1, got 0'),
    (
      lambda: pr.k_gt(SGD, period=2, learning_rate=0),
      'learning_rate must be a schedule or > 0, got 0',
    ),
    (
      lambda: k_gt(period=2, outer_learning_rate=-1),
      'outer_learning_rate must be > 0, got -1',
    ),
    (lambda: qg_dsgdm(1.0), r'momentum must be in \[0, 1\), got 1.0'),
    (
      lambda: pr.relay_sgd(SGD, parents=(0, 2)),
      'got 2 for replica 2; number the replicas outwards',
    ),
    (
      lambda: pr.relay_sgd(SGD, parents=(0, -1)),
      'parents must be an integer >= 0, got -1',
    ),
  )
  def test_arguments(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_there_is_a_parent_for_each_but_the_first(self):
    self.assert_refused(
      pr.relay_sgd(SGD, parents=(0, 0)), 'except the first, 7, got 2'
    )


if __name__ == '__main__':
  absltest.main()

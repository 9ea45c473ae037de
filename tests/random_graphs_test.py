"""Mixings that draw their links: draws, results, messages and errors."""

import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
from scipy import optimize

import prsgd_jax as pr
from prsgd_jax.mixing.graphs.random_graphs import best_alpha, edge_colors
from tests import harness, reference
from tests.rows.row import SGD, N, T

GRAPHS = {
  'ring': nx.cycle_graph(8),
  'path': nx.path_graph(6),
  'star': nx.star_graph(5),
  'complete': nx.complete_graph(4),
  'torus': nx.grid_2d_graph(3, 4, periodic=True),
}


def laplacian(graph):
  return nx.laplacian_matrix(graph).toarray().astype(float)


def matchings_of(graph):
  return [
    [(i, j) for i, j in enumerate(partner) if i < j]
    for partner in edge_colors(graph)
  ]


def norm(alpha, graph, p):
  """The spectral norm of E[W'W] - 11'/N over all subsets of matchings."""
  parts, n = matchings_of(graph), len(graph)
  expected = np.zeros((n, n))
  for active in itertools.product([False, True], repeat=len(parts)):
    chance = np.prod([p if on else 1 - p for on in active])
    (w,) = reference.matcha_weights([active], parts, alpha)
    expected += chance * w.T @ w
  return np.linalg.norm(expected - 1 / n, 2)


class IndependentNeighborsTest(parameterized.TestCase):
  """Each replica draws its own: rows of W sum to one, columns do not."""

  def neighbors(self, n, t):
    key = jax.random.key(t, impl='threefry2x32')
    further = jax.random.randint(key, (n,), 0, n - 1, jnp.int32)
    return (np.arange(n) + 1 + np.asarray(further)) % n

  def applied(self, n, d, tree, decode=None):
    mesh = pr.engine.ReplicaMesh(n, d)

    def fn(tree, seed):
      key = jax.random.key(seed, impl='threefry2x32')
      context = harness.bare_context(mesh)._replace(shared_key=key)
      return pr.graphs.independent_neighbors().apply(tree, context, decode)

    mapped = mesh.map(fn)
    seeds = [mesh.replicate(np.int32(t)) for t in range(6)]
    return [mesh.gather(mapped(mesh.place(tree), seed)) for seed in seeds]

  @parameterized.parameters(
    (2, 1), (2, 2), (5, 1), (5, 5), (6, 3), (8, 1), (8, 2), (8, 4), (8, 8)
  )
  def test_takes_the_mean_with_the_one_it_drew(self, n, d):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    for t, got in enumerate(self.applied(n, d, x)):
      want = 0.5 * x + 0.5 * x[self.neighbors(n, t)]
      np.testing.assert_array_equal(got, want)

  @parameterized.parameters(1, 2, 8)
  def test_codes_are_decoded_where_they_arrive(self, d):
    codes = np.random.default_rng(0).integers(-9, 9, (8, 3)).astype(np.int8)
    out = self.applied(8, d, codes, lambda code: code * jnp.float32(0.25))
    for t, got in enumerate(out):
      want = 0.125 * (codes * 1.0 + codes[self.neighbors(8, t)])
      np.testing.assert_array_equal(got, want)

  def test_draws_are_uniform_among_the_others_and_do_not_agree(self):
    n = 4
    drawn = np.stack([self.neighbors(n, t) for t in range(3000)])
    counts = np.stack([np.bincount(each, minlength=n) for each in drawn.T])
    np.testing.assert_array_equal(np.diag(counts), 0)
    # Five standard deviations of a count of mean 1000.
    others = counts[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(others, 1000, atol=5 * np.sqrt(1000))
    shifts = (drawn - np.arange(n)) % n
    self.assertGreater(np.ptp(shifts, axis=1).mean(), 0.5)

  def test_is_a_mean_in_expectation_only(self):
    weights = pr.graphs.independent_neighbors().weights(8)
    self.assertTrue(weights.sum_to_one(1))
    self.assertFalse(weights.sum_to_one(0))
    drawn = weights.matrix(weights.draw_turn(np.random.default_rng(0)))
    np.testing.assert_array_equal(drawn.sum(axis=1), 1)
    self.assertNotEqual(drawn.sum(axis=0).tolist(), [1.0] * 8)

  def test_all_are_gathered_and_that_is_counted(self):
    mesh = pr.engine.ReplicaMesh(8, 8)
    fn = mesh.map(
      lambda x: pr.graphs.independent_neighbors().apply(
        x, harness.bare_context(mesh)
      )
    )
    (sent,) = harness.collectives_of(fn, jnp.zeros((8, 1, 5)))
    self.assertEqual(sent.name, 'all_gather')
    self.assertEqual(
      tuple(pr.graphs.independent_neighbors().message(120.0, 8)),
      (840.0, 7, 'neighbor'),
    )

  def test_too_many_to_list(self):
    with self.assertRaisesRegex(ValueError, 'too many matrices to list'):
      pr.graphs.independent_neighbors().matrices(8)

  def test_push_sum_and_exact_methods_refuse_it(self):
    for algorithm in (pr.sgp, pr.gradient_tracking):
      with self.assertRaises(ValueError):
        pr.engine.create_train_state(
          pr.engine.ReplicaMesh(6),
          algorithm(optax.sgd(0.1), mixing=pr.graphs.independent_neighbors()),
          np.zeros(2),
        )


class AlphaTest(parameterized.TestCase):
  @parameterized.product(
    name=('ring', 'path', 'star', 'complete'), p=(0.1, 0.5, 0.9, 1.0)
  )
  def test_makes_the_spectral_norm_smallest(self, name, p):
    graph = GRAPHS[name]
    alpha = best_alpha(laplacian(graph), p)
    found = optimize.minimize_scalar(
      norm, bounds=(0, 2), args=(graph, p), method='bounded'
    )
    self.assertLess(norm(alpha, graph, p), found.fun + 1e-9)
    # A near miss is worse.
    for other in (0.9 * alpha, 1.1 * alpha):
      self.assertGreater(norm(other, graph, p), norm(alpha, graph, p) + 1e-6)


class EmptyTest(parameterized.TestCase):
  @parameterized.parameters(
    pr.graphs.random_matching, pr.graphs.random_neighbor,
    pr.graphs.independent_neighbors,
    lambda: pr.graphs.matcha(nx.cycle_graph(4)),
  )  # fmt: skip
  def test_empty_tree_stays_empty(self, make):
    mesh = pr.engine.ReplicaMesh(4, 2)

    def fn(x):
      return x, make().apply([], harness.bare_context(mesh))

    self.assertEqual(mesh.map(fn)(jnp.zeros((2, 2)))[1], [])


class MatchaTest(parameterized.TestCase):
  def applied(self, graph, d, tree, num_rounds=6, decode=None):
    mesh = pr.engine.ReplicaMesh(len(graph), d)
    mixing = pr.graphs.matcha(graph, budget=0.6)

    def fn(tree, seed):
      key = jax.random.key(seed, impl='threefry2x32')
      context = harness.bare_context(mesh)._replace(shared_key=key)
      return mixing.apply(tree, context, decode)

    mapped = mesh.map(fn)
    return [
      mesh.gather(mapped(mesh.place(tree), mesh.replicate(np.int32(t))))
      for t in range(num_rounds)
    ]

  def weights(self, graph, num_rounds=6):
    parts = matchings_of(graph)
    keys = [jax.random.key(t, impl='threefry2x32') for t in range(num_rounds)]
    active = [
      jax.random.uniform(key, (len(parts),), jnp.float32) < 0.6 for key in keys
    ]
    return reference.matcha_weights(
      np.array(active), parts, best_alpha(laplacian(graph), 0.6)
    )

  @parameterized.parameters(
    ('ring', 1), ('ring', 4), ('ring', 8), ('path', 3), ('star', 1),
    ('star', 6), ('complete', 2), ('torus', 4),
  )  # fmt: skip
  def test_is_the_matrix_of_what_is_active(self, name, d):
    graph = GRAPHS[name]
    x = np.random.default_rng(0).normal(size=(len(graph), 3))
    with jax.enable_x64(True):
      out = self.applied(graph, d, x)
    for got, w in zip(out, self.weights(graph)):
      np.testing.assert_allclose(got, w @ x, rtol=0, atol=1e-14)

  @parameterized.parameters(1, 3, 6)
  def test_codes_are_decoded_where_they_arrive(self, d):
    graph = GRAPHS['path']  # whose ends are alone in one matching
    scale = np.random.default_rng(0).uniform(1, 2, 6).astype(np.float32)
    # A scale of zero, as of a code that nobody sent, gives NaN.
    out = self.applied(graph, d, scale, decode=lambda x: x**2 / x)
    for got, w in zip(out, self.weights(graph)):
      np.testing.assert_allclose(got, w @ scale, rtol=0, atol=1e-6)

  def test_always_active_is_d_psgd_with_the_laplacian(self):
    graph = nx.cycle_graph(N)
    alpha = best_alpha(laplacian(graph), 1.0)
    fixed = pr.graphs.graph(np.eye(N) - alpha * laplacian(graph))
    problem = reference.make_problem(N, T)
    x = {
      mixing: harness.run_problem(
        pr.d_psgd(SGD, mixing=mixing), problem, num_devices=1
      ).x
      for mixing in (
        fixed,
        pr.graphs.matcha(graph, budget=1),
        pr.graphs.matcha(graph),
      )
    }
    want, always, half = x.values()
    np.testing.assert_array_equal(always, want)
    self.assertGreater(np.abs(half - want).max(), 1e-3)

  def test_the_ledger_draws_each_matching_with_its_probability(self):
    mixing = pr.graphs.matcha(GRAPHS['ring'], budget=0.3)
    stages = pr.chain(pr.gradient(), pr.sync(mixing))
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    _, sent = stages.cost(shapes, 8, np.arange(1))
    generator = np.random.default_rng(0)
    waits = [harness.waits_of(sent, 8, t, generator) for t in range(3000)]
    found = np.mean(waits, axis=0)[0]
    edges = nx.to_numpy_array(GRAPHS['ring'])[0]
    want = np.where(np.arange(8) == 0, 1, 0.3 * edges)
    np.testing.assert_allclose(found, want, atol=5 * np.sqrt(0.21 / 3000))

  def test_one_conditional_message_for_each_matching(self):
    graph = GRAPHS['ring']
    mesh = pr.engine.ReplicaMesh(8, 8)
    fn = mesh.map(
      lambda x: pr.graphs.matcha(graph).apply(x, harness.bare_context(mesh))
    )
    found = harness.collectives_of(fn, jnp.zeros((8, 1, 5)))
    self.assertLen(found, 2)
    for sent in found:
      self.assertEqual(sent.name, 'ppermute')
      self.assertTrue(sent.conditional)

  def test_message_is_the_expected_one(self):
    for budget in (0.5, 1.0):
      mixing = pr.graphs.matcha(GRAPHS['ring'], budget=budget)
      want = (240.0 * budget, 2 * budget, 'neighbor')
      self.assertEqual(tuple(mixing.message(120.0, 8)), want)

  def test_keeps_the_mean(self):
    weights = pr.graphs.matcha(GRAPHS['star']).weights(6)
    self.assertTrue(weights.sum_to_one(0) and weights.sum_to_one(1))
    for turn in range(2**5):
      np.testing.assert_allclose(weights.matrix(turn).sum(axis=0), 1)

  @parameterized.parameters(
    (
      lambda: pr.graphs.matcha(nx.cycle_graph(4), budget=0),
      r'budget must be in \(0',
    ),
    (lambda: pr.graphs.matcha(nx.cycle_graph(4), budget=1.5), 'got 1.5'),
    (lambda: pr.graphs.matcha(np.eye(2)), 'undirected .*, got ndarray'),
    (lambda: pr.graphs.matcha(nx.empty_graph(2)), 'got 2 parts'),
    (lambda: pr.graphs.matcha(nx.empty_graph(1)), 'at least two nodes, got 1'),
    (
      lambda: pr.graphs.matcha(nx.cycle_graph(4)).weights(8),
      r'\[8, 8\].*\(4, 4\)',
    ),
    (
      lambda: pr.graphs.matcha(nx.cycle_graph(4)).matrices(4),
      'not equally likely',
    ),
    (
      lambda: pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8),
        pr.d_psgd(optax.sgd(0.1), mixing=pr.graphs.matcha(nx.cycle_graph(4))),
        np.zeros(2),
      ),
      r'\[8, 8\].*\(4, 4\)',
    ),
  )
  def test_refused(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()

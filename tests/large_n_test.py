"""Tests that programs and plans do not grow with the number of replicas."""

from absl.testing import absltest, parameterized
import networkx as nx
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing.graphs import edge_coloring
from tests import harness


class ManyNeighborsTest(parameterized.TestCase):
  @parameterized.product(
    make=(pr.graphs.star, pr.graphs.complete), num_devices=(1, 4)
  )
  def test_equals_the_matrix(self, make, num_devices):
    n, mixing = 64, make()
    mesh = pr.engine.ReplicaMesh(n, num_devices)
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    fn = mesh.map(lambda x: mixing.apply(x, harness.bare_context(mesh)))
    got = mesh.gather(fn(mesh.place(x)))
    np.testing.assert_allclose(got, mixing.matrices(n)[0] @ x, atol=1e-6)


class EdgeColoringTest(parameterized.TestCase):
  @parameterized.parameters(*range(20))
  def test_is_the_coloring_of_networkx(self, seed):
    graph = nx.line_graph(nx.gnp_random_graph(3 + seed % 8, 0.6, seed=seed))
    want = nx.greedy_color(graph, 'DSATUR')
    self.assertEqual(edge_coloring.saturation_colors(graph), want)

  @parameterized.parameters(127, 128)
  def test_large_complete_graphs_meet_every_pair_once(self, n):
    matchings = edge_coloring.edge_colors(nx.complete_graph(n))
    met = np.zeros((n, n), int)
    for partner in matchings:
      np.testing.assert_array_equal(partner[partner], np.arange(n))
      met[np.arange(n), partner] += partner != np.arange(n)
    np.testing.assert_array_equal(met, 1 - np.eye(n))


if __name__ == '__main__':
  absltest.main()

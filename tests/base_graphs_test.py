"""Base-(k+1) graphs: exact for any number, few rounds, few neighbors."""

import math

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.mixing.graphs import base_graphs
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows.row import LEARNING_RATE, MOMENTUM


def matrix(n, edges):
  weights = np.eye(n)
  for i, j, weight in edges:
    weights[[i, j], [j, i]] += weight
    weights[[i, j], [i, j]] -= weight
  return weights


class BaseGraphTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 4)
  def test_the_product_is_the_mean_for_any_number(self, k):
    for n in range(1, 100):
      rounds = base_graphs.base_rounds(n, k)
      self.assertLessEqual(len(rounds), 2 * math.log(n, k + 1) + 2)
      product = np.eye(n)
      for edges in rounds:
        pairs = {frozenset(edge[:2]) for edge in edges}
        self.assertLen(pairs, len(edges))  # each once
        weights = matrix(n, edges)
        self.assertLessEqual((weights > 0).sum(axis=0).max(), k + 1)
        self.assertGreaterEqual(weights.min(), -1e-15)
        product = weights @ product
      np.testing.assert_allclose(product, 1 / n, rtol=0, atol=1e-14)

  def test_matrices_are_those_of_the_edges(self):
    for n, k in ((1, 1), (5, 1), (6, 1), (7, 2), (25, 3)):
      want = [matrix(n, e) for e in base_graphs.base_rounds(n, k)] or [
        np.eye(1)
      ]
      np.testing.assert_allclose(
        pr.graphs.base_graph(k).matrices(n), want, rtol=0, atol=1e-15
      )

  def test_five_by_hand(self):
    # 5 = 4 + 1: the four take their mean, one of them trades with the fifth,
    # which keeps 1/5 of its own, and the four take their mean again.
    pairs, crossed = [(0, 1, 0.5), (2, 3, 0.5)], [(0, 2, 0.5), (1, 3, 0.5)]
    rounds = base_graphs.base_rounds(5, 1)
    self.assertEqual(rounds, [pairs, crossed, [(4, 0, 0.8)], pairs, crossed])

  def test_a_power_of_two_is_the_hypercube_by_turns(self):
    rounds = base_graphs.base_rounds(8, 1)
    for digit, edges in enumerate(rounds):
      self.assertEqual({i ^ j for i, j, _ in edges}, {2**digit})

  def test_fewer_rounds_than_by_sets_where_that_is_possible(self):
    # 2 sets of 3 take four rounds; 6 = 4 + 2 at once would take 2 + 3.
    self.assertLen(base_graphs.base_rounds(6, 1), 4)

  def test_gossip_on_it_is_exact_where_one_peer_exponential_is_not(self):
    errors = {}
    for mixing in (pr.graphs.base_graph(1), pr.graphs.one_peer_exponential()):
      mesh = pr.engine.ReplicaMesh(6, 2)
      algorithm = pr.chain(pr.sync(mixing))
      with jax.enable_x64(True):
        state = pr.engine.create_train_state(
          mesh, algorithm, np.eye(6), per_replica=True
        )
        train_steps = pr.engine.make_train_steps(
          mesh, algorithm, lambda *args: 0
        )
        none = mesh.place_per_device(np.zeros((2, 4, 3)))
        state, _ = train_steps(state, none)
        errors[mixing] = np.abs(mesh.gather(state.params) - 1 / 6).max()
    exact, near = errors.values()
    self.assertLess(exact, 1e-15)
    self.assertGreater(near, 0.01)

  @parameterized.parameters((6, 1), (6, 3))
  def test_d_psgd_on_six_replicas_is_its_oracle(self, n, num_devices):
    num_steps = 10
    rounds = base_graphs.base_rounds(n, 1)
    weights = [matrix(n, rounds[t % len(rounds)]) for t in range(num_steps)]
    problem = reference.make_problem(n, num_steps)
    want = reference.d_psgd(
      problem,
      weights=np.array(weights),
      learning_rate=LEARNING_RATE,
      momentum=MOMENTUM,
    )
    algorithm = pr.d_psgd(
      optax.sgd(LEARNING_RATE, momentum=MOMENTUM), mixing=pr.graphs.base_graph()
    )
    run = harness.run_problem(algorithm, problem, num_devices)
    assert_close(run.x, want)

  @parameterized.parameters(0, 1.5, None, True)
  def test_degree_is_a_positive_integer(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'max_degree must be an integer >= 1, got {bad}'
    ):
      pr.graphs.base_graph(bad)


if __name__ == '__main__':
  absltest.main()

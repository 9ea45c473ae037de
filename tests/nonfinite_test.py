"""NaN of one replica reaches only replicas that receive from it."""

from absl.testing import absltest, parameterized
import networkx as nx
import numpy as np

import prsgd_jax as pr
from tests import graphs_test, harness, mixing_test, reference

# Some entries of W are zero, in all of these.
MIXINGS = {
  **{name: make for name, (make, _) in mixing_test.TABLE.items()},
  **{name: make for name, (make, _) in graphs_test.ALL.items()},
  'matrix': lambda: pr.graphs.graph(reference.ring_weights(6)),
  'hypercube': lambda: pr.graphs.graph(reference.ring_weights(6, 0.0)),
  'torus_of_rows': lambda: pr.graphs.torus(3),
  'groups_of_4': lambda: pr.mixing.group_mean(3),
  'base_graph_of_two': pr.graphs.base_graph,
  'dense': lambda: pr.mixing.dense(graphs_test.DIRECTED),
  'dense_full': lambda: pr.mixing.dense(np.full((6, 6), 1 / 6)),
  'weighted': lambda: pr.mixing.weighted_mean(range(1, 7)),
  'matcha': lambda: pr.graphs.matcha(nx.cycle_graph(6)),
  'independent': pr.graphs.independent_neighbors,
}


def mixed(mixing, num_devices):
  """W, and W times NaN or infinity of each replica: plain, and of codes."""
  mesh = pr.engine.ReplicaMesh(6, num_devices)
  one = np.eye(6, dtype=np.float32)
  tree = {
    'weights': one,
    'nan': np.where(one, np.nan, 0),
    'inf': np.where(one, np.inf, 0),
  }

  def fn(x):
    context = harness.bare_context(mesh)
    return [mixing.apply(x, context, decode) for decode in (None, lambda x: x)]

  return mesh.gather(mesh.map(fn)(mesh.place(tree)))


class MixingTest(parameterized.TestCase):
  @parameterized.parameters(
    *[(name, 2) for name in MIXINGS],
    ('ring', 1),
    ('dense', 1),
    ('groups_of_2', 1),
    ('random_matching', 1),
    ('random_neighbor', 1),
    ('independent', 1),
    ('matcha', 1),
    ('random_matching', 6),
    ('dense', 6),
    ('random_neighbor', 3),
  )
  def test_only_a_weight_carries_what_is_not_finite(self, name, num_devices):
    for out in mixed(MIXINGS[name](), num_devices):
      receives = out['weights'] != 0
      self.assertTrue(receives.any(axis=1).all())
      np.testing.assert_array_equal(np.isnan(out['nan']), receives)
      np.testing.assert_array_equal(~np.isfinite(out['inf']), receives)

  @parameterized.parameters('dense', 'ring', 'star', 'groups_of_2')
  def test_most_have_weights_of_zero(self, name):
    # Without which there would be nothing to test.
    (plain, _) = mixed(MIXINGS[name](), 2)
    self.assertTrue((plain['weights'] == 0).any())


class WeightTest(parameterized.TestCase):
  """A replica of weight 0 counts for nothing, whatever it holds."""

  @parameterized.product(
    codec=(None, pr.codecs.uncompressed()),
    bad=(np.nan, np.inf),
    num_devices=(1, 2),
  )
  def test_without_weight_nothing_is_sent(self, codec, bad, num_devices):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    algorithm = pr.chain(
      pr.remember(weight=pr.per_replica([1.0, 0.0, 2.0, 1.0])),
      pr.sync(pr.mixing.mean(), codec=codec),
    )
    x = np.array([[1.0], [bad], [3.0], [5.0]], np.float32)
    state = pr.engine.create_train_state(mesh, algorithm, x, per_replica=True)
    steps = pr.engine.make_train_steps(mesh, algorithm, lambda *args: None)
    batches = np.zeros((num_devices, 1, mesh.block_size))
    state, _ = steps(state, mesh.place_per_device(batches))
    np.testing.assert_allclose(mesh.gather(state.params), np.full((4, 1), 3.0))

  def test_with_weight_it_is(self):
    mesh = pr.engine.ReplicaMesh(4, 2)
    algorithm = pr.chain(pr.remember(weight=1.0), pr.sync(pr.mixing.mean()))
    x = np.array([[1.0], [np.nan], [3.0], [5.0]], np.float32)
    state = pr.engine.create_train_state(mesh, algorithm, x, per_replica=True)
    steps = pr.engine.make_train_steps(mesh, algorithm, lambda *args: None)
    state, _ = steps(state, mesh.place_per_device(np.zeros((2, 1, 2))))
    self.assertTrue(np.isnan(mesh.gather(state.params)).all())


if __name__ == '__main__':
  absltest.main()

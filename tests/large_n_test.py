"""Tests that programs and plans do not grow with the number of replicas."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.mixing.graphs import edge_coloring
from tests import harness

RATE, MOMENTUM, FRACTION, CONSENSUS = 0.1, 0.9, 0.5, 0.3
GROUP_SIZE, GLOBAL_PERIOD = 8, 4
SGD = optax.sgd(RATE, momentum=MOMENTUM)
DIM, T = 6, 8
ALGORITHMS = {
  'mean': lambda n: pr.local_sgd(SGD, period=1),
  'groups': lambda n: pr.hier_avg(
    SGD, local_period=1, global_period=GLOBAL_PERIOD, group_size=GROUP_SIZE
  ),
  'ring': lambda n: pr.d_psgd(SGD),
  'pairs': lambda n: pr.d_psgd(SGD, mixing=pr.graphs.random_matching()),
  'choco': lambda n: pr.choco_sgd(
    SGD,
    mixing=pr.graphs.ring(),
    compressor=pr.codecs.top_k(FRACTION),
    consensus_step_size=CONSENSUS,
  ),
  'star': lambda n: pr.d_psgd(SGD, mixing=pr.graphs.star()),
  'complete': lambda n: pr.d_psgd(SGD, mixing=pr.graphs.complete()),
  'torus': lambda n: pr.d_psgd(SGD, mixing=pr.graphs.torus()),
  'pairs_of_a_graph': lambda n: pr.d_psgd(
    SGD, mixing=pr.graphs.random_matching(nx.cycle_graph(n))
  ),
}


def loss(params, model_state, batch, key):
  """|w - batch|^2 / 2, whose gradient is w - batch."""
  del key
  return ((params['w'] - batch) ** 2).sum() / 2, (model_state, {})


class ProgramTest(parameterized.TestCase):
  def count(self, name, n, num_devices):
    """The equations of a step."""
    algorithm = ALGORITHMS[name](n)
    engine = harness.make_engine(algorithm, n, num_devices, loss)
    state = harness.state_types(engine.mesh, algorithm, {'w': jnp.zeros(DIM)})
    shape = (num_devices, 1, n // num_devices, DIM)
    batch = jax.ShapeDtypeStruct(shape, np.float32)
    jaxpr = jax.make_jaxpr(engine.train_steps)(state, batch).jaxpr
    return sum(1 for _ in harness.equations(jaxpr))

  @parameterized.parameters(*ALGORITHMS)
  def test_does_not_grow_with_the_replicas(self, name):
    self.assertEqual(self.count(name, 64, 1), self.count(name, 1024, 1))
    self.assertEqual(self.count(name, 64, 2), self.count(name, 256, 2))


def ring(x):
  return (x + np.roll(x, 1, 0) + np.roll(x, -1, 0)) / 3


def pairs(x, r):
  """Means of i and j with i + j = r modulo N - 1; the one left joins the last.

  Args:
    x: float64[N, d], N even.
    r: the round.
  """
  n = len(x)
  other = [(r - i) % (n - 1) for i in range(n - 1)]
  left = next(i for i, j in enumerate(other) if i == j)
  other[left] = n - 1
  return (x + x[[*other, left]]) / 2


def largest(v):
  """The half of the entries that is largest in absolute value, else 0."""
  places = np.argsort(-np.abs(v), axis=1, kind='stable')
  kept = np.zeros_like(v)
  rows = np.arange(len(v))[:, None]
  places = places[:, : round(FRACTION * v.shape[1])]
  kept[rows, places] = v[rows, places]
  return kept


def oracle(name, batches, turns):
  """float64[N, d], the parameters after all steps from 0.

  Args:
    name: one of the patterns that the benchmark measures.
    batches: float64[T, N, d].
    turns: int[T], the rounds of the random pairs.
  """
  x, v, known = (np.zeros_like(batches[0]) for _ in range(3))
  for t, batch in enumerate(batches, 1):
    v = MOMENTUM * v + x - batch
    if name == 'ring':
      x = ring(x)
    elif name == 'pairs':
      x = pairs(x, turns[t - 1])
    x = x - RATE * v
    if name == 'mean' or (name == 'groups' and t % GLOBAL_PERIOD == 0):
      x = np.broadcast_to(x.mean(0), x.shape)
    elif name == 'groups':
      means = x.reshape((-1, GROUP_SIZE, DIM)).mean(1)
      x = np.repeat(means, GROUP_SIZE, axis=0)
    elif name == 'choco':
      known = known + largest(x - known)
      x = x + CONSENSUS * (ring(known) - known)
  return x


class OracleTest(parameterized.TestCase):
  @parameterized.parameters('mean', 'groups', 'ring', 'pairs', 'choco')
  def test_256_replicas_agree_with_numpy(self, name):
    n = 256
    batches = np.random.default_rng(0).normal(size=(T, n, DIM))
    _, keys = harness.stage_keys(T, (1,), n)
    turns = [int(jax.random.randint(k, (), 0, n - 1, np.int32)) for k in keys]
    with jax.enable_x64(True):
      algorithm = ALGORITHMS[name](n)
      engine = harness.make_engine(algorithm, n, 1, loss)
      state = pr.engine.create_train_state(
        engine.mesh, algorithm, {'w': np.zeros(DIM)}
      )
      placed = engine.mesh.place_per_device(batches[None])
      state, _ = engine.train_steps(state, placed)
      got = engine.mesh.gather(state.params)['w']
    np.testing.assert_allclose(got, oracle(name, batches, turns), atol=1e-12)


class LedgerTest(parameterized.TestCase):
  # Rounds, bytes by tier and latencies in T steps, of P = 24 bytes.
  @parameterized.parameters(
    ('mean', T, {'global': T * 2 * 1023 / 1024 * 24}, {'global': T * 2046}),
    (
      'groups',
      T + 2,
      {'group': T * 2 * 7 / 8 * 24, 'global': 2 * 2 * 1023 / 1024 * 24},
      {'group': T * 14, 'global': 2 * 2046},
    ),
    ('ring', T, {'neighbor': T * 2 * 24}, {'neighbor': T * 2}),
    ('pairs', T, {'neighbor': T * 24}, {'neighbor': T}),
    # Three values of four bytes, and their positions of two.
    ('choco', T, {'neighbor': T * 2 * 18}, {'neighbor': T * 2}),
    ('star', T, {'neighbor': T * 1023 * 24}, {'neighbor': T * 1023}),
    ('complete', T, {'neighbor': T * 1023 * 24}, {'neighbor': T * 1023}),
    ('torus', T, {'neighbor': T * 4 * 24}, {'neighbor': T * 4}),
  )
  def test_1024_replicas_have_the_closed_form(
    self, name, rounds, sent, latencies
  ):
    shapes = pr.base.Replica(params={'w': np.zeros(DIM, np.float32)})
    network = pr.ledger.Network(step_time=1.0)
    found = pr.ledger.account(ALGORITHMS[name](1024), shapes, 1024, T, network)
    self.assertEqual(found.rounds[-1], rounds)
    for tier, total in sent.items():
      np.testing.assert_allclose(found.bytes_by_tier[tier][-1], total)
    np.testing.assert_allclose(found.bytes_sent[-1], sum(sent.values()))
    seconds = T + sum(
      latencies[tier] * network.links[tier].latency
      + sent[tier] / network.links[tier].bandwidth
      for tier in sent
    )
    np.testing.assert_allclose(found.seconds[-1], seconds, rtol=1e-12)


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

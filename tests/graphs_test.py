"""Every graph: `apply` is one of `matrices`, and only its edges are sent."""

import functools
import itertools
import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.mixing import mixings
from prsgd_jax.mixing.matrices import of_size
from tests import harness, reference

# Its links are neither symmetric nor alike for two replicas.
DIRECTED = np.array(
  [
    [0.5, 0.0, 0.0, 0.0, 0.0, 1.0],
    [0.25, 0.5, 0.0, 0.0, 0.0, 0.0],
    [0.25, 0.5, 0.5, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.25, 1 / 3, 0.5, 0.0],
    [0.0, 0.0, 0.25, 1 / 3, 0.5, 0.0],
    [0.0, 0.0, 0.0, 1 / 3, 0.0, 0.0],
  ]
)  # columns sum to one
PATH = nx.path_graph(6)

# name -> (the mixing, the numbers of replicas that it is tried on)
TABLE = {
  'ring': (pr.graphs.ring, (6, 8)),
  'ring_without_self': (lambda: pr.graphs.ring(0.0), (6,)),
  'exponential': (pr.graphs.exponential, (6, 8)),
  'torus': (pr.graphs.torus, (6, 8)),
  'torus_of_rows': (lambda: pr.graphs.torus(4), (8,)),
  'hypercube': (pr.graphs.hypercube, (4, 8)),
  'star': (pr.graphs.star, (6, 8)),
  'complete': (pr.graphs.complete, (6,)),
  'erdos_renyi': (lambda: pr.graphs.erdos_renyi(0.4, seed=1), (6, 8)),
  'path': (lambda: pr.graphs.graph(PATH), (6,)),
  'matrix': (
    lambda: pr.graphs.graph(reference.random_doubly_stochastic(8)),
    (8,),
  ),
  'one_peer_exponential': (pr.graphs.one_peer_exponential, (6, 8)),
  'base_graph': (pr.graphs.base_graph, (6, 8)),
  'base_graph_of_two': (lambda: pr.graphs.base_graph(2), (8,)),
  'random_matching': (pr.graphs.random_matching, (6, 8)),
  'random_matching_on_a_path': (lambda: pr.graphs.random_matching(PATH), (6,)),
  'random_neighbor': (pr.graphs.random_neighbor, (6,)),
}
NOT_DOUBLY = {
  'directed': (lambda: pr.graphs.graph(DIRECTED), (6,)),
  'directed_rows': (lambda: pr.graphs.graph(DIRECTED.T), (6,)),
}
ALL = {**TABLE, **NOT_DOUBLY}
DEVICES = {4: (1, 2, 4), 6: (1, 2, 3, 6), 8: (1, 2, 4, 8)}


def rounds(mixing, n, d, tree, apply=None):
  """W x of the first rounds, with W by hand: (results, the indices of W).

  `apply(mixing, tree, context)` may take the place of `mixing.apply`.
  """
  mesh = pr.engine.ReplicaMesh(n, d)
  choices = len(mixing.matrices(n))

  def fn(tree, seed, turn):
    key = jax.random.key(seed, impl='threefry2x32')
    context = harness.bare_context(mesh)._replace(shared_key=key, round=turn)
    if apply is not None:
      return apply(mixing, tree, context)
    return mixing.apply(tree, context)

  mapped, placed = mesh.map(fn), mesh.place(tree)
  out, chosen = [], []
  for t in range(8 if choices > 1 else 1):
    seed, turn = mesh.replicate((np.int32(t), np.int32(t)))
    out.append(mesh.gather(mapped(placed, seed, turn)))
    key = jax.random.key(t, impl='threefry2x32')
    draw = int(jax.random.randint(key, (), 0, choices, jnp.int32))
    chosen.append(draw if mixing.random else t % choices)
  return out, chosen


def data(n):
  rng = np.random.default_rng(n)
  return {'matrix': rng.normal(size=(n, 3, 2)), 'scalar': rng.normal(size=n)}


def messages(mixing, n, d):
  """The collectives of one application to a leaf `[V, 5]`."""
  mesh = pr.engine.ReplicaMesh(n, d)
  fn = mesh.map(lambda x: mixing.apply(x, harness.bare_context(mesh)))
  return harness.collectives_of(fn, jnp.zeros((d, n // d, 5)))


def links_of(weights):
  """{(from, to)} of the replicas that send."""
  to, origin = np.nonzero(weights)
  return {(j, i) for i, j in zip(to.tolist(), origin.tolist()) if i != j}


def sizes(table):
  return [(name, n) for name, (_, ns) in table.items() for n in ns]


def layouts(table):
  return [(name, n, d) for name, n in sizes(table) for d in DEVICES[n]]


def decoded(tree):
  # A scale of zero, as of a code that nobody sent, gives NaN.
  return tree['code'] * (tree['scale'] ** 2 / tree['scale']) * 0.5


def plain_and_coded(mixing, tree, context):
  codes = mixing.apply(tree['codes'], context, decoded)
  return {'plain': mixing.apply(tree['plain'], context), 'codes': codes}


class EveryGraphTest(parameterized.TestCase):
  def assert_is_the_matrix(self, got, weights, tree):
    for leaf in tree:
      want = np.tensordot(weights, tree[leaf], 1)
      np.testing.assert_allclose(got[leaf], want, rtol=0, atol=1e-14)

  @parameterized.parameters(
    *[(name, n, d) for name, n, d in layouts(ALL) if d not in (2, n)]
  )
  def test_apply_is_the_matrix(self, name, n, d):
    mixing = ALL[name][0]()
    with jax.enable_x64(True):
      out, chosen = rounds(mixing, n, d, data(n))
    for got, k in zip(out, chosen):
      self.assert_is_the_matrix(got, mixing.matrices(n)[k], data(n))

  @parameterized.parameters(
    *[(name, n, d) for name, n, d in layouts(ALL) if d in (2, n)]
  )
  def test_and_codes_are_decoded_where_they_arrive(self, name, n, d):
    mixing = ALL[name][0]()
    rng = np.random.default_rng(0)
    codes = rng.integers(-100, 100, (n, 3)).astype(np.int8)
    scale = rng.uniform(1, 2, n).astype(np.float32)
    tree = {'plain': data(n), 'codes': {'code': codes, 'scale': scale}}
    # One program for both, because compiling it takes most of the time.
    with jax.enable_x64(True):
      out, chosen = rounds(mixing, n, d, tree, plain_and_coded)
    values = codes.astype(np.float64) * scale[:, None] * 0.5
    for got, k in zip(out, chosen):
      weights = mixing.matrices(n)[k]
      self.assert_is_the_matrix(got['plain'], weights, tree['plain'])
      self.assertEqual(got['codes'].dtype, np.float32)
      np.testing.assert_allclose(
        got['codes'], weights @ values, rtol=0, atol=1e-4
      )

  @parameterized.parameters(*sizes(TABLE))
  def test_is_doubly_stochastic(self, name, n):
    matrices = TABLE[name][0]().matrices(n)
    self.assertEqual(matrices.dtype, np.float64)
    self.assertEqual(matrices.shape[1:], (n, n))
    self.assertGreaterEqual(matrices.min(), 0)
    for axis in (1, 2):
      np.testing.assert_allclose(matrices.sum(axis), 1, rtol=0, atol=1e-12)

  @parameterized.parameters(
    'ring', 'torus', 'hypercube', 'star', 'complete', 'erdos_renyi', 'path',
    'base_graph', 'random_matching', 'random_matching_on_a_path',
  )  # fmt: skip
  def test_undirected_graphs_are_symmetric(self, name):
    make, ns = TABLE[name]
    matrices = make().matrices(ns[-1])
    np.testing.assert_allclose(matrices, matrices.swapaxes(1, 2), atol=1e-15)

  @parameterized.parameters(
    pr.graphs.ring, pr.graphs.exponential, pr.graphs.torus, pr.graphs.hypercube,
    pr.graphs.star, pr.graphs.complete,
    pr.graphs.one_peer_exponential, pr.graphs.base_graph,
    pr.graphs.random_neighbor,
  )  # fmt: skip
  def test_one_replica_keeps_what_it_has(self, make):
    np.testing.assert_array_equal(make().matrices(1), np.ones((1, 1, 1)))
    out, _ = rounds(make(), 1, 1, np.array([3.0]))
    np.testing.assert_array_equal(out[0], [3.0])

  @parameterized.parameters(
    pr.graphs.ring, pr.graphs.exponential, pr.graphs.torus, pr.graphs.hypercube,
    pr.graphs.star, pr.graphs.complete,
    pr.graphs.one_peer_exponential, pr.graphs.base_graph,
    pr.graphs.random_matching,
    pr.graphs.random_neighbor,
  )  # fmt: skip
  def test_two_replicas_have_one_link(self, make):
    matrices = make().matrices(2)
    for weights in matrices:
      self.assertEqual(links_of(weights), {(0, 1), (1, 0)})
    self.assertEqual(tuple(make().message(8.0, 2)), (8.0, 1, 'neighbor'))

  @parameterized.parameters('star', 'random_matching', 'directed')
  def test_keeps_single_precision(self, name):
    mixing = ALL[name][0]()
    with jax.enable_x64(True):
      out, _ = rounds(mixing, 6, 3, np.ones((6, 2), np.float32))
    self.assertEqual(out[0].dtype, np.float32)


class WeightsTest(parameterized.TestCase):
  """The weights by hand."""

  def test_star(self):
    # 1 / (1 + max(n - 1, 1)) on an edge.
    want = np.diag([1 / 4] + [3 / 4] * 3)
    want[0, 1:] = want[1:, 0] = 1 / 4
    np.testing.assert_allclose(pr.graphs.star().matrices(4)[0], want)

  def test_complete_is_the_mean(self):
    np.testing.assert_allclose(
      pr.graphs.complete().matrices(6)[0], np.full((6, 6), 1 / 6)
    )

  def test_hypercube_flips_one_digit(self):
    weights = pr.graphs.hypercube().matrices(8)[0]
    for i, j in itertools.product(range(8), range(8)):
      near = bin(i ^ j).count('1') <= 1
      self.assertAlmostEqual(weights[i, j], near / 4)

  def test_torus_of_three_rows_has_four_neighbors(self):
    weights = pr.graphs.torus(3).matrices(12)[0]
    for i, j in itertools.product(range(12), range(12)):
      down, right = (i // 4 - j // 4) % 3, (i % 4 - j % 4) % 4
      near = (down in (0, 1, 2)) and (right in (0, 1, 3)) and not down * right
      self.assertAlmostEqual(weights[i, j], near / 5)

  def test_torus_is_as_square_as_it_can_be(self):
    for n, rows in ((12, 3), (16, 4), (7, 1), (10, 2)):
      np.testing.assert_array_equal(
        pr.graphs.torus().matrices(n), pr.graphs.torus(rows).matrices(n)
      )

  def test_exponential_takes_from_powers_of_two_before(self):
    weights = pr.graphs.exponential().matrices(6)[0]
    for i, j in itertools.product(range(6), range(6)):
      self.assertAlmostEqual(weights[i, j], ((i - j) % 6 in (0, 1, 2, 4)) / 4)

  def test_one_peer_exponential_takes_turns(self):
    matrices = pr.graphs.one_peer_exponential().matrices(8)
    self.assertLen(matrices, 3)
    for k, weights in enumerate(matrices):
      for i, j in itertools.product(range(8), range(8)):
        self.assertEqual(weights[i, j], ((i - j) % 8 in (0, 2**k)) / 2)

  def test_nodes_are_replicas_in_their_order(self):
    graph = nx.Graph()
    graph.add_nodes_from('cab')
    graph.add_edges_from(['ca', 'ab', 'aa'])
    weights = pr.graphs.metropolis_hastings(graph)
    want = np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3
    np.testing.assert_allclose(weights, want)

  @parameterized.parameters(2, 4, 6, 8, 16)
  def test_random_matching_has_every_pair_equally_often(self, n):
    matrices = pr.graphs.random_matching().matrices(n)
    self.assertLen(matrices, n - 1)
    pairs = (matrices == 0.5).sum(axis=0) - (n - 1) * np.eye(n)
    np.testing.assert_array_equal(pairs, 1 - np.eye(n))
    for weights in matrices:
      np.testing.assert_array_equal(weights @ weights, weights)
      self.assertEqual((weights > 0).sum(), 2 * n)

  def test_random_matching_on_a_graph_has_every_edge_once(self):
    graph = nx.petersen_graph()
    matrices = pr.graphs.random_matching(graph).matrices(10)
    met = sum(np.sign(w) - np.diag(np.ones(10)) for w in matrices)
    np.testing.assert_array_equal(met, nx.to_numpy_array(graph))
    for weights in matrices:
      np.testing.assert_array_equal(weights @ weights, weights)
    # An even ring has two colors.
    self.assertLen(pr.graphs.random_matching(nx.cycle_graph(8)).matrices(8), 2)

  @parameterized.parameters(3, 8)
  def test_random_neighbor_is_uniform_among_the_others(self, n):
    expected = pr.graphs.random_neighbor().matrices(n).mean(axis=0)
    others = (1 - np.eye(n)) / (n - 1)
    np.testing.assert_allclose(expected, (np.eye(n) + others) / 2)


class DrawsTest(parameterized.TestCase):
  @parameterized.parameters(
    (pr.graphs.random_matching, 8), (pr.graphs.random_neighbor, 5)
  )
  def test_all_are_drawn_equally_often(self, make, n):
    mixing = make()
    choices = len(mixing.matrices(n))
    draw = jax.vmap(
      lambda s: jax.random.randint(jax.random.key(s), (), 0, choices)
    )
    counts = np.bincount(draw(np.arange(1000 * choices)), minlength=choices)
    # Five standard deviations of a count of mean 1000.
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1000))

  def test_all_replicas_share_the_draw(self):
    # Keys that differ from replica to replica would not give a matching.
    mixing = pr.graphs.random_matching()
    out, chosen = rounds(mixing, 8, 4, np.eye(8, dtype=np.float32))
    self.assertGreater(len(set(chosen)), 2)
    for got, k in zip(out, chosen):
      np.testing.assert_array_equal(got, mixing.matrices(8)[k])


class ManyReplicasTest(parameterized.TestCase):
  """The size of a program does not grow with N, but with the devices."""

  def program(self, make, n, d):
    mesh = pr.engine.ReplicaMesh(n, d)
    fn = mesh.map(lambda x: make().apply(x, harness.bare_context(mesh)))
    jaxpr = jax.make_jaxpr(fn)(jnp.zeros((d, n // d, 2))).jaxpr
    equations = [eqn for eqn, _ in harness.equations(jaxpr)]
    branches = [
      len(eqn.params['branches'])
      for eqn in equations
      if eqn.primitive.name == 'cond'
    ]
    return len(equations), branches

  @parameterized.parameters(
    pr.graphs.random_matching, pr.graphs.random_neighbor,
    pr.graphs.independent_neighbors,
    pr.graphs.ring, pr.graphs.torus, pr.graphs.hypercube, pr.graphs.exponential,
    pr.graphs.one_peer_exponential,
    pr.graphs.base_graph,
  )  # fmt: skip
  def test_on_one_device(self, make):
    count, branches = self.program(make, 1024, 1)
    self.assertLess(count, 400)
    self.assertLess(max(branches, default=0), 20)

  @parameterized.parameters(
    (pr.graphs.random_matching, [4, 4]), (pr.graphs.random_neighbor, [4])
  )
  def test_one_branch_for_each_device(self, make, branches):
    for n in (8, 64, 1024):
      self.assertEqual(self.program(make, n, 4)[1], branches)

  @parameterized.parameters(
    (64, 1), (64, 2), (64, 8), (30, 5), (1024, 1), (1024, 4)
  )
  def test_matchings_are_matchings(self, n, d):
    mesh = pr.engine.ReplicaMesh(n, d)
    draw = functools.partial(jax.random.randint, shape=(), minval=0)

    def fn(x, seed):
      key = jax.random.key(seed, impl='threefry2x32')
      context = harness.bare_context(mesh)._replace(shared_key=key)
      return pr.graphs.random_matching().apply(x, context)

    mapped, weights = mesh.map(fn), pr.graphs.random_matching().weights(n)
    x = mesh.place(np.arange(n, dtype=np.float32))
    for t in range(6):
      key = jax.random.key(t, impl='threefry2x32')
      turn = int(draw(key, maxval=n - 1, dtype=jnp.int32))
      got = mesh.gather(mapped(x, mesh.replicate(np.int32(t))))
      np.testing.assert_array_equal(got, weights.matrix(turn) @ np.arange(n))


class SparsityTest(parameterized.TestCase):
  """One replica per device: each edge is one message."""

  @parameterized.parameters(*sizes(ALL))
  def test_messages_are_the_links(self, name, n):
    mixing = ALL[name][0]()
    mesh = pr.engine.ReplicaMesh(n, n)
    for weights in mixing.matrices(n):
      fixed = mixings.sparse(of_size(weights))
      fn = mesh.map(lambda x, w=fixed: w.apply(x, harness.bare_context(mesh)))
      found = harness.collectives_of(fn, jnp.zeros((n, 1, 5)))
      links = links_of(weights)
      pairs = [pair for sent in found for pair in sent.params['perm']]
      self.assertLen(pairs, len(links))
      self.assertEqual(set(pairs), links)
      degree = np.sign(weights) - np.diag(np.sign(np.diag(weights)))
      self.assertLen(found, int(max(degree.sum(0).max(), degree.sum(1).max())))
      for sent in found:
        self.assertEqual(sent.name, 'ppermute')
        self.assertEqual(sent.operands[0].shape, (1, 5))

  def test_ring_is_two_messages(self):
    found = messages(pr.graphs.ring(), 8, 8)
    self.assertLen(found, 2)
    perms = {tuple(sorted(sent.params['perm'])) for sent in found}
    up = tuple((i, (i + 1) % 8) for i in range(8))
    down = tuple((i, (i - 1) % 8) for i in range(8))
    self.assertEqual(perms, {up, down})
    self.assertFalse(any(sent.conditional for sent in found))

  @parameterized.parameters(
    (pr.graphs.random_matching, 7), (pr.graphs.one_peer_exponential, 3)
  )
  def test_every_branch_of_a_switch_is_one_message(self, make, num_branches):
    mixing = make()
    mesh = pr.engine.ReplicaMesh(8, 8)
    fn = mesh.map(lambda x: mixing.apply(x, harness.bare_context(mesh)))
    jaxpr = jax.make_jaxpr(fn)(jnp.zeros((8, 1, 5))).jaxpr
    switches = [
      eqn for eqn, _ in harness.equations(jaxpr) if eqn.primitive.name == 'cond'
    ]
    self.assertLen(switches, 1)
    branches = switches[0].params['branches']
    self.assertLen(branches, num_branches)
    for weights, branch in zip(mixing.matrices(8), branches):
      sent = [
        eqn
        for eqn, _ in harness.equations(branch.jaxpr)
        if eqn.primitive.name == 'ppermute'
      ]
      self.assertLen(sent, 1)
      self.assertEqual(set(sent[0].params['perm']), links_of(weights))

  @parameterized.parameters(
    pr.graphs.ring, pr.graphs.star, pr.graphs.exponential,
    pr.graphs.one_peer_exponential,
    pr.graphs.random_matching,
  )  # fmt: skip
  def test_compiled_step_permutes_and_gathers_nothing(self, make):
    algorithm = pr.d_psgd(optax.sgd(0.1), mixing=make())
    mesh = pr.engine.ReplicaMesh(8, 8)
    start = harness.to_tree(np.zeros(6, np.float32))
    state = pr.engine.create_train_state(mesh, algorithm, start)
    problem = reference.make_problem(8, 1)
    batch = harness.problem_batches(mesh, problem, [0], np.float32)
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, harness.problem_loss
    )
    text = train_steps.lower(state, batch).compile().as_text()
    self.assertIn('collective-permute', text)
    for other in ('all-gather', 'all-reduce', 'all-to-all'):
      self.assertNotIn(other, text)

  @parameterized.parameters(
    # Bytes and latencies of 120 bytes by the replica that sends most.
    (pr.graphs.star(), 8, (840.0, 7)),
    (pr.graphs.complete(), 8, (840.0, 7)),
    (pr.graphs.hypercube(), 8, (360.0, 3)),
    (pr.graphs.exponential(), 8, (360.0, 3)),
    (pr.graphs.torus(), 16, (480.0, 4)),
    (pr.graphs.one_peer_exponential(), 8, (120.0, 1)),
    (pr.graphs.random_matching(), 8, (120.0, 1)),
    (pr.graphs.random_neighbor(), 8, (120.0, 1)),
    (pr.graphs.base_graph(1), 12, (120.0, 1)),
    # Three neighbors in one round, one in the next.
    (pr.graphs.base_graph(3), 8, (240.0, 2)),
    # One of five replicas has no partner in a round.
    (pr.graphs.random_matching(nx.complete_graph(5)), 5, (96.0, 1)),
    (pr.graphs.graph(DIRECTED), 6, (240.0, 2)),
    (pr.graphs.graph(
        np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]]) / [[3], [1], [1]]),
     3, (240.0, 2)),
  )  # fmt: skip
  def test_message(self, mixing, n, expected):
    self.assertEqual(tuple(mixing.message(120.0, n)), (*expected, 'neighbor'))
    self.assertEqual(mixing.coded_message(30.0, n).bytes_sent, expected[0] / 4)

  @parameterized.product(k=(1, 2, 3), n=(5, 12))
  def test_graphs_that_take_turns_send_what_the_matrices_say(self, k, n):
    mixing = pr.graphs.base_graph(k)
    matrices = mixing.matrices(n)
    models = np.zeros(n)
    for w in matrices:
      models += (w != 0).sum(axis=0) - (np.diag(w) != 0)
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    algorithm = pr.d_psgd(optax.sgd(0.1), mixing=mixing)
    account = pr.ledger.account(algorithm, shapes, n, len(matrices))
    self.assertAlmostEqual(account.bytes_sent[-1], 12 * models.max())


class RoundsTest(parameterized.TestCase):
  """Several matrices of one run."""

  def run_sync(self, mixing, n, num_steps, period=1):
    """x after some steps of `sync` only, from x_i = e_i."""
    algorithm = pr.chain(pr.at(pr.schedules.every(period), pr.sync(mixing)))
    mesh = pr.engine.ReplicaMesh(n, 2)
    with jax.enable_x64(True):
      state = pr.engine.create_train_state(
        mesh, algorithm, np.eye(n), per_replica=True
      )
      train_steps = pr.engine.make_train_steps(mesh, algorithm, lambda *args: 0)
      none = mesh.place_per_device(np.zeros((2, num_steps, n // 2)))
      state, _ = train_steps(state, none)
      return mesh.gather(state.params)

  @parameterized.parameters(2, 4, 8)
  def test_one_peer_exponential_is_exact_in_log_n_rounds(self, n):
    num_rounds = n.bit_length() - 1
    x = self.run_sync(pr.graphs.one_peer_exponential(), n, num_rounds)
    np.testing.assert_array_equal(x, np.full((n, n), 1 / n))

  def test_one_peer_exponential_is_not_exact_for_six(self):
    x = self.run_sync(pr.graphs.one_peer_exponential(), 6, 3)
    self.assertGreater(np.abs(x - 1 / 6).max(), 0.05)

  @parameterized.parameters(2, 3, 4)
  def test_turns_are_of_rounds_and_not_of_steps(self, period):
    # At n = 4 there are two W; every second step would always have the same.
    x = self.run_sync(pr.graphs.one_peer_exponential(), 4, 2 * period, period)
    np.testing.assert_array_equal(x, np.full((4, 4), 1 / 4))

  def test_pairs_change_from_step_to_step(self):
    x = self.run_sync(pr.graphs.random_matching(), 8, 12)
    self.assertLess(np.abs(x - 1 / 8).max(), 0.05)
    np.testing.assert_allclose(x.sum(axis=0), 1, rtol=0, atol=1e-15)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      lambda: pr.graphs.graph(np.eye(3)[:2]),
      r'square matrix \[N, N\], got .*\(2, 3',
    ),
    (
      lambda: pr.graphs.graph(np.diag([1, 0.5])),
      'that sum to 1, got 0.5 in row 1',
    ),
    (
      lambda: pr.graphs.graph(np.eye(3)),
      r'connect all replicas both ways, got 3 parts, one of which is \[0\]',
    ),
    (
      lambda: pr.graphs.graph(
        np.array([[1.0, 0], [0.5, 0.5]])
      ),  # 1 takes from 0 only
      'connect all replicas both ways, got 2 parts',
    ),
    (lambda: pr.graphs.graph(nx.empty_graph(2)), 'got 2 parts'),
    (
      lambda: pr.graphs.graph(nx.DiGraph([(0, 1)])),
      'undirected .*, got DiGraph',
    ),
    (
      lambda: pr.graphs.graph(nx.from_numpy_array(np.full((2, 2), 0.5))),
      'no edge weights, .* pass the matrix W',
    ),
    (lambda: pr.graphs.random_matching(nx.DiGraph([(0, 1)])), 'got DiGraph'),
    (
      lambda: pr.graphs.random_matching(np.eye(2)),
      'undirected .*, got ndarray',
    ),
    (lambda: pr.graphs.random_matching(nx.empty_graph(2)), 'got 2 parts'),
    (
      lambda: pr.graphs.metropolis_hastings(nx.DiGraph([(0, 1)])),
      'got DiGraph',
    ),
    (
      lambda: pr.graphs.metropolis_hastings(nx.MultiDiGraph([(0, 1)])),
      'undirected',
    ),
    (
      lambda: pr.graphs.metropolis_hastings(np.eye(2)),
      'undirected .*, got ndarray',
    ),
    (lambda: pr.graphs.metropolis_hastings(nx.Graph()), 'at least one node'),
    (
      lambda: pr.graphs.metropolis_hastings(
        nx.from_numpy_array(np.full((2, 2), 0.5))
      ),
      'no edge weights',
    ),
    (lambda: pr.graphs.matcha(nx.DiGraph([(0, 1)])), 'got DiGraph'),
    (
      lambda: pr.graphs.matcha(nx.path_graph(2), budget=math.nan),
      'budget must be',
    ),
    (
      lambda: pr.graphs.ring(math.nan),
      r'self_weight must be in \[0, 1\), got nan',
    ),
    (lambda: pr.graphs.erdos_renyi(0.5, seed=-1), 'seed must be .*, got -1'),
    (
      lambda: pr.graphs.erdos_renyi(0.5, seed=2**32),
      'seed must be .* 4294967296',
    ),
    (lambda: pr.graphs.erdos_renyi(0.5, seed=1.5), 'seed must be .*, got 1.5'),
    (
      lambda: pr.graphs.erdos_renyi(0.0),
      r'edge_probability must be in \(0, 1\]',
    ),
    (lambda: pr.graphs.erdos_renyi(float('nan')), r'in \(0, 1\], got nan'),
    (lambda: pr.graphs.torus(0), 'num_rows must be an integer >= 1, got 0'),
    (lambda: pr.graphs.ring(1.0), r'self_weight must be in \[0, 1\), got 1.0'),
    (
      lambda: pr.graphs.torus(3).matrices(8),
      'num_rows must divide the 8 .*, got 3',
    ),
    (
      lambda: pr.graphs.hypercube().matrices(6),
      r'requires 2\^k replicas, got 6',
    ),
    (
      lambda: pr.graphs.random_matching().matrices(5),
      r'even number of replicas, got 5; .* networkx.complete_graph\(5\)',
    ),
    (
      lambda: pr.graphs.erdos_renyi(0.01).matrices(8),
      'seed=0 and edge_probability=0.01 does not connect the 8 replicas',
    ),
    (lambda: pr.graphs.graph(DIRECTED).matrices(8), r'\[8, 8\].*got \(6, 6\)'),
    (lambda: pr.graphs.graph(PATH).matrices(8), r'\[8, 8\].*got \(6, 6\)'),
    (
      lambda: pr.graphs.random_matching(PATH).matrices(8),
      r'\[8, 8\].*got \(6, 6\)',
    ),
  )
  def test_refused_in_one_line(self, make, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      make()
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    pr.graphs.graph, pr.graphs.random_matching, pr.graphs.matcha
  )
  def test_loops_and_parallel_edges_are_those_of_a_simple_graph(self, make):
    simple = nx.cycle_graph(6)
    other = nx.MultiGraph(simple)
    other.add_edge(0, 1)
    other.add_edge(2, 2)
    np.testing.assert_array_equal(
      pr.graphs.metropolis_hastings(other),
      pr.graphs.metropolis_hastings(simple),
    )
    if make is not pr.graphs.matcha:
      want = make(simple).matrices(6)
      np.testing.assert_array_equal(make(other).matrices(6), want)

  @parameterized.parameters(np.int64, np.uint64, np.int32)
  def test_a_seed_may_be_of_numpy(self, kind):
    np.testing.assert_array_equal(
      pr.graphs.erdos_renyi(0.9, seed=kind(3)).matrices(4),
      pr.graphs.erdos_renyi(0.9, seed=3).matrices(4),
    )

  @parameterized.parameters(
    (functools.partial(pr.d_psgd), 'rows that sum to 1, got .*use it with pr.'),
  )
  def test_columns_alone_are_for_push_sum(self, algorithm, message):
    algorithm = algorithm(optax.sgd(0.1), mixing=pr.graphs.graph(DIRECTED))
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(6), algorithm, np.zeros(2)
      )


if __name__ == '__main__':
  absltest.main()

"""WITH WHOM, by chance: mixings that draw new links in each round.

All replicas draw alike, with the key that they share.
"""

import operator
from typing import TYPE_CHECKING

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree, Context, over_block
from prsgd_jax.checks import check_fraction
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.graphs.fixed import check_graph
from prsgd_jax.mixing.matrices import (
  Weights,
  check_connected,
  from_links,
  of_size,
  pairs,
)
from prsgd_jax.mixing.mixings import (
  Decode,
  Message,
  Mixing,
  draw_turn,
  scaled_rows,
  sparse,
)

if TYPE_CHECKING:
  import networkx as nx
  from scipy.sparse import csr_array


def random_matching(graph: 'nx.Graph | None' = None) -> Mixing:
  """Random pairs, each of which takes its mean; every pair equally likely.

  One of a few matchings is drawn in each round with the key that all replicas
  share: of the N - 1 perfect ones of the circle method or, with a graph, of the
  color classes of its edges, in which some replicas may be left alone. This is
  how DPSGD's "random neighbor" is read here by default: doubly stochastic, one
  model sent.

  Args:
    graph: the pairs there may be, undirected, its nodes in their order the
      replicas; any two if None.

  Raises:
    ValueError: if the graph is none, is directed or does not connect all
      replicas; from `Mixing.weights`, if it is not of the number of replicas,
      or that is odd and there is no graph.

  Reference:
    Zhang, Liu, Mingo, Zhang, Kailkhura, Cui et al. 2021, Loss landscape
    dependent self-adjusting learning rates in decentralized stochastic gradient
    descent (arXiv 2112.01433). The paper does not say more of how neighbors
    are drawn than that they are random.
  """
  if graph is not None:
    check_graph(graph)
    matchings = [pairs(partner) for partner in edge_colors(graph)]
    check_connected(matchings)
    return sparse(of_size(matchings), random=True)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    weights(n)  # checks that it is even
    turn = draw_turn(context.shared_key, n - 1)
    return _mean_of_two(tree, collectives.meet(tree, turn), decode)

  def weights(num_replicas: int) -> Weights:
    if num_replicas % 2:
      raise ValueError(
        'random_matching needs an even number of replicas, got '
        f'{num_replicas}; give it networkx.complete_graph({num_replicas}), '
        'which leaves one replica alone in each round, or use '
        'pr.graphs.random_neighbor()'
      )
    index = np.arange(num_replicas)
    return Weights(
      lambda r: pairs(collectives.partner(index, r, num_replicas)),
      num_replicas - 1,
      sums=(True, True),
    )

  return Mixing(apply, weights, _one_payload, _one_payload, random=True)


def edge_colors(graph: 'nx.Graph') -> list[np.ndarray]:
  """Matchings that have each edge once, as partners: oneself for nobody."""
  import networkx as nx

  index = {node: i for i, node in enumerate(graph)}
  simple = nx.Graph((index[u], index[v]) for u, v in graph.edges() if u != v)
  colors = nx.greedy_color(nx.line_graph(simple), 'DSATUR')
  matchings = np.tile(
    np.arange(len(index)), (max(colors.values(), default=0) + 1, 1)
  )
  for (i, j), color in colors.items():
    matchings[color, [i, j]] = j, i
  return list(matchings)


def random_neighbor() -> Mixing:
  """x_i <- (x_i + x_{i - k}) / 2 with k in 1 .. N - 1 drawn for all in a round.

  Each replica's neighbor is uniform among the others, and is not in turn mixed
  with it. Each sends one model, and the mean is kept. In
  `independent_neighbors` each replica draws its own.
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    if n == 1:
      return _mean_of_two(tree, tree, decode)
    k = 1 + draw_turn(context.shared_key, n - 1)
    return _mean_of_two(tree, collectives.shift_by(tree, k), decode)

  def weights(num_replicas: int) -> Weights:
    index = np.arange(num_replicas)
    return Weights(
      lambda turn: pairs((index - 1 - turn) % num_replicas),
      max(num_replicas - 1, 1),
      sums=(True, True),
    )

  return Mixing(apply, weights, _one_payload, _one_payload, random=True)


def independent_neighbors() -> Mixing:
  """x_i <- (x_i + x_{j(i)}) / 2, each replica drawing its own neighbor j(i).

  j(i) is uniform among the others, and not in turn mixed with i. The rows of W
  sum to 1, but not its columns: replicas that several others draw weigh more,
  and the mean is kept in expectation only. This is the other reading of DPSGD's
  "random neighbor" (see `random_matching`).

  Who is drawn by whom is not known beforehand, so that across devices all
  models are gathered. The message is the ring all-gather: N - 1 payloads in
  N - 1 latencies, which is also the most that one replica may be asked for. In
  the modeled time a replica waits for its own neighbor only.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.d_psgd(
    ...     optax.sgd(0.1), mixing=pr.graphs.independent_neighbors())

  Reference:
    Zhang, Liu, Mingo, Zhang, Kailkhura, Cui et al. 2021, Loss landscape
    dependent self-adjusting learning rates in decentralized stochastic gradient
    descent (arXiv 2112.01433), which does not say how neighbors are drawn.
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    if n == 1:
      return _mean_of_two(tree, tree, decode)
    # All draw for all: across devices a replica cannot ask first.
    further = draw_turn(context.shared_key, n - 1, (n,))[context.replica]
    neighbor = (context.replica + 1 + further) % n
    everyone = collectives.all_gather(tree)
    drawn = jax.tree.map(lambda x: x[neighbor], everyone)
    return _mean_of_two(tree, drawn, decode)

  def weights(num_replicas: int) -> Weights:
    index = np.arange(num_replicas)

    def draw(generator: np.random.Generator) -> np.ndarray:
      others = max(num_replicas - 1, 1)
      further = generator.integers(others, size=num_replicas)
      return (index + 1 + further) % num_replicas

    return Weights(pairs, None, draw, sums=(True, num_replicas < 3))

  def message(payload_bytes: float, num_replicas: int) -> Message:
    others = num_replicas - 1
    return Message(others * payload_bytes, others, 'neighbor')

  return Mixing(apply, weights, message, message, random=True)


def _mean_of_two(
  own: ArrayTree, other: ArrayTree, decode: Decode | None
) -> ArrayTree:
  if decode is not None:
    own, other = over_block(decode)(own), over_block(decode)(other)
  return jax.tree.map(lambda x, y: 0.5 * x + 0.5 * y, own, other)


def _one_payload(payload_bytes: float, num_replicas: int) -> Message:
  sent = min(num_replicas - 1, 1)
  return Message(sent * payload_bytes, sent, 'neighbor')


def matcha(graph: 'nx.Graph', *, budget: float = 0.5) -> Mixing:
  """MATCHA: each matching of a graph is active with probability p in a round.

    W = I - alpha sum_j b_j L_j,  b_j = 1 with probability p, otherwise 0

  L_j is the Laplacian of the j-th of M disjoint matchings that make up the
  graph; alpha makes the spectral norm of E[W'W] - 11'/N smallest, which is the
  factor by which a round reduces E |x - xbar|^2. W is symmetric and doubly
  stochastic. With p = 1 it is I - alpha L in every round.

  The message is the expected one: p times the neighbors of the replica that
  has most, and p M latencies.

  Args:
    graph: the edges there may be, undirected, its nodes in their order the
      replicas.
    budget: p, in (0, 1], the expected share of matchings that are active.

  Raises:
    ValueError: if the budget is not in (0, 1]; if the graph is none, is
      directed, has fewer than two nodes or does not connect them; from
      `Mixing.weights`, if it is not of the number of replicas.

  Example:
    >>> import networkx as nx, prsgd_jax as pr
    >>> mixing = pr.graphs.matcha(nx.cycle_graph(8), budget=0.5)
    >>> mixing.message(100.0, 8)  # half of the ring's two neighbors
    Message(bytes_sent=100.0, latencies=1.0, tier='neighbor')

  Reference:
    Wang, Sahu, Yang, Joshi, Kar 2019, MATCHA: speeding up decentralized SGD via
    matching decomposition sampling (arXiv 1905.09435). There the probabilities
    are optimized within the budget; here they are equal. The matchings are
    those of a greedy coloring, which may be more than the paper's.
  """
  budget = check_fraction('budget', budget)
  check_graph(graph)
  if len(graph) < 2:
    raise ValueError(f'graph must have two nodes or more, got {len(graph)}')
  matchings = np.array(edge_colors(graph))
  laplacians = [_laplacian(partner) for partner in matchings]
  whole = sum(laplacians[1:], start=laplacians[0])
  check_connected([whole])
  alpha = best_alpha(whole.toarray(), budget)
  if budget == 1:
    return sparse(of_size([_step(alpha, [whole])]))
  num_matchings, size = matchings.shape
  met = matchings != np.arange(size)
  most = int(met.sum(axis=0).max())
  sources = np.where(met, matchings, -1)
  scales = np.where(met, alpha, 0.0)

  def matrix(turn: int) -> 'csr_array':
    active = [each for j, each in enumerate(laplacians) if turn >> j & 1]
    return _step(alpha, [0 * whole, *active])

  def draw(generator: np.random.Generator) -> int:
    flips = generator.random(num_matchings) < budget
    return sum(1 << j for j in np.flatnonzero(flips).tolist())

  of_all = of_size([whole])

  def weights(num_replicas: int) -> Weights:
    of_all(num_replicas)  # checks the number
    return Weights(matrix, 2**num_matchings, draw, sums=(True, True))

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    # float32 whether or not x64 is enabled, or the draws would differ.
    uniform = jax.random.uniform(
      context.shared_key, (num_matchings,), jnp.float32
    )
    active = uniform < budget
    unpack = over_block(decode) if decode is not None else lambda tree: tree
    neighbors = (active[:, None] & jnp.asarray(met)[:, context.replica]).sum(0)

    def keep(x: Array) -> Array:
      kept = 1 - alpha * neighbors.astype(x.dtype)
      return over_block(operator.mul)(kept, x)

    total = jax.tree.map(keep, unpack(tree))
    for source, scale, fires in zip(sources, scales, active, strict=True):

      def receive(
        total: ArrayTree, source: np.ndarray = source, scale: np.ndarray = scale
      ) -> ArrayTree:
        came = unpack(collectives.permute(tree, source))
        scaled = scaled_rows(came, scale, context.replica)
        return jax.tree.map(operator.add, total, scaled)

      total = lax.cond(fires, receive, lambda total: total, total)
    return total

  def message(payload_bytes: float, num_replicas: int) -> Message:
    del num_replicas
    sent = budget * most * payload_bytes
    return Message(sent, budget * num_matchings, 'neighbor')

  return Mixing(apply, weights, message, message, random=True)


def best_alpha(laplacian: np.ndarray, budget: float) -> float:
  """Returns the alpha of the smallest spectral norm of E[W'W] - 11'/N.

  With E[W'W] = I - 2 alpha p L + alpha^2 (p^2 L^2 + 2 p (1 - p) L) it is the
  larger one of two parabolas in alpha, those of the smallest eigenvalue of L
  besides 0 and of the largest. It is smallest where they meet, or at the
  minimum of the first if that comes before.
  """
  low, high = np.linalg.eigvalsh(laplacian)[[1, -1]]
  rest = 1 - budget
  meet = 2 / (budget * (low + high) + 2 * rest)
  return float(min(meet, 1 / (budget * low + 2 * rest)))


def _laplacian(partner: np.ndarray) -> 'csr_array':
  """That of a matching, which has oneself for nobody."""
  index = np.arange(len(partner))
  met = np.flatnonzero(partner != index)
  return from_links(
    len(index),
    np.concatenate([met, met]),
    np.concatenate([met, partner[met]]),
    np.repeat([1.0, -1.0], len(met)),
  )


def _step(alpha: float, laplacians: list['csr_array']) -> 'csr_array':
  """I - alpha sum_j L_j."""
  from scipy.sparse import csr_array, eye_array

  total = sum(laplacians[1:], start=laplacians[0])
  return csr_array(eye_array(total.shape[0]) - alpha * total)

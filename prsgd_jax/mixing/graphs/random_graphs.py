"""WITH WHOM: random graphs, which draw new links in each round.

All replicas draw equal links, because they use the shared key.
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
from prsgd_jax.mixing.decoding import scaled_rows
from prsgd_jax.mixing.graphs.edge_coloring import edge_colors
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
  sparse,
)

if TYPE_CHECKING:
  import networkx as nx
  from scipy.sparse import csr_array

# The most messages in the branches of a switch between matchings. Beyond it,
# replicas gather all models, because the program would not compile in time.
MOST_LISTED = 256


def random_matching(graph: 'nx.Graph | None' = None) -> Mixing:
  """Return the mixing that averages random pairs of replicas.

  Each round draws one of a few matchings: one of the N - 1 perfect matchings of
  the circle method; or, with a graph, one of the color classes of its edges, in
  which some replicas may have no partner. All pairs are equally likely. It is
  the default reading of DPSGD's "random neighbor": W is doubly stochastic, and
  a replica sends one model.

  Args:
    graph: an undirected networkx graph of the allowed pairs, whose nodes are
      the replicas in order. Default: all pairs.

  Raises:
    ValueError: if `graph` is not a graph, is directed or is not connected; from
      `Mixing.weights`, if the number of nodes is not N, or if N is odd and no
      graph is given.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.random_matching().matrices(4).shape  # N - 1 matchings
    (3, 4, 4)

  Reference:
    Zhang, Liu, Feng, Cui, Kingsbury, Tu 2021, Loss landscape dependent
    self-adjusting learning rates in decentralized stochastic gradient descent
    (arXiv 2112.01433). The paper does not state how the random
    neighbors are drawn.
  """
  if graph is not None:
    check_graph(graph)
    return _one_of(edge_colors(graph))

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    weights(n)  # raises if n is odd
    turn = draw_turn(context.shared_key, n - 1)
    return _mean_of_two(tree, collectives.meet(tree, turn), decode)

  def weights(num_replicas: int) -> Weights:
    if num_replicas % 2:
      raise ValueError(
        'random_matching requires an even number of replicas, got '
        f'{num_replicas}; pass networkx.complete_graph({num_replicas}), '
        'which leaves one replica without a partner in each round, or use '
        'pr.graphs.random_neighbor()'
      )
    index = np.arange(num_replicas)
    return Weights(
      lambda r: pairs(collectives.partner(index, r, num_replicas)),
      num_replicas - 1,
      sums=(True, True),
    )

  return Mixing(apply, weights, _one_payload, _one_payload, random=True)


def _one_of(partners: list[np.ndarray]) -> Mixing:
  """Return the mixing that averages the pairs of one of several matchings."""
  matchings = [pairs(partner) for partner in partners]
  check_connected(matchings)
  by_switch = sparse(of_size(matchings), random=True)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    by_switch.weights(n)  # raises if the graph has another number of nodes
    block = context.replica.shape[0]
    num_devices = n // block
    messages = len(partners) * min(block, 2 * num_devices**2)
    if num_devices > 1 and messages <= MOST_LISTED:
      return by_switch.apply(tree, context, decode)
    turn = draw_turn(context.shared_key, len(partners))
    other = jnp.asarray(np.stack(partners))[turn, context.replica]
    everyone = collectives.all_gather(tree)
    return _mean_of_two(
      tree, jax.tree.map(lambda x: x[other], everyone), decode
    )

  return by_switch._replace(apply=apply)


def random_neighbor() -> Mixing:
  """Return the mixing with one random shift k for all replicas in a round.

    x_i <- (x_i + x_{i - k}) / 2,  k uniform in 1 .. N - 1

  The neighbor of a replica is uniform among the other replicas, and does not
  average with it in return. A replica sends one model, and the mean is kept.
  With `independent_neighbors` each replica draws its own neighbor.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.random_neighbor().matrices(3)[0].tolist()[0]
    [0.5, 0.0, 0.5]
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
  """Return the mixing in which each replica draws its own random neighbor.

    x_i <- (x_i + x_{j(i)}) / 2,  j(i) uniform among the other replicas

  j(i) does not average with i in return. The rows of W sum to 1, but the
  columns do not: a replica that several replicas draw has more weight. So the
  mean is kept only in expectation. It is another reading of DPSGD's "random
  neighbor" (see `random_matching`).

  All models are gathered, because the draws are not known in advance. The
  message is a ring all-gather, N - 1 payloads in N - 1 latencies, which is also
  the most that one replica may have to send. In the modeled time a replica
  waits only for its own neighbor.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.d_psgd(
    ...     optax.sgd(0.1), mixing=pr.graphs.independent_neighbors())

  Reference:
    Zhang, Liu, Feng, Cui, Kingsbury, Tu 2021, Loss landscape dependent
    self-adjusting learning rates in decentralized stochastic gradient descent
    (arXiv 2112.01433), which does not state how neighbors are drawn.
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    n = collectives.num_replicas(tree)
    if n == 1:
      return _mean_of_two(tree, tree, decode)
    # Draw the neighbors of all replicas, because a replica cannot ask for one.
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
  """Return MATCHA, which activates each matching of a graph at random.

    W = I - alpha sum_j b_j L_j,  b_j = 1 with probability p, otherwise 0

  L_j is the Laplacian of the j-th of M disjoint matchings, whose union is the
  graph. alpha minimizes the spectral norm of E[W'W] - 11'/N, the factor by
  which a round reduces E |x - xbar|^2. W is symmetric and doubly stochastic.
  With p = 1 it is I - alpha L in every round.

  The message is an expectation: p times the maximum degree, in p M latencies.

  Args:
    graph: an undirected networkx graph of the allowed edges, whose nodes are
      the replicas in order.
    budget: p, the expected fraction of active matchings, in (0, 1]. Default:
      0.5.

  Raises:
    ValueError: if `budget` is not in (0, 1]; if `graph` is not a graph, is
      directed, is not connected or has fewer than two nodes; from
      `Mixing.weights`, if the number of nodes is not N.

  Example:
    >>> import networkx as nx, prsgd_jax as pr
    >>> mixing = pr.graphs.matcha(nx.cycle_graph(8), budget=0.5)
    >>> mixing.message(100.0, 8)  # half of the ring's two neighbors
    Message(bytes_sent=100.0, latencies=1.0, tier='neighbor')

  Reference:
    Wang, Sahu, Yang, Joshi, Kar 2019, MATCHA: speeding up decentralized SGD via
    matching decomposition sampling (arXiv 1905.09435). The paper optimizes the
    probabilities within the budget; here they are equal. The matchings come
    from a greedy coloring, which may need more of them than the paper.
  """
  budget = check_fraction('budget', budget)
  check_graph(graph)
  if len(graph) < 2:
    raise ValueError(f'graph must have at least two nodes, got {len(graph)}')
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
    of_all(num_replicas)  # raises if the graph has another number of nodes
    return Weights(matrix, 2**num_matchings, draw, sums=(True, True))

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    # float32 always, because the draws would otherwise differ under x64.
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
  """Return the alpha that minimizes the spectral norm of E[W'W] - 11'/N.

  E[W'W] = I - 2 alpha p L + alpha^2 (p^2 L^2 + 2 p (1 - p) L), so the norm is
  the maximum of two parabolas in alpha: those for the smallest nonzero and the
  largest eigenvalue of L. The minimum is where the parabolas meet, or at the
  minimum of the first parabola if that comes earlier.
  """
  low, high = np.linalg.eigvalsh(laplacian)[[1, -1]]
  rest = 1 - budget
  meet = 2 / (budget * (low + high) + 2 * rest)
  return float(min(meet, 1 / (budget * low + 2 * rest)))


def _laplacian(partner: np.ndarray) -> 'csr_array':
  """Return the Laplacian of a matching; i is its own partner for none."""
  index = np.arange(len(partner))
  met = np.flatnonzero(partner != index)
  return from_links(
    len(index),
    np.concatenate([met, met]),
    np.concatenate([met, partner[met]]),
    np.repeat([1.0, -1.0], len(met)),
  )


def _step(alpha: float, laplacians: list['csr_array']) -> 'csr_array':
  """Return I - alpha sum_j L_j."""
  from scipy.sparse import csr_array, eye_array

  total = sum(laplacians[1:], start=laplacians[0])
  return csr_array(eye_array(total.shape[0]) - alpha * total)

"""WITH WHOM, by chance: mixings that draw their links anew in each round.

All replicas draw alike, with the key that they share.
"""

import jax
import networkx as nx
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import ArrayTree, Context, over_block
from prsgd_jax.graphs import check_graph
from prsgd_jax.matrices import (
  Weights,
  check_connected,
  of_size,
  pairs,
)
from prsgd_jax.mixing import (
  Decode,
  Message,
  Mixing,
  draw_turn,
  sparse,
)


def random_matching(graph: nx.Graph | None = None) -> Mixing:
  """Random pairs, each of which takes its mean; every pair equally likely.

  One of a few matchings is drawn in each round with the key that all replicas
  share: of the N - 1 perfect ones of the circle method or, with a graph, of the
  colour classes of its edges, in which some replicas may be left alone. This is
  how DPSGD's "random neighbour" is read here by default: doubly stochastic, one
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
    descent (arXiv 2112.01433). The paper does not say more of how neighbours
    are drawn than that they are random.
  """
  if graph is not None:
    check_graph(graph)
    matchings = [pairs(partner) for partner in edge_colours(graph)]
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
        'pr.random_neighbour()'
      )
    index = np.arange(num_replicas)
    return Weights(
      lambda r: pairs(collectives.partner(index, r, num_replicas)),
      num_replicas - 1,
      sums=(True, True),
    )

  return Mixing(apply, weights, _one_payload, _one_payload, random=True)


def edge_colours(graph: nx.Graph) -> list[np.ndarray]:
  """Matchings that have each edge once, as partners: oneself for nobody."""
  index = {node: i for i, node in enumerate(graph)}
  simple = nx.Graph((index[u], index[v]) for u, v in graph.edges() if u != v)
  colours = nx.greedy_color(nx.line_graph(simple), 'DSATUR')
  matchings = np.tile(
    np.arange(len(index)), (max(colours.values(), default=0) + 1, 1)
  )
  for (i, j), colour in colours.items():
    matchings[colour, [i, j]] = j, i
  return list(matchings)


def random_neighbour() -> Mixing:
  """x_i <- (x_i + x_{i - k}) / 2 with k in 1 .. N - 1 drawn for all in a round.

  Each replica's neighbour is uniform among the others, and is not in turn mixed
  with it. Each sends one model, and the mean is kept.
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


def _mean_of_two(
  own: ArrayTree, other: ArrayTree, decode: Decode | None
) -> ArrayTree:
  if decode is not None:
    own, other = over_block(decode)(own), over_block(decode)(other)
  return jax.tree.map(lambda x, y: 0.5 * x + 0.5 * y, own, other)


def _one_payload(payload_bytes: float, num_replicas: int) -> Message:
  sent = min(num_replicas - 1, 1)
  return Message(sent * payload_bytes, sent, 'neighbour')

"""WITH WHOM, by name: mixings along the edges of a graph of replicas.

Undirected graphs have Metropolis-Hastings weights, symmetric and doubly
stochastic: W_ij = 1 / (1 + max(d_i, d_j)) on an edge, the rest on the diagonal.
Each sends along its edges alone. Static ones are the same in every round; the
others have several matrices, which take turns. Those that are drawn by chance
are in `random_graphs.py`, exact ones for any number in `base_graphs.py`.
"""

from collections.abc import Callable
import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from prsgd_jax.checks import (
  check_fraction,
  check_number,
  check_positive_int,
  check_seed,
)
from prsgd_jax.mixing.matrices import (
  check_connected,
  check_stochastic,
  circulant,
  from_links,
  of_size,
)
from prsgd_jax.mixing.mixings import Mixing, sparse

if TYPE_CHECKING:
  import networkx as nx
  from scipy.sparse import csr_array


def graph(graph: 'nx.Graph | np.ndarray') -> Mixing:
  """Any static graph: a networkx graph, or the matrix W itself.

  Args:
    graph: an undirected graph whose nodes, in their order, are the replicas
      (Metropolis-Hastings weights), or float[N, N] with the caller's weights.

  Raises:
    ValueError: if the matrix is not square, not finite, or neither its rows nor
      its columns sum to one; if the graph is directed or does not connect all
      replicas; from `Mixing.weights`, if it is not of the number of replicas.
  """
  from scipy.sparse import csr_array

  # Imported if the graph is one of networkx, which a matrix does not need.
  networkx = sys.modules.get('networkx')
  if networkx is not None and isinstance(graph, networkx.Graph):
    check_graph(graph)
    weights = _metropolis_hastings(graph)
  else:
    weights = csr_array(check_stochastic(graph))
  check_connected([weights])
  return sparse(of_size([weights]))


def metropolis_hastings(graph: 'nx.Graph') -> np.ndarray:
  """W of an undirected graph, float64[N, N]: symmetric, doubly stochastic.

  Loops are left out, and parallel edges count once. The graph need not connect
  all replicas, as that of `pr.graphs.graph` must.

  Raises:
    ValueError: if the graph is none, is directed, has weights or no node.

  Example:
    >>> import networkx as nx
    >>> metropolis_hastings(nx.path_graph(3)).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]

  Reference:
    Xiao, Boyd, Lall 2005, A scheme for robust distributed sensor fusion based
    on average consensus, equation 8.
  """
  check_graph(graph)
  return _metropolis_hastings(graph).toarray()


def _metropolis_hastings(graph: 'nx.Graph') -> 'csr_array':
  from scipy.sparse import csr_array

  n, (i, j) = len(graph), undirected_links(graph)
  degree = np.bincount(i, minlength=n)
  weight = 1 / (1 + np.maximum(degree[i], degree[j]))
  neighbors = from_links(n, i, j, weight)
  index = np.arange(n)
  own = from_links(n, index, index, 1 - neighbors.sum(axis=1))
  return csr_array(neighbors + own)


def undirected_links(graph: 'nx.Graph') -> tuple[np.ndarray, np.ndarray]:
  """Returns (int[2 E], int[2 E]), each edge both ways, without loops."""
  index = {node: i for i, node in enumerate(graph)}
  edges = {frozenset((index[u], index[v])) for u, v in graph.edges() if u != v}
  both = np.array(sorted(map(sorted, edges)), int).reshape(-1, 2)
  return np.concatenate(both.T), np.concatenate(both[:, ::-1].T)


def ring(self_weight: float = 1 / 3) -> Mixing:
  """Each replica with its two neighbors on a ring.

  W_ii = w and W_i,i±1 = (1 - w) / 2; the two neighbors of N = 2 are one.

  Raises:
    ValueError: if `self_weight` is not in [0, 1).
  """
  self_weight = check_number(
    'self_weight', self_weight, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  side = (1 - self_weight) / 2
  return _circulants(lambda n: [{0: self_weight, 1: side, -1: side}])


def exponential() -> Mixing:
  """The static exponential graph: replica i takes from i - 1, i - 2, i - 4, ...

  Equal weights; directed, doubly stochastic, log2 N messages.

  Reference:
    Ying, Yuan, Chen, Hu, Pan, Yin 2021, Exponential graph is provably efficient
    for decentralized deep training (arXiv 2110.13363), equation 5 (its
    number was not verified).
  """

  def shifts(num_replicas: int) -> list[dict[int, float]]:
    hops = _hops(num_replicas)
    return [dict.fromkeys([0, *hops], 1 / (len(hops) + 1))]

  return _circulants(shifts)


def torus(num_rows: int | None = None) -> Mixing:
  """A grid closed in both directions; four neighbors each.

  Args:
    num_rows: the height; the divisor of N next below its root if None.

  Raises:
    ValueError: from `Mixing.weights`, if `num_rows` does not divide N.
  """
  if num_rows is not None:
    num_rows = check_positive_int('num_rows', num_rows)

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    rows = num_rows or max(
      d for d in range(1, math.isqrt(num_replicas) + 1) if num_replicas % d == 0
    )
    if num_replicas % rows:
      raise ValueError(
        f'num_rows must divide the {num_replicas} replicas, got {rows}'
      )
    return nx.grid_2d_graph(rows, num_replicas // rows, periodic=True)

  return _static(make)


def hypercube() -> Mixing:
  """Neighbors differ in one binary digit of their index: log2 N each.

  Raises:
    ValueError: from `Mixing.weights`, if N is not a power of two.
  """

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    if num_replicas & (num_replicas - 1):
      raise ValueError(
        f'a hypercube has a power of two of replicas, got {num_replicas}'
      )
    edges = [
      (i, i ^ bit) for i in range(num_replicas) for bit in _hops(num_replicas)
    ]
    made = nx.empty_graph(num_replicas)
    made.add_edges_from(edges)
    return made

  return _static(make)


def star() -> Mixing:
  """Replica 0 with every other one, which have no other neighbor."""

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    return nx.star_graph(num_replicas - 1)

  return _static(make)


def complete() -> Mixing:
  """Each replica with every other one: the mean, by N - 1 messages.

  What `mean` does with fewer bytes; it is here to compare with.
  """

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    return nx.complete_graph(num_replicas)

  return _static(make)


def erdos_renyi(edge_probability: float, *, seed: int = 0) -> Mixing:
  """A random graph that is drawn once, each edge by itself.

  Raises:
    ValueError: if the probability is not in (0, 1] or the seed not an integer;
      from `Mixing.weights`, if the graph that the seed gives is not connected.
  """
  edge_probability = check_fraction('edge_probability', edge_probability)
  seed = check_seed('seed', seed)

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    made = nx.gnp_random_graph(num_replicas, edge_probability, seed=seed)
    if not nx.is_connected(made):
      raise ValueError(
        f'the random graph of seed {seed} with edge probability '
        f'{edge_probability} does not connect the {num_replicas} replicas; '
        'try another seed or a higher probability'
      )
    return made

  return _static(make)


def one_peer_exponential() -> Mixing:
  """One neighbor a round: x_i <- (x_i + x_{i - 2^k}) / 2, k by turns.

  k = 0, 1, ... up to the last 2^k below N, and again from 0. For N a power of
  two, log2 N rounds are exactly the mean of all.

  Reference:
    Ying, Yuan, Chen, Hu, Pan, Yin 2021, Exponential graph is provably efficient
    for decentralized deep training (arXiv 2110.13363), equation 7 (its
    number was not verified); Assran, Loizou, Ballas, Rabbat 2019, Stochastic
    gradient push (arXiv 1811.10792).
  """

  return _circulants(lambda n: [_half(k) for k in _hops(n) or [0]])


def check_graph(graph: 'nx.Graph') -> None:
  import networkx as nx

  if not isinstance(graph, nx.Graph) or graph.is_directed():
    raise ValueError(
      'graph must be an undirected networkx graph, got '
      f'{type(graph).__name__}; of directed links give the matrix to '
      'pr.graphs.graph'
    )
  if not len(graph):
    raise ValueError('graph must have at least one node, got none')
  if any('weight' in data for _, _, data in graph.edges(data=True)):
    raise ValueError(
      'graph must have edges without weights, which get those of '
      'Metropolis-Hastings; to use your own give the matrix W to '
      'pr.graphs.graph'
    )


def _static(make: Callable[[int], 'nx.Graph']) -> Mixing:
  def matrices(num_replicas: int) -> list['csr_array']:
    made = _metropolis_hastings(make(num_replicas))
    check_connected([made])
    return [made]

  return sparse(matrices)


def _circulants(
  shifts: Callable[[int], list[dict[int, float]]],
) -> Mixing:
  """Graphs that look alike from every replica, each as shift -> weight."""
  return sparse(lambda n: [circulant(n, each) for each in shifts(n)])


def _half(k: int) -> dict[int, float]:
  return {0: 0.5, k: 0.5} if k else {0: 1.0}


def _hops(num_replicas: int) -> list[int]:
  """1, 2, 4, ... below N."""
  return [2**k for k in range((num_replicas - 1).bit_length())]

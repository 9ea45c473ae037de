"""WITH WHOM: named graphs of replicas.

Undirected graphs have Metropolis-Hastings weights, symmetric and doubly
stochastic: W_ij = 1 / (1 + max(d_i, d_j)) on an edge, the rest on the diagonal.
Replicas send only along edges. `one_peer_exponential` alternates between
several matrices; all other graphs use one matrix in every round.
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
  """Return the mixing along the edges of any static graph.

  Args:
    graph: an undirected networkx graph, whose nodes are the replicas in order,
      for Metropolis-Hastings weights; or the matrix W, float[N, N].

  Raises:
    ValueError: if the graph is directed or not connected; if the matrix is not
      square or not finite, or if neither its rows nor its columns sum to one;
      from `Mixing.weights`, if the number of nodes is not N.

  Example:
    >>> import networkx as nx, prsgd_jax as pr
    >>> path = pr.graphs.graph(nx.path_graph(2))
    >>> path.matrices(2)[0].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
  """
  from scipy.sparse import csr_array

  # Not imported here, because a matrix does not need networkx.
  networkx = sys.modules.get('networkx')
  if networkx is not None and isinstance(graph, networkx.Graph):
    check_graph(graph)
    weights = _metropolis_hastings(graph)
  else:
    weights = csr_array(check_stochastic(graph))
  check_connected([weights])
  return sparse(of_size([weights]))


def metropolis_hastings(graph: 'nx.Graph') -> np.ndarray:
  """Return the Metropolis-Hastings matrix W of an undirected graph.

  Loops are ignored, and parallel edges count once. The graph may be
  disconnected, unlike in `pr.graphs.graph`.

  Args:
    graph: an undirected networkx graph without edge weights.

  Returns:
    W, float64[N, N], symmetric and doubly stochastic.

  Raises:
    ValueError: if `graph` is not a graph, or if it is directed, has edge
      weights or has no nodes.

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
  return _weights_of_links(len(graph), *undirected_links(graph))


def _weights_of_links(n: int, i: np.ndarray, j: np.ndarray) -> 'csr_array':
  from scipy.sparse import csr_array

  degree = np.bincount(i, minlength=n)
  weight = 1 / (1 + np.maximum(degree[i], degree[j]))
  neighbors = from_links(n, i, j, weight)
  index = np.arange(n)
  own = from_links(n, index, index, 1 - neighbors.sum(axis=1))
  return csr_array(neighbors + own)


def undirected_links(graph: 'nx.Graph') -> tuple[np.ndarray, np.ndarray]:
  """Return (int[2 E], int[2 E]), the ends of each edge in both directions."""
  index = {node: i for i, node in enumerate(graph)}
  edges = {frozenset((index[u], index[v])) for u, v in graph.edges() if u != v}
  both = np.array(sorted(map(sorted, edges)), int).reshape(-1, 2)
  return np.concatenate(both.T), np.concatenate(both[:, ::-1].T)


def ring(self_weight: float = 1 / 3) -> Mixing:
  """Return the ring, on which each replica has two neighbors.

  W_ii = w and W_i,i±1 = (1 - w) / 2. For N = 2 both neighbors are one replica.

  Args:
    self_weight: w, the weight of the replica itself, in [0, 1). Default: 1/3.

  Raises:
    ValueError: if `self_weight` is not in [0, 1).

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.ring(0.5).matrices(4)[0].tolist()[0]
    [0.5, 0.25, 0.0, 0.25]
  """
  self_weight = check_number(
    'self_weight', self_weight, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  side = (1 - self_weight) / 2
  return _circulants(lambda n: [{0: self_weight, 1: side, -1: side}])


def exponential() -> Mixing:
  """Return the static exponential graph, with senders i - 1, i - 2, i - 4, ...

  It is directed and doubly stochastic, with equal weights and log2 N messages.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.exponential().matrices(4)[0].round(3).tolist()[0]
    [0.333, 0.0, 0.333, 0.333]

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
  """Return the torus: a periodic grid, on which each replica has 4 neighbors.

  Args:
    num_rows: the number of rows, a divisor of N. Default: the largest divisor
      of N that is at most sqrt(N).

  Raises:
    ValueError: from `Mixing.weights`, if `num_rows` does not divide N.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.torus(3).matrices(9)[0].round(3).tolist()[0]
    [0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 0.2, 0.0, 0.0]
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
  """Return the hypercube, on which each replica has log2 N neighbors.

  Neighbors differ in one binary digit of their index.

  Raises:
    ValueError: from `Mixing.weights`, if N is not a power of two.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.hypercube().matrices(4)[0].round(3).tolist()[0]
    [0.333, 0.333, 0.333, 0.0]
  """

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    if num_replicas & (num_replicas - 1):
      raise ValueError(
        f'a hypercube requires 2^k replicas, got {num_replicas}; use a power '
        'of two'
      )
    edges = [
      (i, i ^ bit) for i in range(num_replicas) for bit in _hops(num_replicas)
    ]
    made = nx.empty_graph(num_replicas)
    made.add_edges_from(edges)
    return made

  return _static(make)


def star() -> Mixing:
  """Return the star, on which all replicas neighbor replica 0 only.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.star().matrices(3)[0].round(3).tolist()[1]
    [0.333, 0.667, 0.0]
  """

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    return nx.star_graph(num_replicas - 1)

  return _static(make)


def complete() -> Mixing:
  """Return the complete graph: the mean, by N - 1 messages.

  Use it only for comparison, because `mean` sends fewer bytes.

  Example:
    >>> import prsgd_jax as pr
    >>> pr.graphs.complete().matrices(4)[0].tolist()[0]
    [0.25, 0.25, 0.25, 0.25]
  """

  def matrices(num_replicas: int) -> list['csr_array']:
    # Without networkx, which takes seconds for the edges of 1024 replicas.
    i, j = np.triu_indices(num_replicas, 1)
    both = np.concatenate([i, j]), np.concatenate([j, i])
    return [_weights_of_links(num_replicas, *both)]

  return sparse(matrices)


def erdos_renyi(edge_probability: float, *, seed: int = 0) -> Mixing:
  """Return a random graph, drawn once with independent edges.

  Args:
    edge_probability: the probability of each edge, in (0, 1].
    seed: the seed of the graph, an integer in 0 .. 2^32 - 1. Default: 0.

  Raises:
    ValueError: if an argument is out of range; from `Mixing.weights`, if the
      drawn graph is not connected.

  Example:
    >>> import prsgd_jax as pr
    >>> mixing = pr.graphs.erdos_renyi(0.5, seed=1)
    >>> pr.mixing.spectral_gap(mixing, 8) > 0
    True
  """
  edge_probability = check_fraction('edge_probability', edge_probability)
  seed = check_seed('seed', seed)

  def make(num_replicas: int) -> 'nx.Graph':
    import networkx as nx

    made = nx.gnp_random_graph(num_replicas, edge_probability, seed=seed)
    if not nx.is_connected(made):
      raise ValueError(
        f'the random graph with seed={seed} and edge_probability='
        f'{edge_probability} does not connect the {num_replicas} replicas; '
        'try another seed or a higher probability'
      )
    return made

  return _static(make)


def one_peer_exponential() -> Mixing:
  """Return the one-peer exponential graph, with one neighbor in each round.

    x_i <- (x_i + x_{i - 2^k}) / 2

  k cycles through 0, 1, ... up to the largest 2^k below N. If N is a power of
  two, log2 N rounds give exactly the mean of all replicas.

  Example:
    >>> import prsgd_jax as pr
    >>> first, second = pr.graphs.one_peer_exponential().matrices(4)
    >>> (second @ first).tolist()[0]
    [0.25, 0.25, 0.25, 0.25]

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
      f'{type(graph).__name__}; for directed links pass the matrix W to '
      'pr.graphs.graph'
    )
  if not len(graph):
    raise ValueError('graph must have at least one node, got none')
  if any('weight' in data for _, _, data in graph.edges(data=True)):
    raise ValueError(
      'graph must have no edge weights, because its weights are those of '
      'Metropolis-Hastings; to use your own pass the matrix W to '
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
  """Return the mixing of circulant graphs, each a dict shift -> weight."""
  return sparse(lambda n: [circulant(n, each) for each in shifts(n)])


def _half(k: int) -> dict[int, float]:
  return {0: 0.5, k: 0.5} if k else {0: 1.0}


def _hops(num_replicas: int) -> list[int]:
  """Return 1, 2, 4, ... below N."""
  return [2**k for k in range((num_replicas - 1).bit_length())]

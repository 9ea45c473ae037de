"""WITH WHOM, by name: mixings along the edges of a graph of replicas.

Undirected graphs have Metropolis-Hastings weights, symmetric and doubly
stochastic: W_ij = 1 / (1 + max(d_i, d_j)) on an edge, the rest on the diagonal.
Each sends along its edges alone. Static ones are the same in every round; the
others have several matrices, which take turns or are drawn by chance.
"""

from collections.abc import Callable
import functools
import math

import networkx as nx
import numpy as np

from prsgd_jax.checks import check_positive_int
from prsgd_jax.matrices import check_connected, check_stochastic, of_size
from prsgd_jax.mixing import Mixing, sparse


def graph(graph: nx.Graph | np.ndarray) -> Mixing:
  """Any static graph: a networkx graph, or the matrix W itself.

  Args:
    graph: an undirected graph whose nodes, in their order, are the replicas
      (Metropolis-Hastings weights), or float[N, N] with the caller's weights.

  Raises:
    ValueError: if the matrix is not square, not finite, or neither its rows nor
      its columns sum to one; if the graph is directed or does not connect all
      replicas; from `matrices`, if it is not of the number of replicas.
  """
  if isinstance(graph, nx.Graph):
    _check_graph(graph)
    weights = metropolis_hastings(graph)
  else:
    weights = check_stochastic(graph)
  check_connected(weights[None])
  return sparse(of_size(weights))


def metropolis_hastings(graph: nx.Graph) -> np.ndarray:
  """W of an undirected graph, float64[N, N]: symmetric, doubly stochastic.

  Reference:
    Xiao, Boyd, Lall 2005, A scheme for robust distributed sensor fusion based
    on average consensus, equation 8.
  """
  adjacency = nx.to_numpy_array(graph, weight=None) != 0
  np.fill_diagonal(adjacency, False)
  degree = adjacency.sum(axis=1)
  weights = adjacency / (1 + np.maximum(degree[:, None], degree))
  return weights + np.diag(1 - weights.sum(axis=1))


def ring(self_weight: float = 1 / 3) -> Mixing:
  """Each replica with its two neighbours on a ring.

  W_ii = w and W_i,i±1 = (1 - w) / 2; the two neighbours of N = 2 are one.

  Raises:
    ValueError: if `self_weight` is not in [0, 1).
  """
  if not 0 <= self_weight < 1:
    raise ValueError(f'self_weight must be in [0, 1), got {self_weight!r}')
  side = (1 - self_weight) / 2
  return sparse(
    lambda n: _circulant(n, {0: self_weight, 1: side, -1: side})[None]
  )


def exponential() -> Mixing:
  """The static exponential graph: replica i takes from i - 1, i - 2, i - 4, ...

  Equal weights; directed, doubly stochastic, log2 N messages.

  Reference:
    Ying, Yuan, Chen, Hu, Pan, Yin 2021, Exponential graph is provably efficient
    for decentralized deep training (arXiv 2110.13363), equation 5 (its
    number was not verified).
  """

  def matrices(num_replicas: int) -> np.ndarray:
    hops = _hops(num_replicas)
    weight = 1 / (len(hops) + 1)
    return _circulant(num_replicas, dict.fromkeys([0, *hops], weight))[None]

  return sparse(matrices)


def torus(num_rows: int | None = None) -> Mixing:
  """A grid closed in both directions; four neighbours each.

  Args:
    num_rows: the height; the divisor of N next below its root if None.

  Raises:
    ValueError: from `matrices`, if `num_rows` does not divide N.
  """
  if num_rows is not None:
    num_rows = check_positive_int('num_rows', num_rows)

  def make(num_replicas: int) -> nx.Graph:
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
  """Neighbours differ in one binary digit of their index: log2 N each.

  Raises:
    ValueError: from `matrices`, if N is not a power of two.
  """

  def make(num_replicas: int) -> nx.Graph:
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
  """Replica 0 with every other one, which have no other neighbour."""
  return _static(lambda n: nx.star_graph(n - 1))


def complete() -> Mixing:
  """Each replica with every other one: the mean, by N - 1 messages.

  What `mean` does with fewer bytes; it is here to compare with.
  """
  return _static(nx.complete_graph)


def erdos_renyi(edge_probability: float, *, seed: int = 0) -> Mixing:
  """A random graph that is drawn once, each edge by itself.

  Raises:
    ValueError: if the probability is not in (0, 1] or the seed not an integer;
      from `matrices`, if the graph that the seed gives is not connected.
  """
  if not 0 < edge_probability <= 1:
    raise ValueError(
      f'edge_probability must be in (0, 1], got {edge_probability!r}'
    )
  if not isinstance(seed, int | np.integer):
    raise ValueError(f'seed must be an integer, got {seed!r}')

  def make(num_replicas: int) -> nx.Graph:
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
  """One neighbour a round: x_i <- (x_i + x_{i - 2^k}) / 2, k by turns.

  k = 0, 1, ... up to the last 2^k below N, and again from 0. For N a power of
  two, log2 N rounds are exactly the mean of all.

  Reference:
    Ying, Yuan, Chen, Hu, Pan, Yin 2021, Exponential graph is provably efficient
    for decentralized deep training (arXiv 2110.13363), equation 7 (its
    number was not verified); Assran, Loizou, Ballas, Rabbat 2019, Stochastic
    gradient push (arXiv 1811.10792).
  """

  def matrices(num_replicas: int) -> np.ndarray:
    hops = _hops(num_replicas) or [0]
    half = [_circulant(num_replicas, _half(k)) for k in hops]
    return np.stack(half)

  return sparse(matrices)


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
      replicas; from `matrices`, if it is not of the number of replicas, or that
      is odd and there is no graph.

  Reference:
    Zhang, Liu, Mingo, Zhang, Kailkhura, Cui et al. 2021, Loss landscape
    dependent self-adjusting learning rates in decentralized stochastic gradient
    descent (arXiv 2112.01433). The paper does not say more of how neighbours
    are drawn than that they are random.
  """
  if graph is not None:
    _check_graph(graph)
    weights = np.stack([_pairs(p) for p in _edge_colours(graph)])
    check_connected(weights)
    return sparse(of_size(weights), random=True)

  def matrices(num_replicas: int) -> np.ndarray:
    if num_replicas % 2:
      raise ValueError(
        'random_matching needs an even number of replicas, got '
        f'{num_replicas}; give it networkx.complete_graph({num_replicas}), '
        'which leaves one replica alone in each round, or use '
        'pr.random_neighbour()'
      )
    return np.stack([_pairs(p) for p in _circle_method(num_replicas)])

  return sparse(matrices, random=True)


def _circle_method(num_replicas: int) -> list[np.ndarray]:
  """N - 1 perfect matchings that have each pair once; N even."""
  circle = num_replicas - 1
  matchings = []
  for r in range(circle):
    partner = (r - np.arange(circle)) % circle
    fixed = int(np.flatnonzero(partner == np.arange(circle))[0])
    partner = np.append(partner, fixed)  # the last replica, off the circle
    partner[fixed] = circle
    matchings.append(partner)
  return matchings


def _edge_colours(graph: nx.Graph) -> list[np.ndarray]:
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


def _pairs(partner: np.ndarray) -> np.ndarray:
  eye = np.eye(len(partner))
  return (eye + eye[partner]) / 2


def random_neighbour() -> Mixing:
  """x_i <- (x_i + x_{i - k}) / 2 with k in 1 .. N - 1 drawn for all in a round.

  Each replica's neighbour is uniform among the others, and is not in turn mixed
  with it. DPSGD's paper (see `random_matching`) may also mean a neighbour that
  each replica draws by itself: a W whose columns do not sum to 1, which loads
  some with many messages. That is not offered; here each sends one model, and
  the mean is kept.
  """

  def matrices(num_replicas: int) -> np.ndarray:
    shifts = range(1, max(num_replicas, 2))
    half = [_circulant(num_replicas, _half(k)) for k in shifts]
    return np.stack(half)

  return sparse(matrices, random=True)


def _check_graph(graph: nx.Graph) -> None:
  if not isinstance(graph, nx.Graph) or graph.is_directed():
    raise ValueError(
      'graph must be an undirected networkx graph, got '
      f'{type(graph).__name__}; of directed links give the matrix to pr.graph'
    )
  if any('weight' in data for _, _, data in graph.edges(data=True)):
    raise ValueError(
      'graph must have edges without weights, which get those of '
      'Metropolis-Hastings; to use your own give the matrix W to pr.graph'
    )


def _static(make: Callable[[int], nx.Graph]) -> Mixing:
  @functools.cache
  def matrices(num_replicas: int) -> np.ndarray:
    weights = metropolis_hastings(make(num_replicas))[None]
    check_connected(weights)
    weights.setflags(write=False)
    return weights

  return sparse(matrices)


def _circulant(num_replicas: int, weights: dict[int, float]) -> np.ndarray:
  """Replica i takes weight w_k of replica i - k (mod N), for each k."""
  eye = np.eye(num_replicas)
  return sum((w * np.roll(eye, k, axis=0) for k, w in weights.items()), 0 * eye)


def _half(k: int) -> dict[int, float]:
  return {0: 0.5, k: 0.5} if k else {0: 1.0}


def _hops(num_replicas: int) -> list[int]:
  """1, 2, 4, ... below N."""
  return [2**k for k in range((num_replicas - 1).bit_length())]

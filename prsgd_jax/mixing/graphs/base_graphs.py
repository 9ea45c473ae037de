"""WITH WHOM: Base-(k+1) graphs, which average any N exactly in a few rounds.

A round is a list of edges (i, j, weight). A replica keeps the rest of the
weight for itself.
"""

from collections.abc import Iterator
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing.matrices import from_links
from prsgd_jax.mixing.mixings import Mixing, sparse

if TYPE_CHECKING:
  from scipy.sparse import csr_array

Round = list[tuple[int, int, float]]


def base_graph(max_degree: int = 1) -> Mixing:
  """Return the Base-(k+1) graph, whose rounds together give the exact mean.

  A few sparse symmetric matrices alternate; their product is 11'/N, for any N.
  Each replica has at most k neighbors in a round. The number of rounds is at
  most 2 log_{k+1} N + 2. (`one_peer_exponential` is exact only if N is a power
  of two.)

  Args:
    max_degree: k, the maximum number of neighbors in a round, >= 1. Default: 1.

  Raises:
    ValueError: if `max_degree` is not an integer >= 1.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> rounds = pr.graphs.base_graph(1).matrices(6)
    >>> len(rounds), np.allclose(np.linalg.multi_dot(rounds), 1 / 6)
    (4, True)

  Reference:
    Takezawa, Sato, Bao, Niwa, Yamada 2023, Beyond exponential graph:
    communication-efficient topologies for decentralized learning via
    finite-time convergence (arXiv 2305.11420), Algorithms 2 and 3 (read in the
    authors' code; their numbers were not verified). The authors' code also
    averages replicas that are already equal, which is skipped here.
  """
  k = check_positive_int('max_degree', max_degree)

  def matrices(num_replicas: int) -> list['csr_array']:
    rounds = base_rounds(num_replicas, k) or [[]]
    return [_matrix(num_replicas, edges) for edges in rounds]

  return sparse(matrices)


def base_rounds(num_replicas: int, k: int) -> list[Round]:
  """Return the edges of each round.

  Write N = p q, where the prime factors of p are at most k + 1 and the prime
  factors of q are larger. Average inside p sets of q replicas and then across
  the sets; or average all N at once, if this takes fewer rounds.
  """
  p = math.prod(_factors(num_replicas, k))
  sets = np.arange(num_replicas).reshape(p, -1)
  within = _merged([_simple(nodes, k) for nodes in sets])
  across = _merged([_hypercube(nodes, k) for nodes in sets.T])
  at_once = _simple(np.arange(num_replicas), k)
  both = [*within, *across]
  return at_once if len(at_once) < len(both) else both


def _hypercube(nodes: np.ndarray, k: int) -> list[Round]:
  """Return rounds that average n nodes, if no prime of n is above k + 1.

  n is a product of factors up to k + 1. Each round belongs to one factor and
  averages the nodes that differ only in its digit.
  """
  rounds, stride = [], 1
  for factor in _factors(len(nodes), k):
    digits = nodes.reshape(-1, factor, stride).swapaxes(1, 2)
    rounds.append(
      [
        (i, j, 1 / factor)
        for group in digits.reshape(-1, factor).tolist()
        for i, j in itertools.combinations(group, 2)
      ]
    )
    stride *= factor
  return rounds


def _simple(nodes: np.ndarray, k: int) -> list[Round]:
  """Return rounds that average any number of nodes: Simple Base-(k+1) graph.

  The digits of the number of nodes cut them into parts of a (k + 1)^p nodes,
  a <= k. First, each part averages. Then, one part at a time, every block of
  (k + 1)^p nodes trades one to one with all nodes of the smaller parts. The
  weight is chosen so that the mean of the block becomes the mean of all.
  Finally each block averages; the first block takes the most rounds.
  """
  n = len(nodes)
  if math.prod(_factors(n, k)) == n:
    return _hypercube(nodes, k)
  parts = list(_parts(nodes, k))
  own = [_hypercube(part.ravel(), k) for part in parts]
  rounds = _merged(own, len(own[0]))
  blocks = [_merged([_hypercube(b, k) for b in part]) for part in parts]
  last = len(parts) - 1
  for t in range(1 + len(blocks[0])):
    edges = _trades(parts[t], parts[t + 1 :]) if t < last else []
    for i, inside in enumerate(blocks):
      # A part trades in its own round and in all earlier ones.
      done = t - min(i + 1, last)
      if done >= 0 and inside:
        edges = [*edges, *inside[done % len(inside)]]
    rounds.append(edges)
  return rounds


def _trades(part: np.ndarray, smaller: list[np.ndarray]) -> Round:
  """Return edges from each node of smaller parts to one node per block."""
  others = np.concatenate([rest.ravel() for rest in smaller])
  share = part.size / (part.size + len(others)) / len(part)
  return [
    (i, j, share)
    for block in part.tolist()
    for i, j in zip(others.tolist(), block, strict=False)
  ]


def _parts(nodes: np.ndarray, k: int) -> Iterator[np.ndarray]:
  """Yield int[a, (k + 1)^p] for each digit a > 0 of n, largest first."""
  size = 1
  while size * (k + 1) <= len(nodes):
    size *= k + 1
  begin = 0
  while begin < len(nodes):
    a = (len(nodes) - begin) // size
    if a:
      yield nodes[begin : begin + a * size].reshape(a, size)
    begin += a * size
    size //= k + 1


def _merged(
  graphs: list[list[Round]], length: int | None = None
) -> list[Round]:
  """Return the rounds of several graphs at once; shorter graphs repeat."""
  length = max(map(len, graphs), default=0) if length is None else length
  return [
    [edge for rounds in graphs if rounds for edge in rounds[t % len(rounds)]]
    for t in range(length)
  ]


def _factors(n: int, k: int) -> list[int]:
  """Return the factors of n from 2 to k + 1, smallest first, with repeats."""
  factors = []
  for factor in range(k + 1, 1, -1):
    while n % factor == 0:
      factors.append(factor)
      n //= factor
  return factors[::-1]


def _matrix(num_replicas: int, edges: Round) -> 'csr_array':
  """Return the W of a round: the weights of its edges, the rest diagonal."""
  index = np.arange(num_replicas)
  i, j = np.array([edge[:2] for edge in edges], int).reshape(-1, 2).T
  to, origin = np.concatenate([i, j]), np.concatenate([j, i])
  weight = np.tile([edge[2] for edge in edges], 2)
  kept = 1 - np.bincount(to, weight, num_replicas)
  return from_links(
    num_replicas,
    np.concatenate([index, to]),
    np.concatenate([index, origin]),
    np.concatenate([kept, weight]),
  )

"""WITH WHOM, exactly in a few rounds: Base-(k+1) graphs, for any number.

A round is a list of edges (i, j, weight); a replica keeps the weight that its
edges leave.
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
  """The Base-(k+1) graph: the exact mean by turns, for any number of replicas.

  A few sparse symmetric matrices take turns, whose product is 11'/N. Each
  replica has at most k neighbors in a round, and there are at most
  2 log_{k+1} N + 2 rounds. `one_peer_exponential` is exact only for a power of
  two.

  Args:
    max_degree: k, the largest number of neighbors in a round.

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
    authors' code; the numbers were not verified). Differs from the authors'
    code where that averages replicas that are equal already, and are left alone
    here.
  """
  k = check_positive_int('max_degree', max_degree)

  def matrices(num_replicas: int) -> list['csr_array']:
    rounds = base_rounds(num_replicas, k) or [[]]
    return [_matrix(num_replicas, edges) for edges in rounds]

  return sparse(matrices)


def base_rounds(num_replicas: int, k: int) -> list[Round]:
  """Returns the edges of each round.

  With N = p q, where the primes of p are at most k + 1 and those of q are not,
  it is the mean within p sets of q replicas, and then across them; or that of
  all N at once, if that has fewer rounds.
  """
  p = math.prod(_factors(num_replicas, k))
  sets = np.arange(num_replicas).reshape(p, -1)
  within = _merged([_simple(nodes, k) for nodes in sets])
  across = _merged([_hypercube(nodes, k) for nodes in sets.T])
  at_once = _simple(np.arange(num_replicas), k)
  both = [*within, *across]
  return at_once if len(at_once) < len(both) else both


def _hypercube(nodes: np.ndarray, k: int) -> list[Round]:
  """The mean of n nodes, if no prime of n is above k + 1.

  n is a product of factors up to k + 1; in each round those that differ in the
  digit of one factor take their mean.
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
  """The mean of any number of nodes: the Simple Base-(k+1) graph.

  The nodes are cut into parts of a (k + 1)^p, a <= k, by the digits of their
  number. Each part takes its mean. Then, part after part, every block of
  (k + 1)^p nodes trades with all nodes of the smaller parts, one against one,
  with such a weight that the block's mean becomes that of all. And then each
  block takes its mean, the first one for the longest time.
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
      # A part trades in its own round and in those before it.
      done = t - min(i + 1, last)
      if done >= 0 and inside:
        edges = [*edges, *inside[done % len(inside)]]
    rounds.append(edges)
  return rounds


def _trades(part: np.ndarray, smaller: list[np.ndarray]) -> Round:
  """Each node of the smaller parts with one of each block of this part."""
  others = np.concatenate([rest.ravel() for rest in smaller])
  share = part.size / (part.size + len(others)) / len(part)
  return [
    (i, j, share)
    for block in part.tolist()
    for i, j in zip(others.tolist(), block, strict=False)
  ]


def _parts(nodes: np.ndarray, k: int) -> Iterator[np.ndarray]:
  """int[a, (k + 1)^p] for each digit a > 0 of their number, largest first."""
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
  """Rounds of several graphs at once; a shorter graph begins again."""
  length = max(map(len, graphs), default=0) if length is None else length
  return [
    [edge for rounds in graphs if rounds for edge in rounds[t % len(rounds)]]
    for t in range(length)
  ]


def _factors(n: int, k: int) -> list[int]:
  """Factors of n from 2 to k + 1, smallest first, until none is left in it."""
  factors = []
  for factor in range(k + 1, 1, -1):
    while n % factor == 0:
      factors.append(factor)
      n //= factor
  return factors[::-1]


def _matrix(num_replicas: int, edges: Round) -> 'csr_array':
  """W of a round: the weights of its edges, and what they leave."""
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

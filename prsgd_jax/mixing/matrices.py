"""Mixing matrices W in NumPy: what they must be, and how their links are sent.

Replica i receives from replica j where W_ij is not zero. Matrices are sparse,
and made one at a time: a mixing of many replicas may have as many matrices.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prsgd_jax.base import Senders

if TYPE_CHECKING:
  from scipy.sparse import csr_array

# Senders are a table where it has at most so many times the links there are.
PADDING = 4


class Weights(NamedTuple):
  """The matrices W of a mixing for one number of replicas.

  Attributes:
    matrix: `turn -> csr_array[N, N]` of float64.
    number: K, if the turns are 0 .. K - 1; None for a random mixing that draws
      from more matrices than can be listed.
    draw: `generator -> turn`, the model of a random mixing for the ledger; all
      K are equally likely if None.
    sums: whether the rows, and the columns, of all matrices sum to one; None to
      compute it from all of them.
    waits: S, if a replica receives from all of its group of S consecutive ones.
  """

  matrix: Callable[[Any], 'csr_array']
  number: int | None = 1
  draw: Callable[[np.random.Generator], Any] | None = None
  sums: tuple[bool, bool] | None = None
  waits: int | None = None

  def sum_to_one(self, axis: int) -> bool:
    """Returns whether the rows (axis 1) or columns (0) of all W sum to one."""
    if self.sums is not None:
      return self.sums[1 - axis]
    return all(sums_to_one(weights, axis) for weights in self.each())

  def draw_turn(self, generator: np.random.Generator) -> Any:
    """Returns the turn of a round of a random mixing, for the ledger."""
    if self.draw is not None:
      return self.draw(generator)
    return int(generator.integers(self.number))  # type: ignore[arg-type]

  def each(self) -> Iterable['csr_array']:
    """Yields the K matrices.

    Raises:
      ValueError: if they cannot be listed, or are not equally likely.
    """
    if self.number is None or self.draw is not None:
      raise ValueError(
        'the matrices of a mixing that draws every link by itself are too many '
        'to list, or not equally likely; use a mixing such as '
        'pr.graphs.random_matching()'
      )
    return map(self.matrix, range(self.number))

  def dense(self) -> np.ndarray:
    """Returns float64[K, N, N].

    Raises:
      ValueError: as `each`.
    """
    return np.stack([weights.toarray() for weights in self.each()])


def listed(
  matrices: 'np.ndarray | Sequence[np.ndarray | csr_array]',
) -> Weights:
  """Returns the `Weights` of matrices that are all at hand."""
  from scipy.sparse import csr_array

  sparse = [csr_array(weights, dtype=np.float64) for weights in matrices]
  return Weights(lambda turn: sparse[turn], len(sparse))


def of_size(
  matrices: 'np.ndarray | Sequence[np.ndarray | csr_array]',
) -> Callable[[int], Weights]:
  """Returns `num_replicas -> Weights` of the W given, for their own N only."""
  if isinstance(matrices, np.ndarray) and matrices.ndim == 2:
    matrices = [matrices]
  made = listed(matrices)
  shape = made.matrix(0).shape

  def weights(num_replicas: int) -> Weights:
    if shape != (num_replicas, num_replicas):
      raise ValueError(
        f'the mixing matrix must be [{num_replicas}, {num_replicas}], one row '
        f'per replica, got {shape}'
      )
    return made

  return weights


def circulant(num_replicas: int, shifts: dict[int, float]) -> 'csr_array':
  """Replica i takes weight w_k of replica i - k (mod N), for each k."""
  index = np.arange(num_replicas)
  return from_links(
    num_replicas,
    np.tile(index, len(shifts)),
    np.concatenate([(index - k) % num_replicas for k in shifts]),
    np.repeat(list(shifts.values()), num_replicas),
  )


def pairs(partner: np.ndarray) -> 'csr_array':
  """Replica i takes the mean of itself and `partner[i]`, perhaps itself."""
  from scipy.sparse import csr_array

  n = len(partner)
  columns = np.stack([np.arange(n), partner], axis=1).ravel()
  made = csr_array(
    (np.full(2 * n, 0.5), columns, np.arange(0, 2 * n + 1, 2)), shape=(n, n)
  )
  if (partner == np.arange(n)).any():
    made.sum_duplicates()
  return made


def from_groups(groups: np.ndarray) -> 'csr_array':
  """The mean of each of the groups, int[G, S], with every replica in one."""
  num_groups, size = groups.shape
  return from_links(
    num_groups * size,
    np.repeat(groups, size, axis=1).ravel(),
    np.tile(groups, size).ravel(),
    np.full(num_groups * size * size, 1 / size),
  )


def from_links(
  num_replicas: int, to: np.ndarray, origin: np.ndarray, weight: np.ndarray
) -> 'csr_array':
  """The matrix W[to, origin] = weight; the weights of equal links add up."""
  from scipy.sparse import csr_array

  shape = (num_replicas, num_replicas)
  made = csr_array((weight, (to, origin)), shape=shape, dtype=np.float64)
  made.eliminate_zeros()
  return made


def check_stochastic(matrix: np.ndarray) -> np.ndarray:
  """A copy of the matrix as float64[N, N].

  Raises:
    ValueError: if it is not square, not finite, or neither its rows nor its
      columns sum to one.
  """
  weights = np.array(matrix, np.float64)
  if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
    raise ValueError(
      'a mixing matrix must be a square matrix [N, N], got shape '
      f'{weights.shape}'
    )
  if not np.isfinite(weights).all():
    raise ValueError(
      'a mixing matrix must have finite weights, got NaN or infinity'
    )
  if not (sums_to_one(weights, 1) or sums_to_one(weights, 0)):
    row_sums = weights.sum(axis=1)
    row = int(np.abs(row_sums - 1).argmax())
    raise ValueError(
      'a mixing matrix must have rows (or columns) that sum to 1, got '
      f'{row_sums[row]:.6g} in row {row}; divide each row by its sum'
    )
  return weights


def sums_to_one(matrices: 'np.ndarray | csr_array', axis: int) -> bool:
  """Whether the sums over an axis of a matrix are 1: rows for 1 or -1."""
  return np.allclose(matrices.sum(axis=axis), 1, rtol=0, atol=1e-6)


def check_connected(matrices: Iterable['np.ndarray | csr_array']) -> None:
  """Raises ValueError unless all replicas reach each other, over all W."""
  from scipy.sparse import csr_array
  from scipy.sparse.csgraph import connected_components

  linked = sum((abs(csr_array(weights)) for weights in matrices), start=0)
  count, part = connected_components(linked, connection='strong')
  if count > 1:
    lone = np.flatnonzero(part == part[0]).tolist()
    raise ValueError(
      'the graph of a mixing must connect all replicas both ways, got '
      f'{count} parts, one of them {lone}; add edges between them'
    )


def links(weights: 'np.ndarray | csr_array') -> tuple[np.ndarray, np.ndarray]:
  """Returns (int[E], int[E]), who receives from whom, row after row.

  Those are the entries of W besides the diagonal that are not zero.
  """
  from scipy.sparse import csr_array

  sparse = csr_array(weights)
  sparse.sort_indices()
  to, origin = sparse.nonzero()
  other = to != origin
  return to[other], origin[other]


def busiest(weights: 'csr_array') -> tuple[int, int]:
  """Returns the largest numbers of messages that one sends, and receives."""
  to, origin = links(weights)
  sent, received = (
    np.bincount(index, minlength=1).max() for index in (origin, to)
  )
  return int(sent), int(received)


def senders(weights: 'csr_array') -> Senders:
  """Returns whom each replica waits for: itself, and whom it receives from."""
  n = weights.shape[0]
  row_sizes = np.diff(weights.indptr)
  regular = (row_sizes == row_sizes[0]).all() and weights.data.all()
  if regular and weights.diagonal().all():
    return weights.indices.reshape(n, -1).T.copy()
  to, origin = links(weights)
  degree = np.bincount(to, minlength=n)
  most = int(degree.max(initial=0))
  if n * most > PADDING * (len(to) + n):
    self_first = np.insert(origin, np.cumsum(degree) - degree, np.arange(n))
    return self_first, np.cumsum(degree) - degree + np.arange(n)
  table = np.tile(np.arange(n), (most + 1, 1))
  place = np.arange(len(to)) - np.repeat(np.cumsum(degree) - degree, degree)
  table[place, to] = origin
  return table


def entries(weights: 'csr_array', source: np.ndarray) -> np.ndarray:
  """Returns float64[N], the W_ij of replica i and j = source[i]; 0 for -1."""
  n = len(source)
  weights.sum_duplicates()
  there = np.repeat(np.arange(n), np.diff(weights.indptr)) * n + weights.indices
  wanted = np.arange(n) * n + source
  place = np.searchsorted(there, wanted).clip(max=max(len(there) - 1, 0))
  found = (source >= 0) & (there[place] == wanted)
  return np.where(found, weights.data[place], 0.0)


def permutations(weights: 'np.ndarray | csr_array') -> list[np.ndarray]:
  """Splits the links of W into partial permutations.

  Returns:
    int[N] each: whom replica i receives from, -1 for nobody. Where W looks the
    same from every replica, these are shifts.
  """
  from scipy.optimize import linear_sum_assignment

  n = weights.shape[0]
  to, origin = links(weights)
  if len(to) == 0:
    return []
  degree = max(np.bincount(to).max(), np.bincount(origin).max())
  if len(to) == n * degree:
    shifts = np.sort(((origin - to) % n).reshape(n, -1), axis=1)
    if (shifts == shifts[0]).all():
      return [(np.arange(n) + k) % n for k in shifts[0].tolist()]
  if degree == 1:
    source = np.full(n, -1)
    source[to] = origin
    return [source]
  unsent = np.zeros((n, n), int)
  unsent[to, origin] = 1
  filled = _filled(unsent, int(degree))
  rounds = []
  for _ in range(degree):
    _, source = linear_sum_assignment(filled == 0)
    filled[np.arange(n), source] -= 1
    rounds.append(np.where(unsent[np.arange(n), source] > 0, source, -1))
    unsent[np.arange(n), source] = 0
  return [source for source in rounds if (source >= 0).any()]


def _filled(unsent: np.ndarray, degree: int) -> np.ndarray:
  """The links and others that are not used, which make them regular.

  A regular bipartite graph has perfect matchings.
  """
  filled = unsent.copy()
  received = filled.sum(axis=0)
  for i in range(len(filled)):
    while (missing := degree - filled[i].sum()) > 0:
      j = int(received.argmin())
      more = min(missing, degree - received[j])
      filled[i, j] += more
      received[j] += more
  return filled

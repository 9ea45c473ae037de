"""Mixing matrices W in NumPy: their checks, and the routing of their links.

Replica i receives from replica j if W_ij is not zero. Matrices are sparse and
made one at a time, because a mixing of N replicas may have N of them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prsgd_jax.base import Senders

if TYPE_CHECKING:
  from scipy.sparse import csr_array

# Senders are a table, unless its size exceeds this multiple of the links.
PADDING = 4


class Weights(NamedTuple):
  """The matrices W of a mixing for one number of replicas.

  Attributes:
    matrix: `turn -> csr_array[N, N]` of float64.
    number: K, if the turns are 0 .. K - 1; None for a random mixing with too
      many matrices to list.
    draw: `generator -> turn`, how the ledger draws a round of a random mixing.
      None means that all K matrices are equally likely.
    sums: (rows, columns), whether they sum to one in all matrices. None means
      that this is computed from all matrices.
    waits: S, if a replica receives from its whole group of S consecutive
      replicas, else None.
  """

  matrix: Callable[[Any], 'csr_array']
  number: int | None = 1
  draw: Callable[[np.random.Generator], Any] | None = None
  sums: tuple[bool, bool] | None = None
  waits: int | None = None

  def sum_to_one(self, axis: int) -> bool:
    """Return whether the rows (axis 1) or columns (0) of all W sum to one."""
    if self.sums is not None:
      return self.sums[1 - axis]
    return all(sums_to_one(weights, axis) for weights in self.each())

  def draw_turn(self, generator: np.random.Generator) -> Any:
    """Return the turn of a round of a random mixing, for the ledger."""
    if self.draw is not None:
      return self.draw(generator)
    return int(generator.integers(self.number))  # type: ignore[arg-type]

  def each(self) -> Iterable['csr_array']:
    """Yield the K matrices.

    Raises:
      ValueError: if they cannot be listed, or are not equally likely.
    """
    if self.number is None or self.draw is not None:
      raise ValueError(
        'a mixing that draws every link independently has too many matrices '
        'to list, or they are not equally likely; use a mixing such as '
        'pr.graphs.random_matching()'
      )
    return map(self.matrix, range(self.number))

  def dense(self) -> np.ndarray:
    """Return all matrices, float64[K, N, N].

    Raises:
      ValueError: if they cannot be listed, or are not equally likely.
    """
    return np.stack([weights.toarray() for weights in self.each()])


def listed(
  matrices: 'np.ndarray | Sequence[np.ndarray | csr_array]',
) -> Weights:
  """Return the `Weights` of a list of matrices."""
  from scipy.sparse import csr_array

  sparse = [csr_array(weights, dtype=np.float64) for weights in matrices]
  return Weights(lambda turn: sparse[turn], len(sparse))


def of_size(
  matrices: 'np.ndarray | Sequence[np.ndarray | csr_array]',
) -> Callable[[int], Weights]:
  """Return `num_replicas -> Weights`, for the N of the matrices only."""
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
  """Return the W in which replica i - k (mod N) has weight w_k, for each k."""
  index = np.arange(num_replicas)
  return from_links(
    num_replicas,
    np.tile(index, len(shifts)),
    np.concatenate([(index - k) % num_replicas for k in shifts]),
    np.repeat(list(shifts.values()), num_replicas),
  )


def pairs(partner: np.ndarray) -> 'csr_array':
  """Return the W in which i averages with `partner[i]`; i itself for none."""
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
  """Return the W that averages each group of int[G, S], a partition of N."""
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
  """Return the matrix W[to, origin] = weight, adding up duplicate links."""
  from scipy.sparse import csr_array

  shape = (num_replicas, num_replicas)
  made = csr_array((weight, (to, origin)), shape=shape, dtype=np.float64)
  made.eliminate_zeros()
  return made


def check_stochastic(matrix: np.ndarray) -> np.ndarray:
  """Return a copy of the matrix as float64[N, N].

  Raises:
    ValueError: if the matrix is not square or not finite, or if neither its
      rows nor its columns sum to one.
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
  """Return whether the rows (axis 1 or -1) or columns (axis 0) sum to one."""
  return np.allclose(matrices.sum(axis=axis), 1, rtol=0, atol=1e-6)


def check_connected(matrices: Iterable['np.ndarray | csr_array']) -> None:
  """Raise ValueError unless the union of all W connects all replicas."""
  from scipy.sparse.csgraph import connected_components

  matrices = list(matrices)
  every = [links(weights) for weights in matrices]
  to, origin = (np.concatenate(ends) for ends in zip(*every, strict=True))
  linked = from_links(matrices[0].shape[0], to, origin, np.ones(len(to)))
  count, part = connected_components(linked, connection='strong')
  if count > 1:
    lone = np.flatnonzero(part == part[0]).tolist()
    raise ValueError(
      'the graph of a mixing must connect all replicas both ways, got '
      f'{count} parts, one of which is {lone}; add edges between them'
    )


def links(weights: 'np.ndarray | csr_array') -> tuple[np.ndarray, np.ndarray]:
  """Return (int[E], int[E]), the receivers and senders of all links.

  They are the nonzero entries of W off the diagonal, row by row.
  """
  from scipy.sparse import csr_array

  sparse = csr_array(weights)
  sparse.sort_indices()
  to, origin = sparse.nonzero()
  other = to != origin
  return to[other], origin[other]


def busiest(weights: 'csr_array') -> tuple[int, int]:
  """Return the largest number of messages a replica sends, and receives."""
  sent, received = degrees(weights)
  return int(sent.max()), int(received.max())


def degrees(weights: 'csr_array') -> tuple[np.ndarray, np.ndarray]:
  """Return (int[N], int[N]), how many messages each replica sends, receives."""
  n = weights.shape[0]
  to, origin = links(weights)
  return np.bincount(origin, minlength=n), np.bincount(to, minlength=n)


def senders(weights: 'csr_array') -> Senders:
  """Return the replicas each one waits for: itself and its senders."""
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
  """Return float64[N], the W_ij of replica i and j = source[i]; 0 for -1."""
  n = len(source)
  weights.sum_duplicates()
  there = np.repeat(np.arange(n), np.diff(weights.indptr)) * n + weights.indices
  wanted = np.arange(n) * n + source
  place = np.searchsorted(there, wanted).clip(max=max(len(there) - 1, 0))
  found = (source >= 0) & (there[place] == wanted)
  return np.where(found, weights.data[place], 0.0)


def permutations(weights: 'np.ndarray | csr_array') -> list[np.ndarray]:
  """Split the links of W into partial permutations.

  Returns:
    A list of int[N]: the sender of replica i, or -1 for none. If W is
    circulant, they are shifts.
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
  """Return the links plus unused ones, so that the graph is regular.

  A regular bipartite graph has a perfect matching.
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

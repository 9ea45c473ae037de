"""Mixing matrices W in NumPy: what they must be, and how their links are sent.

Replica i receives from replica j where W_ij is not zero.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components


def of_size(weights: np.ndarray) -> Callable[[int], np.ndarray]:
  """`matrices` of the W given, [N, N] or [K, N, N], for their own N."""
  size = weights.shape[-1]

  def matrices(num_replicas: int) -> np.ndarray:
    if size != num_replicas:
      raise ValueError(
        f'the mixing matrix must be [{num_replicas}, {num_replicas}], one row '
        f'per replica, got {(size, size)}'
      )
    return weights.reshape((-1, size, size))

  return matrices


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


def sums_to_one(matrices: np.ndarray, axis: int) -> bool:
  """Whether the sums over an axis of a matrix are 1: rows for 1 or -1."""
  return np.allclose(matrices.sum(axis=axis), 1, rtol=0, atol=1e-6)


def check_connected(matrices: np.ndarray) -> None:
  """Raises ValueError unless all replicas reach each other, over all W."""
  linked = (matrices != 0).any(axis=0)
  count, part = connected_components(linked, connection='strong')
  if count > 1:
    lone = np.flatnonzero(part == part[0]).tolist()
    raise ValueError(
      'the graph of a mixing must connect all replicas both ways, got '
      f'{count} parts, one of them {lone}; add edges between them'
    )


def links(matrices: np.ndarray) -> np.ndarray:
  """bool[..., N, N]: whether replica i receives from another replica j."""
  return (matrices != 0) & ~np.eye(matrices.shape[-1], dtype=bool)


def permutations(weights: np.ndarray) -> list[np.ndarray]:
  """Splits the links of W into partial permutations.

  Returns:
    int[N] each: whom replica i receives from, -1 for nobody. Where W looks the
    same from every replica, these are shifts.
  """
  unsent = links(weights).astype(int)
  n = len(unsent)
  first = np.flatnonzero(unsent[0])
  shifts = [(np.arange(n) + k) % n for k in first.tolist()]
  if unsent.sum() == n * len(shifts) and all(
    unsent[np.arange(n), source].all() for source in shifts
  ):
    return shifts
  degree = int(max(unsent.sum(axis=0).max(), unsent.sum(axis=1).max()))
  # Made regular by links that are not used, it has perfect matchings.
  filled = unsent.copy()
  for i in range(n):
    while (missing := degree - filled[i].sum()) > 0:
      j = int(filled.sum(axis=0).argmin())
      filled[i, j] += min(missing, degree - filled[:, j].sum())
  rounds = []
  for _ in range(degree):
    _, source = linear_sum_assignment(filled == 0)
    filled[np.arange(n), source] -= 1
    rounds.append(np.where(unsent[np.arange(n), source] > 0, source, -1))
    unsent[np.arange(n), source] = 0
  return [source for source in rounds if (source >= 0).any()]

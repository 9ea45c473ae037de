"""What an algorithm requires of its mixing, checked when the state is made."""

from collections.abc import Callable

import numpy as np

from prsgd_jax.base import Replica, ReplicaTransformation
from prsgd_jax.matrices import sums_to_one
from prsgd_jax.mixing import Mixing
from prsgd_jax.stages import require

# Of float64[K, N, N], all the W of a mixing; raises ValueError.
Check = Callable[[np.ndarray], None]


def check_mixing(mixing: Mixing) -> Mixing:
  """Returns `mixing`; raises ValueError if it is not one."""
  if not isinstance(mixing, Mixing):
    raise ValueError(f'mixing expects one such as pr.ring(), got {mixing!r}')
  return mixing


def requires(mixing: Mixing, *checks: Check) -> ReplicaTransformation:
  """A stage that does nothing in a step, and checks W in `init`.

  Raises:
    ValueError: from `init`, if a check fails.
  """

  def check_all(replica: Replica, num_replicas: int) -> None:
    del replica
    matrices = mixing.matrices(num_replicas)
    for check in checks:
      check(matrices)

  return require(check_all)


def column_stochastic(matrices: np.ndarray) -> None:
  """Raises ValueError unless push-sum keeps the sums of x and of w."""
  if not sums_to_one(matrices, -2):
    worst, column = _worst_column(matrices)
    raise ValueError(
      'push-sum needs a mixing with columns that sum to 1, got '
      f'{worst:.6g} in column {column}; divide each column by its sum'
    )
  if (matrices < 0).any() or (matrices.sum(axis=-1) == 0).any():
    raise ValueError(
      'push-sum needs weights >= 0 and one > 0 in each row, got a smallest of '
      f'{matrices.min():.6g} and a row that sums to '
      f'{matrices.sum(axis=-1).min():.6g}; keep some weight on the diagonal'
    )


def one_matrix(matrices: np.ndarray) -> None:
  """Raises ValueError if W changes from round to round."""
  if len(matrices) > 1:
    raise ValueError(
      'sums of what the neighbours sent need one W for all rounds, got '
      f'{len(matrices)}; use a static graph such as pr.ring()'
    )


def keeps_the_mean(matrices: np.ndarray) -> None:
  """Raises ValueError unless the columns of W sum to one, as its rows must."""
  if not sums_to_one(matrices, -2):
    worst, column = _worst_column(matrices)
    raise ValueError(
      'corrections that cancel need a mixing that keeps the mean of the '
      f'replicas: columns that sum to 1, got {worst:.6g} in column {column}; '
      'use pr.ring() or another doubly stochastic mixing'
    )


def symmetric_above(bound: float, bound_in_words: str) -> Check:
  """A check that each W is symmetric and its eigenvalues exceed a bound."""

  def check(matrices: np.ndarray) -> None:
    if not np.allclose(matrices, matrices.swapaxes(-1, -2), rtol=0, atol=1e-6):
      raise ValueError(
        'this correction needs a symmetric W, got one that is not; use '
        'pr.ring(0.5) or another undirected graph'
      )
    smallest = np.linalg.eigvalsh(matrices).min()
    # A W on the bound itself is not a matter of its rounding.
    if smallest <= bound + 1e-9:
      raise ValueError(
        'this correction needs a W whose eigenvalues are > '
        f'{bound_in_words}, got a smallest of {smallest:.6g}; put more weight '
        'on the diagonal, such as (I + W) / 2 or pr.ring(0.5)'
      )

  return check


def means_of_groups(matrices: np.ndarray) -> None:
  """Raises ValueError unless each W takes means in disjoint groups."""
  symmetric = np.allclose(matrices, matrices.swapaxes(-1, -2))
  if not (symmetric and np.allclose(matrices @ matrices, matrices)):
    raise ValueError(
      'averages on a virtual clock are means of pairs or other groups, got a '
      'mixing that is none; use pr.random_matching()'
    )


def _worst_column(matrices: np.ndarray) -> tuple[float, int]:
  """The sum that is farthest from 1, and its column."""
  sums = matrices.sum(axis=-2)
  _, column = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
  return sums.flat[np.abs(sums - 1).argmax()], int(column)

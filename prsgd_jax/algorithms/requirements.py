"""Requirements on the mixing of an algorithm, checked at initialization."""

from collections.abc import Callable
import functools

import numpy as np

from prsgd_jax.base import ReplicaTransformation
from prsgd_jax.mixing.matrices import Weights
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.stages import require

# A check of all W of a mixing; it raises ValueError.
Check = Callable[[Weights], None]


def check_mixing(mixing: Mixing) -> Mixing:
  """Return `mixing`, or raise ValueError if it is not a mixing."""
  if not isinstance(mixing, Mixing):
    raise ValueError(
      f'expected a mixing such as pr.graphs.ring(), got {mixing!r}'
    )
  return mixing


def requires(mixing: Mixing, *checks: Check) -> ReplicaTransformation:
  """Return a stage that checks W in `init` and does nothing in a step.

  Raises:
    ValueError: from `init`, if a check fails.
  """

  @functools.cache
  def check_all(num_replicas: int) -> None:
    weights = mixing.weights(num_replicas)
    for check in checks:
      check(weights)

  return require(lambda replica, num_replicas: check_all(num_replicas))


def column_stochastic(weights: Weights) -> None:
  """Raise ValueError unless W preserves the sums of x and w in push-sum."""
  if not weights.sum_to_one(0):
    worst, column = _worst_column(weights)
    raise ValueError(
      'push-sum requires a mixing with columns that sum to 1, got '
      f'{worst:.6g} in column {column}; divide each column by its sum'
    )
  least, least_sum = np.min(
    [(W.min(), W.sum(axis=1).min()) for W in weights.each()], axis=0
  )
  if least < 0 or least_sum == 0:
    raise ValueError(
      'push-sum requires weights >= 0 with one > 0 in each row, got a minimum '
      f'of {least:.6g} and a row that sums to {least_sum:.6g}; keep some '
      'weight on the diagonal'
    )


def one_matrix(weights: Weights) -> None:
  """Raise ValueError if W changes from round to round."""
  if weights.number != 1:
    raise ValueError(
      'this algorithm requires one W for all rounds, got '
      f'{weights.number or "many"}; use a static graph such as pr.graphs.ring()'
    )


def keeps_the_mean(weights: Weights) -> None:
  """Raise ValueError unless the columns of W sum to one, like its rows."""
  if not weights.sum_to_one(0):
    worst, column = _worst_column(weights)
    raise ValueError(
      'this correction requires a mixing that keeps the mean of the replicas, '
      f'with columns that sum to 1, got {worst:.6g} in column {column}; use '
      'pr.graphs.ring() or another doubly stochastic mixing'
    )


def symmetric_above(bound: float, bound_in_words: str) -> Check:
  """Return the check that W is symmetric with eigenvalues above a bound."""

  def check(weights: Weights) -> None:
    if any(abs(W - W.T).max() > 1e-6 for W in weights.each()):
      raise ValueError(
        'this correction requires a symmetric W, got one that is not; use '
        'pr.graphs.ring(0.5) or another undirected graph'
      )
    smallest = min(
      np.linalg.eigvalsh(W.toarray()).min() for W in weights.each()
    )
    # The margin rejects a W on the bound, whatever its rounding errors are.
    if smallest <= bound + 1e-9:
      raise ValueError(
        'this correction requires a W whose eigenvalues are > '
        f'{bound_in_words}, got a minimum of {smallest:.6g}; put more weight '
        'on the diagonal, as in (I + W) / 2 or pr.graphs.ring(0.5)'
      )

  return check


def means_of_groups(weights: Weights) -> None:
  """Raise ValueError unless each W averages inside disjoint groups."""
  apart = max(
    max(abs(W - W.T).max(), abs(W @ W - W).max()) for W in weights.each()
  )
  if apart > 1e-6:
    raise ValueError(
      'a virtual clock requires a mixing that averages pairs or other disjoint '
      'groups, got one that does not; use pr.graphs.random_matching()'
    )


def _worst_column(weights: Weights) -> tuple[float, int]:
  """Return the column sum farthest from 1, and its column."""
  sums = np.stack([W.sum(axis=0) for W in weights.each()])
  _, column = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
  return sums.flat[np.abs(sums - 1).argmax()], int(column)

"""What an algorithm requires of its mixing, checked when the state is made."""

from collections.abc import Callable
import functools

import numpy as np

from prsgd_jax.base import ReplicaTransformation
from prsgd_jax.mixing.matrices import Weights
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.stages import require

# Of all the W of a mixing for a number of replicas; raises ValueError.
Check = Callable[[Weights], None]


def check_mixing(mixing: Mixing) -> Mixing:
  """Returns `mixing`; raises ValueError if it is not one."""
  if not isinstance(mixing, Mixing):
    raise ValueError(
      f'mixing expects one such as pr.graphs.ring(), got {mixing!r}'
    )
  return mixing


def requires(mixing: Mixing, *checks: Check) -> ReplicaTransformation:
  """A stage that does nothing in a step, and checks W in `init`.

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
  """Raises ValueError unless push-sum keeps the sums of x and of w."""
  if not weights.sum_to_one(0):
    worst, column = _worst_column(weights)
    raise ValueError(
      'push-sum needs a mixing with columns that sum to 1, got '
      f'{worst:.6g} in column {column}; divide each column by its sum'
    )
  least, least_sum = np.min(
    [(W.min(), W.sum(axis=1).min()) for W in weights.each()], axis=0
  )
  if least < 0 or least_sum == 0:
    raise ValueError(
      'push-sum needs weights >= 0 and one > 0 in each row, got a smallest of '
      f'{least:.6g} and a row that sums to {least_sum:.6g}; keep some weight '
      'on the diagonal'
    )


def one_matrix(weights: Weights) -> None:
  """Raises ValueError if W changes from round to round."""
  if weights.number != 1:
    raise ValueError(
      'sums of what the neighbors sent need one W for all rounds, got '
      f'{weights.number or "many"}; use a static graph such as pr.graphs.ring()'
    )


def keeps_the_mean(weights: Weights) -> None:
  """Raises ValueError unless the columns of W sum to one, as its rows must."""
  if not weights.sum_to_one(0):
    worst, column = _worst_column(weights)
    raise ValueError(
      'corrections that cancel need a mixing that keeps the mean of the '
      f'replicas: columns that sum to 1, got {worst:.6g} in column {column}; '
      'use pr.graphs.ring() or another doubly stochastic mixing'
    )


def symmetric_above(bound: float, bound_in_words: str) -> Check:
  """A check that each W is symmetric and its eigenvalues exceed a bound."""

  def check(weights: Weights) -> None:
    if any(abs(W - W.T).max() > 1e-6 for W in weights.each()):
      raise ValueError(
        'this correction needs a symmetric W, got one that is not; use '
        'pr.graphs.ring(0.5) or another undirected graph'
      )
    smallest = min(
      np.linalg.eigvalsh(W.toarray()).min() for W in weights.each()
    )
    # A W on the bound itself is not a matter of its rounding.
    if smallest <= bound + 1e-9:
      raise ValueError(
        'this correction needs a W whose eigenvalues are > '
        f'{bound_in_words}, got a smallest of {smallest:.6g}; put more weight '
        'on the diagonal, such as (I + W) / 2 or pr.graphs.ring(0.5)'
      )

  return check


def means_of_groups(weights: Weights) -> None:
  """Raises ValueError unless each W takes means in disjoint groups."""
  apart = max(
    max(abs(W - W.T).max(), abs(W @ W - W).max()) for W in weights.each()
  )
  if apart > 1e-6:
    raise ValueError(
      'averages on a virtual clock are means of pairs or other groups, got a '
      'mixing that is none; use pr.graphs.random_matching()'
    )


def _worst_column(weights: Weights) -> tuple[float, int]:
  """The sum that is farthest from 1, and its column."""
  sums = np.stack([W.sum(axis=0) for W in weights.each()])
  _, column = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
  return sums.flat[np.abs(sums - 1).argmax()], int(column)

"""A row of the law table: an algorithm, its oracle, and what is claimed."""

from collections.abc import Callable
import dataclasses

import numpy as np
import optax

import prsgd_jax as pr
from tests import reference

N, T, LEARNING_RATE, MOMENTUM = 8, 24, 0.05, 0.9
LOCAL_STEPS = (1, 3, 8, 2, 5, 8, 4, 6)
W = reference.random_doubly_stochastic(N)
J = np.full((N, N), 1 / N)

SGD = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
PLAIN = optax.sgd(LEARNING_RATE)


@dataclasses.dataclass(frozen=True)
class Row:
  """An algorithm of the library, its oracle, and what is claimed of it.

  Attributes:
    make: makes the chain.
    oracle: `problem -> [T + 1, N, d]`, given learning_rate and momentum.
    order: 'A', 'B' or 'C' of PAPERS section 1, 'S' for mixed gradients.
    momentum: of the local optimizer.
    full_sync: 1-based steps t at which all replicas are averaged.
    keeps_mean: whether xbar moves by the mean of the local steps alone.
    every_layout: whether it runs on several D, or on ONE_LAYOUT only.
  """

  make: Callable[[], pr.base.ReplicaTransformation]
  oracle: Callable
  order: str
  momentum: float = MOMENTUM
  full_sync: tuple[int, ...] = ()
  keeps_mean: bool = True
  every_layout: bool = True


def multiples(period):
  return tuple(range(period, T + 1, period))

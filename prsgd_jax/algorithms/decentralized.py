"""Averages with graph neighbours only."""

from collections.abc import Sequence

import optax

from prsgd_jax.algorithms.common import PARAMS
from prsgd_jax.base import (
  ReplicaTransformation,
  chain,
)
from prsgd_jax.graphs import ring
from prsgd_jax.mixing import Mixing
from prsgd_jax.transforms import gradient, local_update, sync


def d_psgd(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing | None = None,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """Decentralized parallel SGD (order A).

  x_i <- sum_j W_ij x_j - gamma G(x_i): the gradient is taken at the replica's
  own point while the neighbours' models travel.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    mixing: W, symmetric and doubly stochastic in the theory; a ring with equal
      weights if None.
    what: the fields that are mixed.

  Reference:
    Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, Can decentralized algorithms
    outperform centralized algorithms? (arXiv 1705.09056), Algorithm 1.
  """
  neighbours = ring() if mixing is None else mixing
  return chain(gradient(), sync(neighbours, what=what), local_update(tx))

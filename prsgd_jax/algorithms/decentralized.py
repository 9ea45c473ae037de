"""Averages with graph neighbours only."""

from collections.abc import Sequence
import math

import optax

from prsgd_jax.algorithms.common import PARAMS
from prsgd_jax.base import (
  ReplicaTransformation,
  chain,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.graphs import one_peer_exponential, random_matching, ring
from prsgd_jax.mixing import Mixing
from prsgd_jax.schedules import every
from prsgd_jax.transforms import (
  apply_done,
  delayed_gradient,
  gradient,
  local_update,
  push_sum,
  sync,
  sync_done,
)


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
      weights if None. DPSGD (Zhang et al. 2021) has `random_matching()`.
    what: the fields that are mixed.

  Raises:
    ValueError: from `init`, if the rows of W do not sum to one, or it does not
      fit the number of replicas.

  Reference:
    Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, Can decentralized algorithms
    outperform centralized algorithms? (arXiv 1705.09056), Algorithm 1.
  """
  neighbours = ring() if mixing is None else mixing
  return chain(gradient(), sync(neighbours, what=what), local_update(tx))


def diffusion(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing | None = None,
  period: int = 1,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """Diffusion, or adapt-then-combine (order C).

  x_i <- sum_j W_ij (x_j - gamma G(x_j)); between rounds only the step in
  brackets.

  With W = 11'/N it is `k_avg(period=period)`.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    mixing: W, doubly stochastic in the theory; a ring with equal weights if
      None.
    period: steps between rounds of mixing; 1 in the paper.
    what: the fields that are mixed.

  Raises:
    ValueError: if `period` is not an integer >= 1; from `init`, if the rows of
      W do not sum to one, or it does not fit the number of replicas.

  Reference:
    Chen, Sayed 2012, Diffusion adaptation strategies for distributed
    optimization and learning over networks (arXiv 1111.0034), the
    adapt-then-combine form; its number in the paper was not verified.
  """
  neighbours = ring() if mixing is None else mixing
  return chain(
    gradient(),
    local_update(tx),
    sync(neighbours, when=every(period), what=what),
  )


def sgp(
  tx: optax.GradientTransformation, *, mixing: Mixing | None = None
) -> ReplicaTransformation:
  """Stochastic Gradient Push: gossip along directed links, by push-sum.

    x_i <- x_i - gamma G(z_i), the gradient at the de-biased z_i
    x_i <- sum_j P_ij x_j;  w_i <- sum_j P_ij w_j;  z_i = x_i / w_i

  The columns of P sum to one: each replica shares out what it has, whatever
  the others do. The mean of x moves by the mean step; z_i is what a replica
  holds and what is evaluated. With a doubly stochastic P, w is 1 and this is
  `diffusion`.

  Args:
    tx: the optimizer of every replica; its update of z_i is added to x_i.
    mixing: P, column-stochastic; the one-peer exponential graph if None.

  Raises:
    ValueError: from `init`, if the columns of P do not sum to one, or it does
      not fit the number of replicas.

  Reference:
    Assran, Loizou, Ballas, Rabbat 2019, Stochastic gradient push for
    distributed deep learning (arXiv 1811.10792), Algorithm 1. Its experiments
    have Nesterov momentum in `tx`; that it too acts on x was not verified.
  """
  senders = one_peer_exponential() if mixing is None else mixing
  return chain(push_sum(senders, gradient(), local_update(tx)))


def ad_psgd(
  tx: optax.GradientTransformation,
  *,
  speeds: Sequence[int],
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """Asynchronous decentralized parallel SGD, simulated on a virtual clock.

  When replica i is done with a gradient that it began at the model y_i:

    x_i, x_j <- (x_i + x_j) / 2 with a random neighbour j, atomically
    x_i <- x_i - gamma G(y_i);  y_i <- x_i, and the next gradient is begun.

  Meanwhile others have averaged with it, so that G is old. A step is a tick: a
  gradient of replica i takes lcm(speeds) / speeds[i] ticks, as long as all
  others of it, and its batch is that of the tick at which it is begun. In a
  tick everyone has one neighbour. With equal speeds a gradient takes one tick
  and this is `d_psgd(mixing=random_matching())`.

  Args:
    tx: the optimizer of every replica; momentum stays local, and the learning
      rate is that of the tick.
    speeds: int[N], how many gradients each replica takes in the same time, such
      as (1, 1, 2, 4).
    mixing: the neighbours of a tick, pairs (or groups) that take their mean;
      `random_matching()` if None.

  Raises:
    ValueError: if a speed is not an integer >= 1; from `init`, if there is not
      one for each replica, or the mixing does more than to take means in
      groups.

  Reference:
    Lian, Zhang, Zhang, Liu 2018, Asynchronous decentralized parallel stochastic
    gradient descent (arXiv 1710.06952), Algorithm 1, whose random worker and
    staleness the clock decides here. In the paper a neighbour may be chosen by
    several workers, one after the other; here by one in a tick.
  """
  counts = [check_positive_int('speeds', s) for s in speeds]
  durations = [math.lcm(*counts) // s for s in counts]
  pairs = random_matching() if mixing is None else mixing
  return chain(
    delayed_gradient(durations),
    sync_done(pairs, durations),
    apply_done(durations, local_update(tx)),
  )

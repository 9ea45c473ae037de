"""Averages with graph neighbors only."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.algorithms import virtual_clock
from prsgd_jax.algorithms.common import Average, average_by
from prsgd_jax.algorithms.rates import as_rate
from prsgd_jax.algorithms.requirements import (
  check_mixing,
  column_stochastic,
  means_of_groups,
  one_matrix,
  requires,
)
from prsgd_jax.base import Array, ArrayTree, ReplicaTransformation, Schedule
from prsgd_jax.checks import check_number
from prsgd_jax.mixing.codecs import Compressor, check_compressor
from prsgd_jax.mixing.graphs.fixed import one_peer_exponential, ring
from prsgd_jax.mixing.graphs.random_graphs import random_matching
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.mixing.payload import is_inexact
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  compute,
  gradient,
  let,
  local_update,
  remember,
  step,
  sync,
  where,
  zeros,
)


def d_psgd(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing | None = None,
  average: Average = sync,
) -> ReplicaTransformation:
  """Decentralized parallel SGD (order A).

  x_i <- sum_j W_ij x_j - gamma G(x_i): the gradient is taken at the replica's
  own point while the neighbors' models travel.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    mixing: W, symmetric and doubly stochastic in the theory; a ring with equal
      weights if None. DPSGD (Zhang et al. 2021) has `random_matching()`.
    average: the stage that mixes, given W; by default it mixes the parameters.

  Raises:
    ValueError: if `mixing` is not one; from `init`, if the rows of W do not sum
      to one, or it does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.d_psgd(optax.sgd(0.1), mixing=pr.graphs.torus())

  Reference:
    Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, Can decentralized algorithms
    outperform centralized algorithms? (arXiv 1705.09056), Algorithm 1.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  return algorithm(
    'd_psgd', gradient(), average_by(average, W), local_update(tx)
  )


def diffusion(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  mixing: Mixing | None = None,
  period: int | Schedule = 1,
  average: Average = sync,
) -> ReplicaTransformation:
  """Diffusion, or adapt-then-combine (order C).

  x_i <- sum_j W_ij (x_j - gamma G(x_j)); between rounds only the step in
  brackets.

  With W = 11'/N it is `k_avg(period=period)`.

  Args:
    local: the optimizer of every replica, or a stage that is its local step.
    mixing: W, doubly stochastic in the theory; a ring with equal weights if
      None.
    period: steps between rounds of mixing, or a schedule; 1 in the paper.
    average: the stage that mixes, given W; by default it mixes the parameters.

  Raises:
    ValueError: if `period` is neither an integer >= 1 nor a schedule, or
      `mixing` is not one; from `init`, if the rows of W do not sum to one, or
      it does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diffusion(
    ...     optax.sgd(0.1), mixing=pr.graphs.ring(), period=4)

  Reference:
    Chen, Sayed 2012, Diffusion adaptation strategies for distributed
    optimization and learning over networks (arXiv 1111.0034), the
    adapt-then-combine form; its number in the paper was not verified.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  return algorithm(
    'diffusion', step(local), at(rounds(period), average_by(average, W))
  )


def sgp(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing | None = None,
  period: int | Schedule = 1,
  average: Average = sync,
) -> ReplicaTransformation:
  """Stochastic Gradient Push: gossip along directed links, by push-sum.

    x_i <- x_i - gamma G(z_i), the gradient at the de-biased z_i
    x_i <- sum_j P_ij x_j;  w_i <- sum_j P_ij w_j;  z_i = x_i / w_i

  The columns of P sum to one: each replica distributes what it has, whatever
  the others do. The mean of x moves by the mean step. `params` are z, and
  `weight` is w: in these, z_i <- z_i - gamma G(z_i) / w_i, and `sync` weights
  every model it sends. With a doubly stochastic P, w is 1 and this is
  `diffusion`.

  Args:
    tx: the optimizer of every replica; its update at z_i is added to x_i.
    mixing: P, column-stochastic; the one-peer exponential graph if None.
    period: steps between rounds of mixing, or a schedule; 1 in the paper.
    average: the stage that mixes, given P; by default it mixes the parameters.

  Raises:
    ValueError: if `period` is neither an integer >= 1 nor a schedule, or
      `mixing` is not one; from `init`, if the columns of P do not sum to one, a
      weight is negative, or it does not fit the number of replicas.

  Example:
    >>> import numpy as np, optax, prsgd_jax as pr
    >>> P = [[0.5, 0.5], [0.2, 0.8]]  # of 1 half stays, half goes to 2
    >>> algorithm = pr.sgp(
    ...     optax.sgd(0.1), mixing=pr.graphs.graph(np.transpose(P)), period=4)

  Reference:
    Assran, Loizou, Ballas, Rabbat 2019, Stochastic gradient push for
    distributed deep learning (arXiv 1811.10792), Algorithm 1. Its experiments
    have Nesterov momentum in `tx`; that it too acts on x was not verified.
  """
  P = one_peer_exponential() if mixing is None else check_mixing(mixing)
  return algorithm(
    'sgp',
    requires(P, column_stochastic),
    remember(weight=1.0),
    gradient(),
    local_update(tx, into='u'),
    let(params=lambda params, u, weight: params + u / weight),
    at(rounds(period), average_by(average, P)),
  )


def ad_psgd(
  tx: optax.GradientTransformation,
  *,
  speeds: Sequence[int],
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """Asynchronous decentralized parallel SGD, simulated on a virtual clock.

  When replica i is done with a gradient that it began at the model y_i:

    x_i, x_j <- (x_i + x_j) / 2 with a random neighbor j, atomically
    x_i <- x_i - gamma G(y_i);  y_i <- x_i, and the next gradient begins.

  Meanwhile others have averaged with it, so that G is old. A step is a tick: a
  gradient of replica i takes lcm(speeds) / speeds[i] ticks, and its batch is
  that of the tick at which it begins. In a tick everyone has one neighbor.
  Pairs of which neither is done do not meet. With equal speeds a gradient takes
  one tick, and this is `d_psgd(mixing=random_matching())`.

  Args:
    tx: the optimizer of every replica; momentum stays local, and the learning
      rate is that of the tick.
    speeds: int[N], gradients that each replica takes in equal times, such as
      (1, 1, 2, 4).
    mixing: the neighbors of a tick, pairs (or groups) that take their mean;
      `random_matching()` if None.

  Raises:
    ValueError: if a speed is not an integer >= 1, or `mixing` is not one; from
      `init`, if there is not one speed for each replica, or the mixing does
      more than to take means in groups.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=(1, 1, 2, 4))

  Reference:
    Lian, Zhang, Zhang, Liu 2018, Asynchronous decentralized parallel stochastic
    gradient descent (arXiv 1710.06952), Algorithm 1, whose random worker and
    staleness the clock decides here. In the paper a neighbor may be chosen by
    several workers, one after the other; here by one in a tick.
  """
  pairs = random_matching() if mixing is None else check_mixing(mixing)
  ticks = virtual_clock.durations(speeds)
  begins, ends = virtual_clock.begins(ticks), virtual_clock.ends(ticks)

  def done(step: Array, replica: Array) -> Array:
    return 1.0 * ends.fn(step, replica)

  return algorithm(
    'ad_psgd',
    requires(pairs, means_of_groups),
    remember(held=zeros),
    where(begins, gradient(), let(held='grads')),
    at(
      virtual_clock.any_ends(ticks),
      let(met='params', done=done),
      sync(pairs, ('met', 'done'), waits=False),
      let(params=lambda params, met, done: jnp.where(done > 0, met, params)),
    ),
    where(ends, let(grads='held'), local_update(tx)),
  )


def sparq_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  learning_rate: optax.ScalarOrSchedule,
  threshold: float | Schedule,
  period: int | Schedule,
  compressor: Compressor,
  consensus_step_size: float,
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """SPARQ-SGD: compressed gossip of those that have changed enough (order C).

  Each replica knows xhat_j, what j has sent so far, of its neighbors and of
  itself. Every H steps:

    q_i = Q(x_i - xhat_i) if |x_i - xhat_i|^2 > c_t gamma_t^2, otherwise 0
    xhat_j <- xhat_j + q_j;  x_i <- x_i + eta sum_j W_ij (xhat_j - xhat_i)

  With c = 0 it is `choco_sgd(period=H)`. The mean of x moves by the mean step,
  whoever sends.

  The data decide who sends, so that the bytes of a run cannot be known before
  it. The ledger counts a message of every replica in every round, an upper
  bound: the simulation itself sends that, zeros for nothing. The register
  `sparq_sgd.sent` counts the rounds in which each replica sent; its mean over
  the replicas times the bytes of a round are the bytes of the paper.

  Args:
    local: the optimizer of every replica, or a stage that is its local step.
    learning_rate: gamma, that of `local`: a number or the same schedule.
    threshold: c, of the squared change in units of the learning rate; >= 0, or
      a schedule c_t of the step, which increases in the paper.
    period: H, steps between checks, or a schedule.
    compressor: Q, a contraction such as `top_k`, which maps 0 to 0.
    consensus_step_size: eta, in (0, 1]. It has to be small where Q leaves out
      much.
    mixing: W, constant and doubly stochastic; a ring with equal weights if
      None.

  Raises:
    ValueError: if an argument is not what it should be; from `init`, if W does
      not fit the number of replicas, its rows do not sum to one, or it changes.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.sparq_sgd(
    ...     optax.sgd(0.1), learning_rate=0.1, threshold=100.0, period=5,
    ...     compressor=pr.codecs.top_k(0.1), consensus_step_size=0.2)

  Reference:
    Singh, Data, George, Diggavi 2019, SPARQ-SGD: Event-triggered and compressed
    communication in decentralized stochastic optimization (arXiv 1910.14280).
    The update was read in a catalogue of optimizers, not in the paper; that it
    is Algorithm 1 was not verified. The paper's Q is a sparsified quantizer.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  check_compressor(compressor)
  eta = check_number(
    'consensus_step_size',
    consensus_step_size,
    lambda g: 0 < g <= 1,
    'in (0, 1]',
  )
  rate = as_rate(learning_rate)
  if callable(threshold):
    c = threshold
  else:
    check_number(
      'threshold',
      threshold,
      lambda c: 0 <= c < math.inf,
      'a schedule, or >= 0 and finite',
    )
    c = lambda step: threshold  # noqa: E731

  def far(params: ArrayTree, known: ArrayTree, step: Array) -> Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(known), strict=True)
    parts = [((x - y) ** 2).sum() for x, y in pairs if is_inexact(x)]
    return sum(parts) > c(step) * rate(step) ** 2

  return algorithm(
    'sparq_sgd',
    requires(W, one_matrix),
    remember(known=zeros, mixed=zeros, sent=0.0),
    step(local),
    at(
      rounds(period),
      compute(far=far),
      let(
        q=lambda params, known, far: jnp.where(far, params - known, 0),
        sent=lambda sent, far: sent + far,
      ),
      sync(W, 'q', codec=compressor, own='own'),
      let(
        known=lambda known, own: known + own,
        mixed=lambda mixed, q: mixed + q,
        params=lambda params, mixed, known: params + eta * (mixed - known),
      ),
    ),
  )

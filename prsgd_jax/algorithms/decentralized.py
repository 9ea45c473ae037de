"""Averages with the neighbors in a graph only."""

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
from prsgd_jax.base import (
  Array,
  ArrayTree,
  ReplicaTransformation,
  Schedule,
  chain,
)
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
  on_resize,
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

    x_i <- sum_j W_ij x_j - gamma G(x_i)

  The gradient is taken at the replica's own point while the models are sent.

  Args:
    tx: an optimizer for every replica; momentum stays local.
    mixing: W, symmetric and doubly stochastic in the theory. Default: a ring
      with equal weights. DPSGD (Zhang et al. 2021) has `random_matching()`.
    average: `mixing -> stage`, which mixes by W. Default: `sync`, which mixes
      the parameters.

  Raises:
    ValueError: if `mixing` is not a mixing; from `init`, if the rows of W do
      not sum to one, or if W does not fit the number of replicas.

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

  x_i <- sum_j W_ij (x_j - gamma G(x_j)); between rounds only the local step,
  in parentheses.

  With W = 11'/N it is `k_avg(period=period)`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    mixing: W, doubly stochastic in the theory. Default: a ring with equal
      weights.
    period: steps between rounds of mixing, or a schedule; 1 in the paper.
    average: `mixing -> stage`, which mixes by W. Default: `sync`, which mixes
      the parameters.

  Raises:
    ValueError: if `period` is neither an integer >= 1 nor a schedule, or if
      `mixing` is not a mixing; from `init`, if the rows of W do not sum to one,
      or if W does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diffusion(
    ...     optax.sgd(0.1), mixing=pr.graphs.ring(), period=4)

  Reference:
    Chen, Sayed 2012, Diffusion adaptation strategies for distributed
    optimization and learning over networks (arXiv 1111.0034), the
    adapt-then-combine form (equation number not verified).
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

  The columns of P sum to one, so a replica can choose its own column without
  knowing the other replicas. The mean of x moves by the mean step. `params` are
  z and `weight` is w. In these, z_i <- z_i - gamma G(z_i) / w_i, and `sync`
  weights every model it sends. With a doubly stochastic P, w is 1 and this is
  `diffusion`.

  Args:
    tx: an optimizer for every replica; its update at z_i is added to x_i.
    mixing: P, column-stochastic. Default: the one-peer exponential graph.
    period: steps between rounds of mixing, or a schedule; 1 in the paper.
    average: `mixing -> stage`, which mixes by P. Default: `sync`, which mixes
      the parameters.

  Raises:
    ValueError: if `period` is neither an integer >= 1 nor a schedule, or if
      `mixing` is not a mixing; from `init`, if the columns of P do not sum to
      one, if a weight is negative, or if P does not fit the number of replicas.

  Example:
    >>> import numpy as np, optax, prsgd_jax as pr
    >>> P = [[0.5, 0.5], [0.2, 0.8]]  # replica 1 keeps half, sends half to 2
    >>> algorithm = pr.sgp(
    ...     optax.sgd(0.1), mixing=pr.graphs.graph(np.transpose(P)), period=4)

  Reference:
    Assran, Loizou, Ballas, Rabbat 2019, Stochastic gradient push for
    distributed deep learning (arXiv 1811.10792), Algorithm 1. Its experiments
    use Nesterov momentum in `tx`. Not verified: that it also acts on x.
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

  When replica i finishes a gradient that it started at the model y_i:

    x_i, x_j <- (x_i + x_j) / 2 with a random neighbor j, atomically
    x_i <- x_i - gamma G(y_i);  y_i <- x_i, and the next gradient begins.

  Meanwhile other replicas have averaged with it, so G is old. A step is one
  tick. A gradient of replica i takes lcm(speeds) / speeds[i] ticks and uses the
  batch of the tick at which it starts. In a tick, each replica has one
  neighbor. A pair does not average if neither of its replicas has finished.
  With equal speeds a gradient takes one tick, and this is
  `d_psgd(mixing=random_matching())`.

  Args:
    tx: an optimizer for every replica; momentum stays local. Its learning rate
      is evaluated at the tick.
    speeds: int[N], gradients per unit of time of each replica, such as
      (1, 1, 2, 4).
    mixing: the pairs (or groups) that average in a tick. Default:
      `random_matching()`.

  Raises:
    ValueError: if a speed is not an integer >= 1, or if `mixing` is not a
      mixing; from `init`, if the number of speeds is not N, or if the mixing is
      not a mean in disjoint groups.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=(1, 1, 2, 4))

  Reference:
    Lian, Zhang, Zhang, Liu 2018, Asynchronous decentralized parallel stochastic
    gradient descent (arXiv 1710.06952), Algorithm 1. Here the clock determines
    the active worker and the staleness. In the paper several workers may choose
    one neighbor in turn; here only one can in a tick.
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
  """SPARQ-SGD: compressed gossip, sent only after enough change (order C).

  Each replica knows xhat_j, the sum of what j has sent, for its neighbors and
  itself. Every H steps:

    q_i = Q(x_i - xhat_i) if |x_i - xhat_i|^2 > c_t gamma_t^2, otherwise 0
    xhat_j <- xhat_j + q_j;  x_i <- x_i + eta sum_j W_ij (xhat_j - xhat_i)

  With c = 0 it is `choco_sgd(period=H)`. The mean of x always moves by the mean
  step.

  The senders depend on the data, so the bytes cannot be counted in advance. The
  ledger counts a message of every replica in every round. This upper bound is
  what the simulation sends, with zeros in place of no message. The register
  `sparq_sgd.sent` counts the rounds in which each replica sent. Its mean over
  the replicas, times the bytes of a round, gives the bytes of the paper.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    learning_rate: gamma, the learning rate of `local`: a number or a schedule.
    threshold: c, the threshold of the squared change in units of gamma^2, >= 0;
      or a schedule c_t of the step. It increases in the paper.
    period: H, steps between checks, or a schedule.
    compressor: Q, a contraction such as `top_k`, which maps 0 to 0.
    consensus_step_size: eta, in (0, 1]. Use a smaller value the more Q leaves
      out.
    mixing: W, constant and doubly stochastic. Default: a ring with equal
      weights.

  Raises:
    ValueError: if an argument has the wrong type or is out of range; from
      `init`, if W does not fit the number of replicas, if its rows do not sum
      to one, or if it changes between rounds.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.sparq_sgd(
    ...     optax.sgd(0.1), learning_rate=0.1, threshold=100.0, period=5,
    ...     compressor=pr.codecs.top_k(0.1), consensus_step_size=0.2)

  Reference:
    Singh, Data, George, Diggavi 2019, SPARQ-SGD: Event-triggered and compressed
    communication in decentralized stochastic optimization (arXiv 1910.14280).
    The update was read in a catalog of optimizers, not in the paper. Not
    verified: that it is Algorithm 1. The paper's Q is a sparsified quantizer.
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
    chain(
      remember(known=zeros, mixed=zeros, sent=0.0),
      on_resize(mixed='known'),  # because the known values are then equal
    ),
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

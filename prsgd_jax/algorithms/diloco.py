"""DiLoCo and its synchronous variants: one outer step per round."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from prsgd_jax.algorithms.common import AVERAGE, Average, average_by
from prsgd_jax.base import Array, ReplicaTransformation, Schedule
from prsgd_jax.checks import check_number, check_optax
from prsgd_jax.mixing.graphs.random_graphs import random_matching
from prsgd_jax.mixing.mixings import Mixing, mean
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  gradient,
  let,
  local_update,
  outer_update,
  remember,
  step,
  sync,
  zeros,
)

DILOCO_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)


def diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer: optax.GradientTransformation | None = None,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """DiLoCo: an outer optimizer over the mean of many local steps (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0.

  On one replica it is SNOO; with plain SGD as outer optimizer it is Lookahead.

  Args:
    local: an optimizer for every replica, AdamW in the paper, or a stage that
      takes its local step. `k_avg(tx, ...)` with group means adds the outer
      optimizer to Hier-AVG, and `sgp(...)` adds it to push-sum.
    period: H, steps in a round, 500 in the paper; or the schedule of the ends
      of rounds.
    outer: an optax transformation of the pseudo-gradient. Its schedules count
      rounds. Default: Nesterov SGD with learning rate eta = 0.7 and momentum
      mu = 0.9, with the rate outside the buffer: m <- mu m + d,
      x0 <- x0 - eta (mu m + d).
    average: the stage at the end of a round. With gossip such as
      `sync(ring())`, every replica has its own x0. `average_differences(...)`
      compresses the differences. Default: the mean of the parameters.

  Raises: ValueError: if `period` is not an integer >= 1 or a schedule, or if an
  argument has the wrong type.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diloco(optax.adamw(1e-3), period=500)

  Reference:
    Douillard et al. 2023, DiLoCo: distributed low-communication training of
    language models (arXiv 2311.08105), Algorithm 1.
  """
  outer = DILOCO_OUTER if outer is None else outer
  return outer_rounds('diloco', local, outer, period=period, average=average)


def outer_rounds(
  name: str,
  local: optax.GradientTransformation | ReplicaTransformation,
  outer: optax.GradientTransformation,
  *,
  period: int | Schedule,
  average: ReplicaTransformation,
) -> ReplicaTransformation:
  """Return DiLoCo under a name: x0 <- x0 + outer(x0 - average);  x_i <- x0."""
  check_optax('outer', outer)
  return algorithm(
    name,
    remember(x0='params'),
    step(local),
    at(
      rounds(period),
      average,
      let(delta=lambda x0, params: x0 - params),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )


def muloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule = 30,
  outer_learning_rate: float | Callable[[Array], Array] = 0.7,
  outer_momentum: float = 0.6,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """MuLoCo: DiLoCo whose inner optimizer is Muon (order C).

  After H steps of Muon from x0, d = x0 - mean_j x_j:  u <- mu u + eta d;
  x0 <- x0 - mu u - eta d;  x_i <- x0.

  The rate is inside the buffer, as in the paper's code; in `diloco` it is
  outside. They differ only if eta follows a schedule. With mu = 0 and eta = 1
  it is `k_avg`. A round of one step with mu = 0 and eta = 1 is not Muon of the
  mean gradient, because orthogonalizing and averaging do not commute.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      The paper uses `optax.contrib.muon(0.02)`: Muon for matrices and AdamW for
      other parameters. `muon_weight_dimension_numbers` excludes embeddings and
      heads, as in the paper.
    period: H, steps in a round, or the schedule of the ends of rounds. Default:
      30.
    outer_learning_rate: eta, > 0, or an optax schedule of the round. Default:
      0.7.
    outer_momentum: mu, in [0, 1). Default: 0.6.
    average: the stage at the end of a round. Default: the mean of the
      parameters.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.muloco(optax.contrib.muon(0.02), period=30)

  Reference:
    Therien et al. 2025, MuLoCo: Muon is a practical inner optimizer for DiLoCo
    (arXiv 2505.23725), and its code (`muloco/jax/muloco.py`). optax corrects
    the bias of Muon's momentum and uses AdamW with Nesterov momentum for other
    parameters. Not verified: that the code does so.
  """
  if not callable(outer_learning_rate):
    outer_learning_rate = check_number(
      'outer_learning_rate',
      outer_learning_rate,
      lambda x: x > 0,
      'a schedule or > 0',
    )
  mu = _check_momentum(outer_momentum)
  outer = optax.chain(
    optax.scale_by_learning_rate(outer_learning_rate),
    optax.trace(mu, nesterov=True),
  )
  return outer_rounds('muloco', local, outer, period=period, average=average)


def noloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer_learning_rate: float = 0.7,
  outer_momentum: float = 0.5,
  mixing: Mixing | None = None,
  average: Average = sync,
) -> ReplicaTransformation:
  """NoLoCo: an outer optimizer over random pairs, no all-reduce (order C).

  After H local steps from phi_i, with means over a random group g of replicas,
  drawn in each round:
  delta_i <- a delta_i + eta mean_g(x_j - phi_j) + eta (mean_g phi_j - phi_i);
  phi_i <- phi_i + delta_i;  x_i <- phi_i.

  The two means add up to mean_g x_j - phi_i, so only x_j is sent, half of the
  bytes of the authors' code. With one group of all replicas it is DiLoCo with
  heavy-ball momentum. With a = 0 and eta = 1 it is diffusion over random pairs.
  The mean of phi_i follows the heavy ball for any groups.

  Args:
    local: an optimizer for every replica, Adam in the paper, or a stage that
      takes its local step.
    period: H, steps in a round, 50 in the paper; or the schedule of the ends of
      rounds.
    outer_learning_rate: eta, > 0. Default: 0.7.
    outer_momentum: a, in [0, 1). Default: 0.5.
    mixing: the random groups, drawn in each round. Default: random pairs.
    average: `mixing -> stage` at the end of a round. Default: `sync`, which
      averages the parameters.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the mixing does
      not fit the number of replicas.

  Example:
    >>> import optax
    >>> algorithm = noloco(optax.adam(1e-3), period=50)

  Reference:
    Kolehmainen et al. 2025, NoLoCo: no-all-reduce low communication training
    method for large models (arXiv 2506.10911), as in its code
    (`sparse_optimizer_c.py`), in which the weight of the pull towards
    mean_g phi_j is eta. Not verified: the weight in the paper.
  """
  eta = check_number(
    'outer_learning_rate', outer_learning_rate, lambda x: x > 0, '> 0'
  )
  outer = optax.sgd(eta, momentum=_check_momentum(outer_momentum))
  pairs = random_matching() if mixing is None else mixing
  return outer_rounds(
    'noloco', local, outer, period=period, average=average_by(average, pairs)
  )


def des_loc(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  first_moment_period: int | Schedule,
  second_moment_period: int | Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """DES-LOC: Adam's moments are averaged less often than parameters (order A).

  If t mod K_x = 0, x_i <- mean_j x_j; if t mod K_u = 0, m_i <- mean_j m_j; if
  t mod K_v = 0, v_i <- mean_j v_j. Then, with G_i taken before the means,
  m_i <- b1 m_i + (1 - b1) G_i;  v_i <- b2 v_i + (1 - b2) G_i^2;
  x_i <- x_i + tx(mhat_i / (sqrt(vhat_i) + eps)), where hats denote Adam's bias
  correction.

  If the gradient is 0 on some replicas, v_i is 0 there. With K_u < K_v, the
  first mean of m_i then causes a step of m_i / eps, which is huge for a small
  eps.

  With equal periods it is Adam in order A with parameters and moments averaged
  together. With all periods 1 it is not synchronous Adam, which squares the
  mean gradient in its second moment.

  Args:
    tx: the optimizer that receives Adam's direction, `optax.sgd(gamma)` without
      momentum. Chained after `optax.add_decayed_weights` it makes AdamW.
    period: K_x, steps between means of the parameters, or their schedule.
    first_moment_period: K_u, steps between means of the first moment; 3 K_x in
      the paper.
    second_moment_period: K_v, steps between means of the second moment; 6 K_x
      in the paper.
    b1: decay of the first moment, in [0, 1). Default: 0.9.
    b2: decay of the second moment, in [0, 1). Default: 0.999.
    eps: number added to the root, > 0. Default: 1e-8.
    average: the stage that averages the parameters, once a `period`. Default:
      their mean.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax
    >>> algorithm = des_loc(
    ...     optax.sgd(1e-3), period=8, first_moment_period=24,
    ...     second_moment_period=48)

  Reference:
    Iacob et al. 2025, DES-LOC: desynced low communication adaptive optimizers
    for training foundation models (arXiv 2505.22549). The order and the periods
    come from a catalog that copies the paper's equations without bias
    correction. Not verified: either of them in the paper. The paper's clipping
    is not included; clip G_i in the loss if needed.
  """
  b1 = check_number('b1', b1, lambda x: 0 <= x < 1, 'in [0, 1)')
  b2 = check_number('b2', b2, lambda x: 0 <= x < 1, 'in [0, 1)')
  eps = check_number('eps', eps, lambda x: x > 0, '> 0')

  def direction(m: Array, v: Array, step: Array) -> Array:
    t = step + 1
    root = jnp.sqrt(v / (1 - b2**t).astype(v.dtype))
    return m / (1 - b1**t).astype(m.dtype) / (root + eps)

  return algorithm(
    'des_loc',
    remember(m=zeros, v=zeros),
    gradient(),
    at(rounds(period), average),
    at(rounds(first_moment_period), sync(mean(), 'm')),
    at(rounds(second_moment_period), sync(mean(), 'v')),
    let(
      m=lambda m, grads: b1 * m + (1 - b1) * grads,
      v=lambda v, grads: b2 * v + (1 - b2) * grads**2,
      grads=direction,
    ),
    local_update(tx),
  )


def _check_momentum(momentum: float) -> float:
  return check_number(
    'outer_momentum', momentum, lambda x: 0 <= x < 1, 'in [0, 1)'
  )

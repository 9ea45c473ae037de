"""DiLoCo and its synchronous relatives: an outer optimizer steps by rounds."""

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
  """DiLoCo: an outer optimizer steps by the mean of many local steps (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0.

  On one replica it is SNOO, and with plain SGD outside Lookahead.

  Args:
    local: optimizer of every replica, AdamW in the paper, or a chain that is
      the local step: `k_avg(tx, ...)` with group means makes an outer optimizer
      of Hier-AVG, `sgp(...)` one of push-sum.
    period: H, steps of a round, 500 in the paper, or the schedule of its ends.
    outer: optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9, the rate outside the buffer: m <-
      mu m + d, x0 <- x0 - eta (mu m + d). Its schedules count rounds.
    average: stage at the end of a round. Default: the mean of the parameters.
      With gossip such as `sync(ring())`, every replica has an x0 of its own.
      `average_differences(...)` sends the differences in codes.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or an
      optimizer is none.

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
  """x0 <- x0 + outer(x0 - average);  x_i <- x0: DiLoCo by any other name."""
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

  The rate is inside the buffer, as in the paper's code; `diloco` has it
  outside. They differ only if eta follows a schedule. With mu = 0 and eta = 1
  it is `k_avg`. A round of one step with mu = 0 and eta = 1 is not Muon of the
  mean gradient: orthogonalizing and averaging do not commute.

  Args:
    local: `optax.contrib.muon(0.02)` in the paper: Muon for matrices, AdamW for
      other parameters. `muon_weight_dimension_numbers` excludes embeddings and
      heads, as the paper does. Or any other optimizer or local step.
    period: H, steps of a round, or the schedule of its ends. Default 30.
    outer_learning_rate: eta, > 0, or an optax schedule of the round. Default
      0.7.
    outer_momentum: mu, in [0, 1). Default 0.6.
    average: stage at the end of a round. Default: the mean of the parameters.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.muloco(optax.contrib.muon(0.02), period=30)

  Reference:
    Therien et al. 2025, MuLoCo: Muon is a practical inner optimizer for DiLoCo
    (arXiv 2505.23725), and its code (`muloco/jax/muloco.py`). optax corrects
    the bias of Muon's momentum and gives the other parameters AdamW with
    Nesterov momentum, which was not compared with the code.
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

  After H local steps from phi_i, with the mean over a group of replicas g that
  is drawn for this round:
  delta_i <- a delta_i + eta mean_g(x_j - phi_j) + eta (mean_g phi_j - phi_i);
  phi_i <- phi_i + delta_i;  x_i <- phi_i.

  The two means add up to mean_g x_j - phi_i, so that only x_j is sent: half of
  what the code sends. With one group of all replicas it is DiLoCo with heavy
  ball, with a = 0 and eta = 1 diffusion over random pairs. The mean of phi_i
  follows the heavy ball for any groups.

  Args:
    local: optimizer of every replica, Adam in the paper, or a chain that is the
      local step.
    period: H, steps of a round, 50 in the paper, or the schedule of its ends.
    outer_learning_rate: eta, > 0. Default 0.7.
    outer_momentum: a, in [0, 1). Default 0.5.
    mixing: groups, one draw for each round. Default: random pairs.
    average: makes the stage at the end of a round from the mixing. Default:
      `sync`.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the mixing does
      not fit the number of replicas.

  Reference:
    Kolehmainen et al. 2025, NoLoCo: no-all-reduce low communication training
    method for large models (arXiv 2506.10911), as in its code
    (`sparse_optimizer_c.py`). The weight of the pull towards mean_g phi_j is
    eta there; whether the paper has another was not verified.
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
  """DES-LOC: parameters and Adam's moments at periods of their own (order A).

  If t mod K_x = 0, x_i <- mean_j x_j; if t mod K_u = 0, m_i <- mean_j m_j; if
  t mod K_v = 0, v_i <- mean_j v_j. Then, with G_i taken before the means,
  m_i <- b1 m_i + (1 - b1) G_i;  v_i <- b2 v_i + (1 - b2) G_i^2;
  x_i <- x_i + tx(mhat_i / (sqrt(vhat_i) + eps)), hats for Adam's correction of
  the start.

  Where the gradient is 0 on some replicas, v_i is 0 there: if K_u < K_v, the
  first mean of m_i makes a step of m_i / eps, which a small eps makes huge.

  Equal periods are Adam in order A with parameters and moments averaged
  together. With all periods 1 it is not synchronous Adam, whose second moment
  is of the mean gradient.

  Args:
    tx: optimizer of Adam's direction, `optax.sgd(gamma)` without momentum;
      chained with `optax.add_decayed_weights` before, it makes AdamW.
    period: K_x, steps between means of the parameters, or their schedule.
    first_moment_period: K_u, of the first moment; 3 K_x in the paper.
    second_moment_period: K_v, of the second moment; 6 K_x in the paper.
    b1: decay of the first moment, in [0, 1). Default 0.9.
    b2: decay of the second moment, in [0, 1). Default 0.999.
    eps: added to the root, > 0. Default 1e-8.
    average: stage at the times of `period`. Default: the mean of the
      parameters.

  Raises:
    ValueError: if an argument is out of range.

  Reference:
    Iacob et al. 2025, DES-LOC: desynced low communication adaptive optimizers
    for training foundation models (arXiv 2505.22549). The order and the periods
    are from a catalogue that copies the paper's equations, which has no
    correction of the start; neither was verified in the paper. Clip G_i in the
    loss or leave it: the paper's clipping is left out.
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

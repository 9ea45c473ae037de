"""Momentum over whole rounds: SlowMo and BMUF."""

import optax

from prsgd_jax.algorithms.common import AVERAGE
from prsgd_jax.algorithms.diloco import outer_rounds
from prsgd_jax.algorithms.rates import as_rate, per_unit
from prsgd_jax.base import ReplicaTransformation, Schedule
from prsgd_jax.checks import check_bool, check_number
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import algorithm, at, let, remember, step, zeros


def slowmo(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  learning_rate: float | Schedule,
  period: int | Schedule,
  slow_learning_rate: float = 1.0,
  slow_momentum: float,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """SlowMo: momentum over rounds, in units of the learning rate (order C).

  After tau local steps from x_0:  u <- beta u + (x_0 - mean_j x_j) / gamma;
  x_i <- x_0 - alpha gamma u. If gamma is 0, u <- beta u and x_i <- x_0 -
  alpha (x_0 - mean_j x_j), the limit of x_i.

  With alpha = 1 and beta = 0 it is local SGD; with tau = 1 and plain SGD also
  synchronous SGD. On one replica with beta = 0 it is Lookahead.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      With `sgp(...)` it is the paper's SlowMo over push-sum.
    learning_rate: gamma, the learning rate of `local`: a number > 0 or a
      schedule of the step, evaluated in the last step of a round. In the paper,
      gamma is constant in a round.
    period: tau, steps between averages, or the schedule of the averages.
    slow_learning_rate: alpha, > 0. Default: 1.
    slow_momentum: beta, in [0, 1).
    average: the stage at the end of a round. The paper's experiments also reset
      the buffers of momentum SGD, `chain(sync(mean()), restart(tx))`, and keep
      the buffers of Adam. Default: the mean of the parameters.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or if a rate
      or beta is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> algorithm = pr.slowmo(
    ...     tx, learning_rate=0.1, period=12, slow_momentum=0.7,
    ...     average=pr.chain(pr.sync(pr.mixing.mean()), pr.restart(tx)))

  Reference:
    Wang, Tantia, Ballas, Rabbat 2020, SlowMo: improving communication-efficient
    distributed SGD with slow momentum (arXiv 1910.00643), Algorithm 1.
  """
  alpha = check_number(
    'slow_learning_rate', slow_learning_rate, lambda x: x > 0, '> 0'
  )
  beta = check_number(
    'slow_momentum', slow_momentum, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  rate = as_rate(learning_rate)
  return algorithm(
    'slowmo',
    remember(x0='params', u=zeros),
    step(local),
    at(
      rounds(period),
      average,
      let(
        delta=lambda x0, params: x0 - params,
        # alpha gamma u of the next u, without division, because gamma may be 0.
        x0=lambda x0, u, delta, step: (
          x0 - alpha * (beta * rate(step) * u + delta)
        ),
        u=lambda u, delta, step: beta * u + per_unit(delta, rate(step)),
        params='x0',
      ),
    ),
  )


def bmuf(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  block_momentum: float,
  block_learning_rate: float = 1.0,
  nesterov: bool = False,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Blockwise model-update filtering: momentum over whole blocks (order C).

  G = mean_j x_j - x, with x the last broadcast model;
  Delta <- eta Delta + zeta G;  w <- w + Delta. Every replica continues from w;
  with `nesterov`, it continues from w + eta Delta, which is also evaluated.

  At a constant learning rate it is SlowMo with alpha = zeta and beta = eta. In
  the broadcast models, the Nesterov variant is `optax.sgd(nesterov=True)`. So
  `diloco` is BMUF with Nesterov momentum, eta = 0.9 and zeta = 0.7.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: steps in a block, or the schedule of the ends of blocks.
    block_momentum: eta, in [0, 1).
    block_learning_rate: zeta, > 0. Default: 1.
    nesterov: whether replicas continue from the point ahead, w + eta Delta.
    average: the stage at the end of a block. With gossip such as
      `sync(ring())`, every replica has its own w. Default: the mean of the
      parameters.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or if eta or
      zeta is out of range.

  Example:
    >>> import optax
    >>> algorithm = bmuf(optax.sgd(0.1), period=8, block_momentum=0.875)

  Reference:
    Chen, Huo 2016, Scalable training of deep learning machines by incremental
    block training with intra-block parallel optimization and blockwise
    model-update filtering, equations of CBM and NBM (numbers not verified).
  """
  momentum = check_number(
    'block_momentum', block_momentum, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  rate = check_number(
    'block_learning_rate', block_learning_rate, lambda x: x > 0, '> 0'
  )
  nesterov = check_bool('nesterov', nesterov)
  outer = optax.sgd(rate, momentum=momentum, nesterov=nesterov)
  return outer_rounds('bmuf', local, outer, period=period, average=average)

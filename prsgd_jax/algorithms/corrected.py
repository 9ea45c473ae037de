"""Corrections for unlike data, unequal work, noise and ill-scaled layers."""

from collections.abc import Sequence

import numpy as np
import optax

from prsgd_jax.algorithms.common import NEVER, PARAMS
from prsgd_jax.base import (
  ReplicaTransformation,
  Schedule,
  chain,
)
from prsgd_jax.checks import check_number, check_optax, check_positive_int
from prsgd_jax.mixing import mean, weighted_mean
from prsgd_jax.preconditioners import limit_change, scale_by_natural_gradient
from prsgd_jax.schedules import every
from prsgd_jax.transforms import (
  average_iterates,
  control_variates,
  gradient,
  local_update,
  reset_buffers,
  sync,
  while_active,
)


def scaffold(
  tx: optax.GradientTransformation,
  *,
  period: int,
  learning_rate: optax.ScalarOrSchedule,
) -> ReplicaTransformation:
  """Stochastic controlled averaging: local SGD without drift to own optima.

  A round begins at the common x, y_i = x. K times, with c and c_i fixed,
    y_i <- y_i - gamma (g_i(y_i) - c_i + c);
  then all at once
    c_i+ = c_i - c + (x - y_i) / (K gamma)
    c+ = c + mean_i (c_i+ - c_i),  x+ = mean_i y_i.

  Where the f_i differ, local SGD with K > 1 ends beside the optimum of their
  mean; this does not. A round sends two models' worth: the parameters and the
  controls.

  The paper's local step is plain SGD. Here the correction -gamma (c - c_i) is
  added to the step of any `tx`, which for SGD is the same. With momentum c_i is
  then the mean velocity, and the optimum is still the right one (fed to the
  momentum with the gradient instead, the controls can diverge). With a `tx`
  that is not linear in the gradient, the replicas agree on where the mean of
  their steps is zero, which is not where the mean gradient is.

  Args:
    tx: the optimizer of every replica; SGD in the paper.
    period: K, local steps of a round.
    learning_rate: gamma, that of `tx`: a number or the same schedule of the
      step. With a schedule K gamma is the sum over the round, which follows
      from adding up the K local steps.

  Raises:
    ValueError: if `period` is not an integer >= 1, or `learning_rate` is
      neither a schedule nor a number > 0.

  Example:
    >>> import optax
    >>> algorithm = scaffold(optax.sgd(0.1), period=4, learning_rate=0.1)

  Reference:
    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, SCAFFOLD: Stochastic
    controlled averaging for federated learning (arXiv 1910.06378), Algorithm 1,
    option II, with full participation and a global step size of 1.
  """
  return chain(
    gradient(),
    local_update(tx),
    control_variates(period=period, learning_rate=learning_rate),
  )


def weighted_averaging(
  tx: optax.GradientTransformation,
  *,
  period: int,
  weights: Sequence[float],
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Local SGD whose average counts the replicas unequally (order C).

  From a common point each replica takes K steps; then
  x_i <- sum_j w_j x_j / sum_j w_j.

  With equal weights it is `k_avg`; where the f_i differ, it is to the weighted
  mean of them what `k_avg` is to the mean. For replicas that do unequal work
  see `wp_sgd`.

  Args:
    tx: the optimizer of every replica.
    period: K, steps between averages.
    weights: w, float[N], positive; only their ratios matter. FedAvg's are the
      numbers of examples.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a weight is not a finite
      number > 0; from `init`, if there is not one weight per replica.

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801), the average with
    weights given.
  """
  return chain(
    gradient(),
    local_update(tx),
    sync(weighted_mean(weights), when=every(period), what=what),
    reset_buffers(tx, when=reset),
  )


def wp_sgd(
  tx: optax.GradientTransformation,
  *,
  local_steps: Sequence[int],
  contraction: float,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """Weighted parallel SGD: the more a replica did, the more it counts.

  In a round of max_i I_i steps replica i takes I_i; then
  x_i <- sum_j w_j x_j / sum_j w_j with `delay_weights`.

  It presumes that the f_i are alike. Where they differ, plain averages already
  lean towards those that did more (FedNova), and these weights add to that.

  Args:
    tx: the optimizer of every replica.
    local_steps: I_i, one per replica.
    contraction: see `delay_weights`.
    what: the fields that the average covers.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or `contraction` is
      not in (0, 1]; from `init`, if there is not one number per replica.

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801). There one weighted
    average ends the run; here every round has one.
  """
  weights = delay_weights(local_steps, contraction=contraction)
  return chain(
    while_active(local_steps, gradient(), local_update(tx)),
    sync(weighted_mean(weights), when=every(int(max(local_steps))), what=what),
  )


def delay_weights(
  local_steps: Sequence[int], *, contraction: float
) -> np.ndarray:
  """WP-SGD's weights of replicas that did unequal work.

  w_i = r^(max_j I_j - I_i) / sum_j r^(max_k I_k - I_j): geometric in the
  delay, the steps by which replica i is behind the first.

  Where a step brings the iterate's distribution closer to its limit by a factor
  r, that of replica i is within r^I_i of it, and with these weights each
  replica adds as much to that bound on the weighted mean's distance. For SGD
  with step gamma on a loss with L2 of strength lambda r = 1 - gamma lambda. The
  geometric form is derived in this way; the paper's own equation was not
  verified.

  Args:
    local_steps: I_i, one per replica.
    contraction: r, in (0, 1]; 1 gives equal weights.

  Returns:
    float64[N], which add up to 1.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or `contraction` is
      not in (0, 1].

  Example:
    >>> delay_weights([3, 4], contraction=0.25).tolist()
    [0.2, 0.8]
  """
  steps = np.array([check_positive_int('local_steps', c) for c in local_steps])
  r = check_number(
    'contraction', contraction, lambda r: 0 < r <= 1, 'in (0, 1]'
  )
  weights = np.float64(r) ** (steps.max(initial=1) - steps)
  return weights / weights.sum()


def tail_averaging(
  tx: optax.GradientTransformation, *, start_step: int
) -> ReplicaTransformation:
  """N independent runs; the output is the mean of their last iterates.

  x_i^t = x_i^{t-1} - gamma G_i^t; the output is the mean over i of
  (1 / (T - s)) sum_{t = s+1}^T x_i^t, and the mean of the x_i until then.

  The training is not changed by it: the averages over time are the chain's
  `output`, and whoever evaluates it averages them over the replicas, which
  `cost` does not count. Chained after another algorithm, `average_iterates`
  gives that one's tail: chain(k_avg(tx, period=4), average_iterates(s)).

  Args:
    tx: the optimizer of every replica.
    start_step: s, the first 0-based step whose iterate counts.

  Raises:
    ValueError: if `start_step` is not an integer >= 0.

  Reference:
    Jain, Kakade, Kidambi, Netrapalli, Sidford 2018, Parallelizing stochastic
    gradient descent for least squares regression: mini-batching, averaging, and
    model misspecification (arXiv 1610.03774), tail-averaging with parameter
    mixing. The number of its algorithm there was not verified.
  """
  return chain(gradient(), local_update(tx), average_iterates(start_step))


def natural_gradient_averaging(
  tx: optax.GradientTransformation,
  *,
  period: int,
  rank: int = 20,
  smoothing: float = 4.0,
  update_rate: float = 0.1,
  max_change: float = 2.0,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Kaldi's parallel training: rare averages of natural-gradient SGD.

  Each replica by itself, for K steps:
    u_i = tx(F_i^{-1} G_i),  x_i <- x_i + u_i min(1, max_change / |u_i|)
  then x_i <- mean_j x_j. F_i, one factor for each axis of each parameter, is a
  multiple of the identity plus a matrix of low rank, estimated by the replica
  from its own gradients (`scale_by_natural_gradient`, where the differences
  from Kaldi are listed).

  Only the parameters are averaged. Kaldi starts a new process after every
  average, whose preconditioner is made from its first minibatch (not verified);
  `reset` = every(period) is close to that. An average of N divides by N what
  one replica learnt: the paper gives every replica N times the learning rate
  that one alone would have, which is for the caller to do in `tx`.

  Args:
    tx: the optimizer of every replica, fed the preconditioned gradient.
    period: K, steps between averages; a minute or two in the paper.
    rank: of each factor's part beside the identity.
    smoothing: alpha, of each factor towards the identity.
    update_rate: eta, of each factor.
    max_change: the largest 2-norm of a step, all parameters together.
    reset: when the optimizer's buffers, the preconditioner among them, start
      anew.

  Raises:
    ValueError: if `period` or `rank` is not an integer >= 1, or another number
      is out of its range.

  Reference:
    Povey, Zhang, Khudanpur 2015, Parallel training of DNNs with natural
    gradient and parameter averaging (arXiv 1410.7455); the equations are those
    of Kaldi's src/nnet3/natural-gradient-online.h.
  """
  check_optax('natural_gradient_averaging', tx)
  natural = scale_by_natural_gradient(
    rank=rank, smoothing=smoothing, update_rate=update_rate
  )
  local = optax.chain(natural, tx, limit_change(max_change))
  return chain(
    gradient(),
    local_update(local),
    sync(mean(), when=every(period)),
    reset_buffers(local, when=reset),
  )

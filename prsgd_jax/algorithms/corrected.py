"""Corrections for unlike data, unequal work, noise and ill-scaled layers."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.algorithms.common import AVERAGE, Average, average_by
from prsgd_jax.algorithms.rates import as_rate
from prsgd_jax.base import Array, ReplicaTransformation, Schedule, chain
from prsgd_jax.checks import (
  MAX_STEPS,
  check_number,
  check_optax,
  check_positive_ints,
  check_step,
)
from prsgd_jax.mixing.mixings import mean, weighted_mean
from prsgd_jax.optimizers.preconditioners import (
  limit_change,
  scale_by_natural_gradient,
)
from prsgd_jax.schedules import every, rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  evaluate,
  first_steps,
  let,
  remember,
  step,
  sync,
  where,
  zeros,
)


def scaffold(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
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
  added to the step of any `local`, which for SGD is the same. With momentum c_i
  is then the mean velocity, and the optimum is still the right one (fed to the
  momentum with the gradient instead, the controls can diverge). With a local
  step that is not linear in the gradient, the replicas agree on where the mean
  of their steps is zero, which is not where the mean gradient is.

  The rounding of y_i is in c_i, divided by K gamma: mind that in half
  precision.

  Args:
    local: the optimizer of every replica, SGD in the paper, or a stage that is
      its local step.
    period: K, local steps of a round, an integer >= 1; or a schedule.
    learning_rate: gamma, that of `local`: a number > 0 or the same schedule of
      the step. With a schedule K gamma is the sum over the round, which follows
      from adding up the K local steps. A constant is only a unit, which cancels
      out.

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
  gamma = as_rate(learning_rate)

  def renewed(
    ci: Array, c: Array, x0: Array, params: Array, total: Array
  ) -> Array:
    moved = (x0 - params) / jnp.where(total > 0, total, 1)
    # A round of learning rate zero moved nothing and tells nothing.
    return jnp.where(total > 0, ci - c + moved, ci)

  return algorithm(
    'scaffold',
    remember(x0='params', ci=zeros, c=zeros, total=0.0),
    step(local),
    let(
      params=lambda params, c, ci, step: params - gamma(step) * (c - ci),
      total=lambda total, step: total + gamma(step),
    ),
    at(
      rounds(period),
      let(ci=renewed, c='ci'),
      sync(mean(), ('params', 'c')),
      let(x0='params', total=0.0),
    ),
  )


def weighted_averaging(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  weights: Sequence[float],
  average: Average = sync,
) -> ReplicaTransformation:
  """Local SGD whose average counts the replicas unequally (order C).

  From a common point each replica takes K steps; then
  x_i <- sum_j w_j x_j / sum_j w_j.

  With equal weights it is `k_avg`; where the f_i differ, it is to the weighted
  mean of them what `k_avg` is to the mean. For replicas that do unequal work
  see `wp_sgd` and `fednova`.

  Args:
    local: the optimizer of every replica, or a stage that is its local step.
    period: K, steps between averages, an integer >= 1; or a schedule.
    weights: w, float[N], positive; only their ratios matter. FedAvg's are the
      numbers of examples.
    average: makes, of the mixing with these weights, what the replicas do at
      the end of a round.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a weight is not a finite
      number > 0; from `init`, if there is not one weight per replica.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = weighted_averaging(
    ...     optax.sgd(0.1), period=4, weights=[1, 2],
    ...     average=lambda w: pr.sync(w, ('params', 'opt_state')))

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801), the average with
    weights given.
  """
  return algorithm(
    'weighted_averaging',
    step(local),
    at(rounds(period), average_by(average, weighted_mean(weights))),
  )


def wp_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  local_steps: Sequence[int],
  contraction: float,
  average: Average = sync,
) -> ReplicaTransformation:
  """Weighted parallel SGD: the more a replica did, the more it counts.

  In a round of max_i I_i steps replica i takes I_i; then
  x_i <- sum_j w_j x_j / sum_j w_j with `delay_weights`.

  It presumes that the f_i are alike. Where they differ, plain averages already
  lean towards those that did more (FedNova), and these weights add to that.

  Args:
    local: the optimizer of every replica, or a stage that is its local step.
    local_steps: I_i, one integer >= 1 for each replica.
    contraction: r in (0, 1], the factor by which a step brings a replica closer
      to its limit; see `delay_weights`.
    average: makes, of the mixing with these weights, what the replicas do at
      the end of a round.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or `contraction` is
      not in (0, 1]; from `init`, if there is not one number per replica.

  Example:
    >>> import optax
    >>> algorithm = wp_sgd(
    ...     optax.sgd(0.1), local_steps=[4, 4, 8], contraction=0.9)

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801). There one weighted
    average ends the run; here every round has one.
  """
  weights = delay_weights(local_steps, contraction=contraction)
  return algorithm(
    'wp_sgd',
    where(first_steps(local_steps), step(local)),
    at(every(max(local_steps)), average_by(average, weighted_mean(weights))),
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
  steps = np.array(check_positive_ints('local_steps', local_steps))
  r = check_number(
    'contraction', contraction, lambda r: 0 < r <= 1, 'in (0, 1]'
  )
  weights = np.float64(r) ** (steps.max(initial=1) - steps)
  return weights / weights.sum()


def tail_averaging(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  start_step: int,
) -> ReplicaTransformation:
  """N independent runs; the output is the mean of their last iterates.

  x_i^t = x_i^{t-1} - gamma G_i^t; the output is the mean over i of
  (1 / (T - s)) sum_{t = s+1}^T x_i^t, and the mean of the x_i until then.

  The training is not changed by it: the averages over time are the algorithm's
  `output`. Evaluation averages them over the replicas, which the ledger does
  not count.

  Args:
    local: the optimizer of every replica, or a stage that is its local step.
      With an algorithm that communicates, such as `k_avg(tx, period=4)`, the
      output is the tail of that.
    start_step: s, the first 0-based step whose iterate counts, an integer >= 0.

  Raises:
    ValueError: if `start_step` is not an integer >= 0.

  Example:
    >>> import optax
    >>> algorithm = tail_averaging(optax.sgd(0.1), start_step=1000)

  Reference:
    Jain, Kakade, Kidambi, Netrapalli, Sidford 2018, Parallelizing stochastic
    gradient descent for least squares regression: mini-batching, averaging, and
    model misspecification (arXiv 1610.03774), tail-averaging with parameter
    mixing. The number of its algorithm there was not verified.
  """
  return chain(step(local), average_iterates(start_step))


def average_iterates(start_step: int) -> ReplicaTransformation:
  """Keeps the running mean over steps of a replica's parameters, to evaluate.

  With n = step - s + 1 iterates, m <- m + (x - m) / n; before the first of them
  m is x. The replica is left alone: the mean is its `output`. Chain it after an
  algorithm, whose parameters at the end of a step it then sees.

  What the rounding of m leaves out is kept and added later (Kahan's summation).
  Without that, m in float32 does not move any more once (x - m) / n is less
  than half of its last digit.

  Args:
    start_step: s, the first 0-based step whose parameters count, an integer
      >= 0.

  Raises:
    ValueError: if `start_step` is not an integer >= 0.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.chain(
    ...     pr.k_avg(optax.sgd(0.1), period=4), average_iterates(1000))
  """
  first = min(check_step('start_step', start_step), MAX_STEPS)

  def due(params: Array, tail: Array, lost: Array, step: Array) -> Array:
    n = jnp.maximum(step - first + 1, 1).astype(tail.dtype)
    return (params - tail - lost) / n + lost

  def moved(params: Array, tail: Array, due: Array, step: Array) -> Array:
    return jnp.where(step > first, tail + due, params)

  def left(tail: Array, before: Array, due: Array, step: Array) -> Array:
    return jnp.where(step > first, due - (tail - before), 0)

  return algorithm(
    'average_iterates',
    remember(tail='params', lost=zeros),
    let(due=due, before='tail', tail=moved, lost=left),
    evaluate(params='tail'),
  )


def natural_gradient_averaging(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  rank: int = 20,
  smoothing: float = 4.0,
  update_rate: float = 0.1,
  max_change: float = 2.0,
  average: ReplicaTransformation = AVERAGE,
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
  `restart` in `average`, as in the example, is close to that. An average of N
  divides by N what one replica learned: the paper gives every replica N times
  the learning rate of a single one, which is for the caller to do in `tx`.

  Args:
    tx: the optimizer of every replica, fed the preconditioned gradient.
    period: K, steps between averages, an integer >= 1; or a schedule. A minute
      or two in the paper.
    rank: of each factor's part beside the identity, an integer >= 1.
    smoothing: alpha >= 0, of each factor towards the identity.
    update_rate: eta in (0, 1), of each factor.
    max_change: the largest 2-norm of a step, all parameters together, > 0.
    average: what the replicas do at the end of a round; their mean by default.

  Raises:
    ValueError: if `period` or `rank` is not an integer >= 1, or another number
      is out of its range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1)
    >>> algorithm = natural_gradient_averaging(tx, period=100)
    >>> whole = optax.chain(
    ...     pr.optimizers.scale_by_natural_gradient(), tx,
    ...     pr.optimizers.limit_change(2.0))
    >>> restarted = natural_gradient_averaging(
    ...     tx, period=100,
    ...     average=pr.chain(pr.sync(pr.mixing.mean()), pr.restart(whole)))

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
  return algorithm(
    'natural_gradient_averaging',
    step(local),
    at(rounds(period), average),
  )

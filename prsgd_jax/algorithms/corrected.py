"""Corrections for unlike data, unequal work, noise and badly scaled layers."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.algorithms.common import (
  AVERAGE,
  Average,
  average_by,
  independent,
)
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
  kept,
  let,
  on_resize,
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
  """SCAFFOLD: local SGD without drift to each replica's own optimum.

  A round begins at the common x, y_i = x. K times, with c and c_i fixed,
    y_i <- y_i - gamma (g_i(y_i) - c_i + c);
  then all at once
    c_i+ = c_i - c + (x - y_i) / (K gamma)
    c+ = c + mean_i (c_i+ - c_i),  x+ = mean_i y_i.

  If the f_i differ, local SGD with K > 1 misses the optimum of their mean; this
  method does not. A round sends two models' worth of data: the parameters and
  the controls.

  The paper's local step is plain SGD. Here the correction -gamma (c - c_i) is
  added to the step of any `local`, which is equivalent for SGD. With momentum,
  c_i is the mean velocity, and the optimum is still correct. (If the correction
  were added to the gradient before momentum, the controls could diverge.) With
  a local step that is not linear in the gradient, the replicas agree on a point
  at which the mean of their steps is zero. There the mean gradient is not zero.

  The rounding error of y_i enters c_i, divided by K gamma. Consider this in
  half precision.

  Args:
    local: an optimizer for every replica, SGD in the paper, or a stage that
      takes its local step.
    period: K, local steps in a round, an integer >= 1; or a schedule.
    learning_rate: gamma, the learning rate of `local`: a number > 0 or a
      schedule of the step. With a schedule, K gamma is the sum of the rates
      over the round, which follows from adding up the K local steps. A constant
      is only a unit, which cancels out.

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
    # Keep c_i if the rates are zero, because then the round has no information.
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
  """Local SGD with a weighted average of the replicas (order C).

  From a common point, each replica takes K steps; then
  x_i <- sum_j w_j x_j / sum_j w_j.

  With equal weights it is `k_avg`. If the f_i differ, it minimizes their
  weighted mean in the way `k_avg` minimizes their mean. For replicas that do
  unequal work, see `wp_sgd` and `fednova`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: K, steps between averages, an integer >= 1; or a schedule.
    weights: w, float[N], each > 0. Only their ratios matter. FedAvg uses the
      numbers of examples.
    average: `mixing -> stage` at the end of a round, given the mixing with
      these weights. Default: `sync`, which averages the parameters.

  Raises:
    ValueError: if `period` is not an integer >= 1, or if a weight is not a
      finite number > 0; from `init`, if the number of weights is not N.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = weighted_averaging(
    ...     optax.sgd(0.1), period=4, weights=[1, 2],
    ...     average=lambda w: pr.sync(w, ('params', 'opt_state')))

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801), its average for
    given weights.
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
  """Weighted parallel SGD: replicas that take more steps have more weight.

  In a round of max_i I_i steps, replica i takes I_i; then
  x_i <- sum_j w_j x_j / sum_j w_j with `delay_weights`.

  It assumes equal f_i. If they differ, plain averages are already biased
  towards replicas that take more steps (FedNova), and these weights add to the
  bias.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    local_steps: I_i, one integer >= 1 for each replica.
    contraction: r, the factor by which a step reduces the distance of a replica
      from its limit, in (0, 1]; see `delay_weights`.
    average: `mixing -> stage` at the end of a round, given the mixing with
      these weights. Default: `sync`, which averages the parameters.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or if `contraction`
      is not in (0, 1]; from `init`, if the number of entries is not N.

  Example:
    >>> import optax
    >>> algorithm = wp_sgd(
    ...     optax.sgd(0.1), local_steps=[4, 4, 8], contraction=0.9)

  Reference:
    Cheng, Li, Zhang 2017, Weighted parallel SGD for distributed
    unbalanced-workload training system (arXiv 1708.04801). The paper has one
    weighted average, at the end of the run; here every round ends with one.
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
  """Return WP-SGD's weights of replicas that take unequal numbers of steps.

    w_i = r^(max_j I_j - I_i) / sum_j r^(max_k I_k - I_j)

  The weights are geometric in the delay, the number of steps that replica i is
  behind the first. Suppose that a step reduces the distance of the iterate's
  distribution from its limit by a factor r. Then replica i is within r^I_i of
  the limit, and all replicas contribute equally to this bound on the distance
  of the weighted mean. For SGD with step gamma on a loss with L2 of strength
  lambda, r = 1 - gamma lambda. The geometric form is derived in this way. Not
  verified: the paper's own equation.

  Args:
    local_steps: I_i, one integer >= 1 for each replica.
    contraction: r, in (0, 1]; 1 gives equal weights.

  Returns:
    float64[N], weights that sum to 1.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or if `contraction`
      is not in (0, 1].

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

  x_i^t = x_i^{t-1} - gamma G_i^t. The output is the mean over i of
  (1 / (T - s)) sum_{t = s+1}^T x_i^t; before step s it is the mean of the x_i.

  Training does not change, because the averages over time are the `output` of
  the algorithm. Evaluation averages them over the replicas, which the ledger
  does not count.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      It may communicate: with `k_avg(tx, period=4)` the output is the tail
      average of `k_avg`.
    start_step: s, the first 0-based step whose iterate is averaged, an integer
      >= 0.

  Raises:
    ValueError: if `start_step` is not an integer >= 0.

  Example:
    >>> import optax
    >>> algorithm = tail_averaging(optax.sgd(0.1), start_step=1000)

  Reference:
    Jain, Kakade, Kidambi, Netrapalli, Sidford 2018, Parallelizing stochastic
    gradient descent for least squares regression: mini-batching, averaging, and
    model misspecification (arXiv 1610.03774), tail-averaging with parameter
    mixing. Not verified: the number of its algorithm.
  """
  return chain(step(local), average_iterates(start_step), independent(local))


def average_iterates(start_step: int) -> ReplicaTransformation:
  """Return a stage that evaluates the running mean over steps of parameters.

  With n = step - s + 1 iterates, m <- m + (x - m) / n; before the first of them
  m is x. The replica does not change, because the mean is only its `output`.
  Chain it after an algorithm, to average the parameters at the end of a step.

  The rounding error of m is kept and added later (Kahan summation). Otherwise m
  in float32 would stop moving once (x - m) / n is less than half of its last
  digit.

  Args:
    start_step: s, the first 0-based step whose parameters are averaged, an
      integer >= 0.

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

  Each replica, for K steps:
    u_i = tx(F_i^{-1} G_i),  x_i <- x_i + u_i min(1, max_change / |u_i|)
  then x_i <- mean_j x_j. F_i has one factor for each axis of each parameter: a
  multiple of the identity plus a matrix of low rank. Each replica estimates it
  from its own gradients; `scale_by_natural_gradient` lists the differences from
  Kaldi.

  Only the parameters are averaged. Kaldi starts a new process after every
  average, whose preconditioner is made from its first minibatch (not verified);
  `restart` in `average`, as in the example, is similar. An average divides the
  progress of one replica by N. So the paper multiplies the learning rate of
  every replica by N, which the caller can do in `tx`.

  Args:
    tx: an optimizer for every replica, which receives the preconditioned
      gradient.
    period: K, steps between averages, an integer >= 1; or a schedule. The paper
      averages every one or two minutes.
    rank: rank of the part of each factor that is not the identity, an integer
      >= 1.
    smoothing: alpha, the multiple of the mean eigenvalue that is added to each
      factor, >= 0.
    update_rate: eta, the weight of the newest scatter in each factor, in
      (0, 1).
    max_change: the largest 2-norm of a step over all parameters, > 0.
    average: the stage at the end of a round. Default: the mean of the
      parameters.

  Raises:
    ValueError: if `period` or `rank` is not an integer >= 1, or if an argument
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
    gradient and parameter averaging (arXiv 1410.7455); the equations follow
    Kaldi's src/nnet3/natural-gradient-online.h.
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
    on_resize(opt_state=kept()),  # because bases of factors have no mean
  )

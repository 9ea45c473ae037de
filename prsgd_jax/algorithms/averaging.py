"""Averages of all replicas, once or at the steps of a schedule."""

from collections.abc import Sequence

import optax

from prsgd_jax.algorithms.common import NEVER, PARAMS
from prsgd_jax.base import (
  ReplicaTransformation,
  Schedule,
  chain,
  check_positive_int,
)
from prsgd_jax.mixing import mean
from prsgd_jax.schedules import at, every, intervals, post_local
from prsgd_jax.transforms import (
  gradient,
  local_update,
  reset_buffers,
  sync,
  sync_on_drift,
  while_active,
)


def ssgd(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """Synchronous SGD: x <- x - gamma mean_i G_i, at every step.

  Args:
    tx: the optimizer of every replica; all of them see the mean gradient.

  Reference:
    Dekel, Gilad-Bachrach, Shamir, Xiao 2012, Optimal distributed online
    prediction using mini-batches (arXiv 1012.1367).
  """
  return chain(gradient(), sync(mean(), what=('grads',)), local_update(tx))


def one_shot_averaging(
  tx: optax.GradientTransformation,
  *,
  num_steps: int,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """N independent runs, averaged once after T steps.

  Args:
    tx: the optimizer of every replica.
    num_steps: T, the length of the run.
    what: the fields that the average covers.

  Raises:
    ValueError: if `num_steps` is not an integer >= 1.

  Reference:
    Zinkevich, Weimer, Li, Smola 2010, Parallelized stochastic gradient descent,
    Algorithm 3.
  """
  last = check_positive_int('num_steps', num_steps) - 1
  return chain(
    gradient(), local_update(tx), sync(mean(), when=at([last]), what=what)
  )


def pr_sgd(
  tx: optax.GradientTransformation,
  *,
  period: int,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 1 (order A).

  If t mod I = 0:  x_i^t = mean_j x_j^{t-1} - gamma G_i^t
  else:            x_i^t = x_i^{t-1} - gamma G_i^t,  G_i^t taken at x_i^{t-1}.

  Right after an average each replica takes its own gradient step, so replicas
  are never equal at the end of a step, and I = 1 is not synchronous SGD.

  Args:
    tx: the optimizer of every replica.
    period: I, steps between averages.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if `period` is not an integer >= 1.

  Example:
    >>> import optax
    >>> algorithm = pr_sgd(optax.sgd(0.1, momentum=0.9), period=4)

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 1. The paper's theory has no
    momentum; its experiment uses 0.9 and does not say what an average does to
    the buffers: here they are kept unless `what` or `reset` say otherwise.
  """
  return chain(
    gradient(),
    sync(mean(), when=every(period), what=what),
    reset_buffers(tx, when=reset),
    local_update(tx),
  )


def pr_sgd_time_varying(
  tx: optax.GradientTransformation,
  *,
  epoch_lengths: Sequence[int],
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 2: epochs of different lengths (order C).

  For s = 1 .. S:  x_i^{s,0} = mean_j x_j^{s-1,K^{s-1}}, then K^s local steps
  x_i^{s,k} = x_i^{s,k-1} - gamma^s G_i^{s,k}.

  The mean is taken at the end of an epoch, where the paper takes it at the
  start of the next: the same points, and the last epoch is averaged too.

  Args:
    tx: the optimizer of every replica, with gamma^s for its learning rate;
      `theory_schedule` gives the paper's.
    epoch_lengths: K^s, steps in epoch s; the last repeats after them.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if there are no lengths, or one is not an integer >= 1.

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 2.
  """
  return chain(
    gradient(),
    local_update(tx),
    sync(mean(), when=intervals(epoch_lengths), what=what),
    reset_buffers(tx, when=reset),
  )


def pr_sgd_heterogeneous(
  tx: optax.GradientTransformation,
  *,
  local_steps: Sequence[int],
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 3: I_i steps on replica i (order C).

  From a common point replica i takes I_i steps; then x_i <- mean_j x_j, the
  plain mean. A round is max_i I_i steps of the clock; who is done waits.

  With all I_i the same it is `k_avg`. Where the replicas' losses differ the
  mean leans to those that take more steps: its fixed point is not the minimum
  (Wang, Liu, Liang, Joshi, Poor 2020, arXiv 2007.07481, Lemma 1).

  Args:
    tx: the optimizer of every replica.
    local_steps: I_i, one for each replica, matched to their speeds.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if a number of steps is not an integer >= 1; from `init`, if
      there is not one per replica.

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 3.
  """
  return chain(
    while_active(local_steps, gradient(), local_update(tx)),
    sync(mean(), when=every(max(local_steps)), what=what),
    reset_buffers(tx, when=reset),
  )


def k_avg(
  tx: optax.GradientTransformation,
  *,
  period: int,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """K-step averaging, also known as local SGD (order C).

  From a common point each replica takes K steps; then x_i <- mean_j x_j.

  With K = 1 and an optimizer linear in the gradient it is synchronous SGD.

  Args:
    tx: the optimizer of every replica.
    period: K (H in local SGD), steps between averages.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if `period` is not an integer >= 1.

  Reference:
    Zhou, Cong 2018, On the convergence properties of a K-step averaging
    stochastic gradient descent algorithm (arXiv 1708.01012), Algorithm 1;
    Stich 2019, Local SGD converges fast and communicates little (arXiv
    1805.09767), Algorithm 1.
  """
  return chain(
    gradient(),
    local_update(tx),
    sync(mean(), when=every(period), what=what),
    reset_buffers(tx, when=reset),
  )


local_sgd = k_avg


def post_local_sgd(
  tx: optax.GradientTransformation,
  *,
  switch_step: int,
  period: int,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Post-local SGD: synchronous first, then an average every H steps (order C).

  x_i <- x_i - gamma G_i; for t <= t' and then every H steps x_i <- mean_j x_j.

  In the paper t' is the first decay of the learning rate. As in the authors'
  code the synchronous steps average the models and not the gradients, which is
  the same for optimizers linear in the gradient, and momentum stays local.
  There the steps of the second part are counted from the start of the run, here
  from t': the same if H divides t'.

  Args:
    tx: the optimizer of every replica.
    switch_step: t', synchronous steps.
    period: H, steps between the averages that follow.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if `period` is not an integer >= 1 or `switch_step` is negative.

  Reference:
    Lin, Stich, Patel, Jaggi 2020, Don't use large mini-batches, use local SGD
    (arXiv 1808.07217), equation 3 (its number was not verified); the authors'
    code, epfml/LocalSGD-Code, optim/local_sgd.py.
  """
  return chain(
    gradient(),
    local_update(tx),
    sync(mean(), when=post_local(switch_step, period), what=what),
    reset_buffers(tx, when=reset),
  )


def dynamic_averaging(
  tx: optax.GradientTransformation,
  *,
  check_period: int,
  threshold: float,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """Dynamic averaging: only when a replica has gone far (order C).

  x_i <- x_i - gamma G_i; every b steps, if |x_i - r|^2 > Delta for some i:
  x_i <- mean_j x_j for all i, and r is that mean.

  With Delta = 0 it is `k_avg` with period b. In the paper a coordinator first
  tries to keep the peace by averaging only some of the replicas, those that
  went far and others that it adds one by one until their mean is near r; here
  all are averaged at once, which that comes to if all are added.

  Args:
    tx: the optimizer of every replica.
    check_period: b, steps between the checks, each of which sends one flag.
    threshold: Delta, of the squared distance from the last average.
    what: the fields that the average covers.

  Raises:
    ValueError: if `check_period` is not an integer >= 1, or `threshold` not a
      finite number >= 0.

  Reference:
    Kamp, Adilova, Sicking, Hueger, Schlicht, Wirtz, Wrobel 2018, Efficient
    decentralized deep learning by dynamic model averaging (arXiv 1807.03210),
    Algorithm 1 (its number was not verified).
  """
  check_period = check_positive_int('check_period', check_period)
  return chain(
    gradient(),
    local_update(tx),
    sync_on_drift(threshold=threshold, when=every(check_period), what=what),
  )

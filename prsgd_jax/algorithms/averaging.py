"""Averages of all replicas, once or by a schedule."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.algorithms.common import AVERAGE, independent
from prsgd_jax.base import Array, ArrayTree, ReplicaTransformation, Schedule
from prsgd_jax.checks import check_number, check_positive_int
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.mixing.payload import is_inexact
from prsgd_jax.schedules import (
  at_steps,
  every,
  intervals,
  post_local,
  rounds,
)
from prsgd_jax.stages import (
  algorithm,
  anyone,
  at,
  compute,
  first_steps,
  gradient,
  let,
  local_update,
  remember,
  step,
  sync,
  where,
)


def ssgd(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """Synchronous SGD: x <- x - gamma mean_i G_i, at every step.

  Args:
    tx: an optimizer for every replica. All replicas see the mean gradient.

  Raises:
    ValueError: if `tx` is not an optax transformation.

  Example:
    >>> import optax
    >>> algorithm = ssgd(optax.sgd(0.1, momentum=0.9))

  Reference:
    Dekel, Gilad-Bachrach, Shamir, Xiao 2012, Optimal distributed online
    prediction using mini-batches (arXiv 1012.1367).
  """
  return algorithm(
    'ssgd',
    gradient(),
    sync(mean(), 'grads'),
    local_update(tx),
  )


def one_shot_averaging(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  num_steps: int,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """N independent runs, averaged once after T steps.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    num_steps: T, the length of the run in steps, an integer >= 1.
    average: the stage at the end of the run. Default: the mean of the
      parameters.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = one_shot_averaging(optax.sgd(0.1), num_steps=1000)

  Reference:
    Zinkevich, Weimer, Li, Smola 2010, Parallelized stochastic gradient descent,
    Algorithm 3.
  """
  last = check_positive_int('num_steps', num_steps) - 1
  return algorithm(
    'one_shot_averaging',
    step(local),
    at(at_steps([last]), average),
    independent(local),
  )


def pr_sgd(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 1 (order A).

  If t mod I = 0:  x_i^t = mean_j x_j^{t-1} - gamma G_i^t
  else:            x_i^t = x_i^{t-1} - gamma G_i^t,  G_i^t taken at x_i^{t-1}.

  Each replica takes its own gradient step directly after an average. So
  replicas are never equal at the end of a step, and I = 1 is not synchronous
  SGD.

  Args:
    tx: an optimizer for every replica.
    period: I, steps between averages, an integer >= 1; or a schedule.
    average: the stage that averages. Default: the mean of the parameters.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> algorithm = pr_sgd(tx, period=4)
    >>> averaged_momentum = pr_sgd(
    ...     tx, period=4,
    ...     average=pr.sync(pr.mixing.mean(), ('params', 'opt_state')))
    >>> restarted_momentum = pr_sgd(
    ...     tx, period=4,
    ...     average=pr.chain(pr.sync(pr.mixing.mean()), pr.restart(tx)))

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 1. The paper's theory has no
    momentum. Its experiment uses momentum 0.9 and does not state how an average
    treats the buffers. Here they stay local; pass `average` to change this.
  """
  return algorithm(
    'pr_sgd',
    gradient(),
    at(rounds(period), average),
    local_update(tx),
  )


def pr_sgd_time_varying(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  epoch_lengths: Sequence[int],
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 2: epochs of different lengths (order C).

  For s = 1 .. S:  x_i^{s,0} = mean_j x_j^{s-1,K^{s-1}}, then K^s local steps
  x_i^{s,k} = x_i^{s,k-1} - gamma^s G_i^{s,k}.

  The paper averages at the start of the next epoch, and this function at the
  end of an epoch. The points are equal, and the last epoch is averaged too.

  Args:
    local: the optimizer of every replica, with gamma^s as its learning rate, or
      a stage that is its local step. `theory_schedule` gives the paper's rate.
    epoch_lengths: K^s, steps in epoch s, each an integer >= 1. The last epoch
      repeats.
    average: the stage at the end of an epoch. Default: the mean of the
      parameters.

  Raises:
    ValueError: if `epoch_lengths` is empty, or if an argument has the wrong
      type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = pr_sgd_time_varying(
    ...     optax.sgd(0.1), epoch_lengths=[1, 2, 4, 8])

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 2.
  """
  return algorithm(
    'pr_sgd_time_varying',
    step(local),
    at(intervals(epoch_lengths), average),
  )


def pr_sgd_heterogeneous(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  local_steps: Sequence[int],
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Parallel Restarted SGD, Algorithm 3: I_i steps on replica i (order C).

  From a common point, replica i takes I_i steps; then x_i <- mean_j x_j, the
  plain mean. A round takes max_i I_i steps; a finished replica waits.

  With equal I_i it is `k_avg`. If the replicas' losses differ, the mean is
  biased towards replicas that take more steps, and its fixed point is not the
  minimum (Wang, Liu, Liang, Joshi, Poor 2020, arXiv 2007.07481, Lemma 1).

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    local_steps: I_i, one integer >= 1 for each replica, chosen by its speed.
    average: the stage at the end of a round. Default: the mean of the
      parameters.

  Raises:
    ValueError: if a number of steps is not an integer >= 1; from `init`, if the
      number of entries is not N.

  Example:
    >>> import optax
    >>> algorithm = pr_sgd_heterogeneous(
    ...     optax.sgd(0.1), local_steps=[4, 4, 8, 16])

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 3.
  """
  return algorithm(
    'pr_sgd_heterogeneous',
    where(first_steps(local_steps), step(local)),
    at(every(max(local_steps)), average),
  )


def k_avg(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """K-step averaging, also known as local SGD (order C).

  From a common point, each replica takes K steps; then x_i <- mean_j x_j.

  With K = 1 and an optimizer linear in the gradient, it is synchronous SGD.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: K (H in local SGD), steps between averages, an integer >= 1; or a
      schedule.
    average: the stage at the end of a round. Default: the mean of the
      parameters.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = k_avg(optax.sgd(0.1), period=8)
    >>> growing = k_avg(
    ...     optax.sgd(0.1), period=pr.schedules.doubling(4, num_steps=1000))
    >>> average = pr.sync(pr.graphs.ring())
    >>> gossip = k_avg(optax.sgd(0.1), period=8, average=average)

  Reference:
    Zhou, Cong 2018, On the convergence properties of a K-step averaging
    stochastic gradient descent algorithm (arXiv 1708.01012), Algorithm 1;
    Stich 2019, Local SGD converges fast and communicates little (arXiv
    1805.09767), Algorithm 1.
  """
  return algorithm(
    'k_avg',
    step(local),
    at(rounds(period), average),
  )


local_sgd = k_avg


def post_local_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  switch_step: int,
  period: int,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Post-local SGD: synchronous first, then an average every H steps (order C).

  x_i <- x_i - gamma G_i; for t <= t' and then every H steps x_i <- mean_j x_j.

  In the paper t' is the first decay of the learning rate. As in the authors'
  code, synchronous steps average the models and not the gradients, and momentum
  stays local. For optimizers linear in the gradient this makes no difference.
  The authors count the H steps from the start of the run, and this function
  from t'. Both agree if H divides t'.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    switch_step: t', the number of synchronous steps, an integer >= 0.
    period: H, steps between averages after t', an integer >= 1.
    average: the stage at the end of a round. Default: the mean of the
      parameters.

  Raises:
    ValueError: if `period` is not an integer >= 1 or `switch_step` is negative.

  Example:
    >>> import optax
    >>> algorithm = post_local_sgd(
    ...     optax.sgd(0.1), switch_step=1000, period=16)

  Reference:
    Lin, Stich, Patel, Jaggi 2020, Don't use large mini-batches, use local SGD
    (arXiv 1808.07217), equation 3 (its number was not verified); the authors'
    code, epfml/LocalSGD-Code, optim/local_sgd.py.
  """
  return algorithm(
    'post_local_sgd',
    step(local),
    at(post_local(switch_step, period), average),
  )


def dynamic_averaging(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  check_period: int | Schedule,
  threshold: float,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Dynamic averaging: only when a replica has moved far (order C).

  x_i <- x_i - gamma G_i; every b steps, if |x_i - r|^2 > Delta for some i:
  x_i <- mean_j x_j for all i, and r is that mean.

  With Delta = 0 it is `k_avg` with period b. The paper's coordinator first
  averages only some replicas: those that moved far, and further ones until
  their mean is near r. Here all replicas are averaged at once, which is
  equivalent if the coordinator ends up with all of them.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    check_period: b, steps between checks, an integer >= 1; or a schedule. A
      check sends one flag of four bytes.
    threshold: Delta, the largest squared distance from the last average that
      does not trigger an average, >= 0.
    average: the stage that averages. Default: the mean of the parameters.

  Raises:
    ValueError: if `check_period` is not an integer >= 1, or `threshold` is not
      a finite number >= 0.

  Example:
    >>> import optax
    >>> algorithm = dynamic_averaging(
    ...     optax.sgd(0.1), check_period=4, threshold=0.5)

  Reference:
    Kamp, Adilova, Sicking, Hueger, Schlicht, Wirtz, Wrobel 2018, Efficient
    decentralized deep learning by dynamic model averaging (arXiv 1807.03210),
    Algorithm 1 (number not verified).
  """
  if not callable(check_period):
    check_period = check_positive_int('check_period', check_period)
  threshold = check_number(
    'threshold', threshold, lambda d: 0 <= d < math.inf, '>= 0 and finite'
  )

  def far(params: ArrayTree, reference: ArrayTree) -> Array:
    return _squared_distance(params, reference) > threshold

  return algorithm(
    'dynamic_averaging',
    remember(reference='params'),
    step(local),
    at(
      rounds(check_period),
      compute(far=far),
      at(anyone('far'), average, let(reference='params')),
    ),
  )


def _squared_distance(x: ArrayTree, y: ArrayTree) -> Array:
  """Return |x - y|^2 over the floating leaves of one replica."""
  pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  parts = [jnp.square(jnp.abs(x - y)).sum() for x, y in pairs if is_inexact(x)]
  return sum(parts, jnp.zeros((), jnp.float32))

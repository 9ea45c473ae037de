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
from prsgd_jax.schedules import at, every
from prsgd_jax.transforms import gradient, local_update, reset_buffers, sync


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

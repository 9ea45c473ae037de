"""One function per paper: an equation, a reference, one `chain`.

Notation: N replicas, x_i the local models, G_i a stochastic gradient at x_i,
gamma the step size, t = step + 1. Three orders of mixing and stepping are in
the literature and are different sequences; the chain shows which one a paper
has:

  A  x_i <- sum_j W_ij x_j - gamma G(x_i)       gradient, sync, local_update
  B  y_i = sum_j W_ij x_j; x_i <- y_i - gamma G(y_i)
                                                sync, gradient, local_update
  C  x_i <- sum_j W_ij (x_j - gamma G(x_j))     gradient, local_update, sync

Two choices that the papers leave open are explicit arguments. `what` names the
fields that an average covers: by default the parameters alone; with
'opt_state' momentum buffers are averaged too (Yu, Jin, Yang 2019), with
'model_state' batch statistics. `reset` is the schedule at which the optimizer's
buffers start anew after an average: by default never, momentum stays local.

Coupled L2 belongs to the loss, so that it is taken where the gradient is;
decoupled weight decay belongs to `tx`, which in order A acts on the mixed
point.
"""

from collections.abc import Sequence

import optax

from prsgd_jax.base import (
  ReplicaTransformation,
  Schedule,
  chain,
  check_positive_int,
)
from prsgd_jax.mixing import Mixing, group_mean, mean, ring
from prsgd_jax.schedules import at, every, never
from prsgd_jax.transforms import gradient, local_update, reset_buffers, sync

PARAMS = ('params',)
NEVER = never()


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


def hier_avg(
  tx: optax.GradientTransformation,
  *,
  local_period: int,
  global_period: int,
  group_size: int,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Hierarchical averaging: groups often, all replicas rarely (order C).

  Every K1 steps x_i <- mean over i's group of S replicas; every K2 steps
  x_i <- mean over all. At a step of both the group comes first, as in the
  paper; the global mean makes no difference of it.

  Args:
    tx: the optimizer of every replica.
    local_period: K1, steps between averages of a group.
    global_period: K2, steps between averages of all, a multiple of K1.
    group_size: S, replicas in a group; divides the number of replicas.
    what: the fields that the averages cover.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if a period or the size is not an integer >= 1 or K1 does not
      divide K2; from `init`, if S does not divide the number of replicas.

  Reference:
    Zhou, Cong 2019, A distributed hierarchical SGD algorithm with sparse global
    reduction (arXiv 1903.05133), Algorithm 1.
  """
  local_period = check_positive_int('local_period', local_period)
  global_period = check_positive_int('global_period', global_period)
  if global_period % local_period:
    raise ValueError(
      'global_period must be a multiple of local_period, got '
      f'{global_period} and {local_period}'
    )
  return chain(
    gradient(),
    local_update(tx),
    sync(group_mean(group_size), when=every(local_period), what=what),
    sync(mean(), when=every(global_period), what=what),
    reset_buffers(tx, when=reset),
  )


def d_psgd(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing | None = None,
  what: Sequence[str] = PARAMS,
) -> ReplicaTransformation:
  """Decentralized parallel SGD (order A).

  x_i <- sum_j W_ij x_j - gamma G(x_i): the gradient is taken at the replica's
  own point while the neighbours' models travel.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    mixing: W, symmetric and doubly stochastic in the theory; a ring with equal
      weights if None.
    what: the fields that are mixed.

  Reference:
    Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, Can decentralized algorithms
    outperform centralized algorithms? (arXiv 1705.09056), Algorithm 1.
  """
  neighbours = ring() if mixing is None else mixing
  return chain(gradient(), sync(neighbours, what=what), local_update(tx))

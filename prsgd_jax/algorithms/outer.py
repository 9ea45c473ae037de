"""Outer optimizers, fed the mean of a round, and elastic averages."""

from collections.abc import Sequence

import optax

from prsgd_jax.algorithms.common import NEVER, PARAMS
from prsgd_jax.base import ReplicaTransformation, Schedule, chain
from prsgd_jax.checks import check_number
from prsgd_jax.mixing import mean
from prsgd_jax.schedules import every
from prsgd_jax.transforms import (
  elastic,
  gradient,
  gradient_ahead,
  local_update,
  reset_buffers,
  slow_update,
  streaming_sync,
  sync,
  while_sampled,
)

DILOCO_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)


def slowmo(
  tx: optax.GradientTransformation,
  *,
  learning_rate: float | Schedule,
  period: int,
  slow_learning_rate: float = 1.0,
  slow_momentum: float,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """SlowMo: momentum of whole rounds, in units of the learning rate (order C).

  After tau local steps from x_0:  u <- beta u + (x_0 - mean_j x_j) / gamma;
  x_i <- x_0 - alpha gamma u.

  alpha = 1 and beta = 0 is local SGD; with tau = 1 and plain SGD, synchronous
  SGD. On one replica beta = 0 is Lookahead.

  Args:
    tx: the optimizer of every replica.
    learning_rate: gamma, what `tx` steps by: a number, or its schedule of the
      engine's step, read in the last step of the round. The paper's gamma is
      one number for a round.
    period: tau, steps between averages.
    slow_learning_rate: alpha.
    slow_momentum: beta.
    what: the fields that the average covers; the slow update is of the
      parameters alone.
    reset: when the optimizer's buffers start anew. The paper's experiments do
      so at every round with momentum SGD, `every(period)`, and never with Adam.

  Raises:
    ValueError: if `period` is not an integer >= 1, or a rate or beta is out of
      range.

  Example:
    >>> import optax
    >>> algorithm = slowmo(
    ...     optax.sgd(0.1, momentum=0.9), learning_rate=0.1, period=12,
    ...     slow_momentum=0.7, reset=every(12))

  Reference:
    Wang, Tantia, Ballas, Rabbat 2020, SlowMo: improving communication-efficient
    distributed SGD with slow momentum (arXiv 1910.00643), Algorithm 1.
  """
  at_end = every(period)
  return chain(
    gradient(),
    local_update(tx),
    sync(mean(), when=at_end, what=what),
    slow_update(
      when=at_end,
      learning_rate=learning_rate,
      slow_learning_rate=slow_learning_rate,
      slow_momentum=slow_momentum,
    ),
    reset_buffers(tx, when=reset),
  )


def bmuf(
  tx: optax.GradientTransformation,
  *,
  period: int,
  block_momentum: float,
  block_learning_rate: float = 1.0,
  nesterov: bool = False,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """Blockwise model-update filtering: momentum of whole blocks (order C).

  G = mean_j x_j - x, x the model broadcast before; Delta <- eta Delta + zeta G;
  w <- w + Delta. Every replica goes on from w, with `nesterov` from
  w + eta Delta, which is also what is evaluated.

  It is SlowMo with alpha = zeta and beta = eta at a constant learning rate. In
  the broadcast models the Nesterov variant is `optax.sgd(nesterov=True)`, so
  that `diloco` is it with eta = 0.9 and zeta = 0.7.

  Args:
    tx: the optimizer of every replica.
    period: steps of a block.
    block_momentum: eta.
    block_learning_rate: zeta.
    nesterov: whether the replicas go on from where momentum will have led.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew.

  Raises:
    ValueError: if `period` is not an integer >= 1, eta not in [0, 1) or zeta
      not > 0.

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
  return chain(
    gradient(),
    local_update(tx),
    sync(
      mean(),
      when=every(period),
      what=what,
      outer=optax.sgd(rate, momentum=momentum, nesterov=nesterov),
    ),
    reset_buffers(tx, when=reset),
  )


def fedavg(
  tx: optax.GradientTransformation,
  *,
  period: int,
  participation: float = 1.0,
  weights: Sequence[float] | None = None,
  server: optax.GradientTransformation | None = None,
  what: Sequence[str] = PARAMS,
  reset: Schedule | None = None,
) -> ReplicaTransformation:
  """Federated averaging with partial participation (order C).

  In a round, max(round(C N), 1) replicas S, drawn uniformly, take K steps from
  x;  x <- sum_{i in S} n_i x_i / sum_{i in S} n_i, on all replicas. The others
  compute nothing. With `server`, x <- server(x - that mean): FedOpt.

  C = 1 and equal n_i is `k_avg` with its buffers reset, K = E n_i / B.

  Args:
    tx: the optimizer of every replica.
    period: K, steps of a round.
    participation: C.
    weights: n_i, one for each replica; all the same if None.
    server: optax transformation of the pseudo-gradient. Reddi's FedAdam does
      not correct the bias of Adam's moments, `optax.adam` does.
    what: the fields that the average covers.
    reset: when the optimizer's buffers start anew; after every round if None,
      since the paper's clients keep nothing between rounds, but never if `what`
      has them averaged.

  Raises:
    ValueError: if `period` is not an integer >= 1, C not in (0, 1] or a weight
      not > 0; from `init`, if there is not one weight for each replica.

  Reference:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017,
    Communication-efficient learning of deep networks from decentralized data
    (arXiv 1602.05629), Algorithm 1; Reddi et al. 2021, Adaptive federated
    optimization (arXiv 2003.00295), Algorithms 1 and 2. Here every replica of
    the round takes the same number of steps, and the mean is an all-reduce of
    all replicas.
  """
  at_end = every(period)
  if reset is None:
    reset = NEVER if 'opt_state' in what else at_end
  return chain(
    while_sampled(
      gradient(),
      local_update(tx),
      period=period,
      participation=participation,
      weights=weights,
      what=what,
    ),
    sync(mean(), when=at_end, what=what, outer=server),
    reset_buffers(tx, when=reset),
  )


def diloco(
  tx: optax.GradientTransformation,
  *,
  period: int,
  outer: optax.GradientTransformation | None = None,
  what: Sequence[str] = PARAMS,
  reset: Schedule = NEVER,
) -> ReplicaTransformation:
  """DiLoCo: an outer optimizer steps by the mean of many local steps (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0.

  Args:
    tx: the optimizer of every replica, AdamW in the paper.
    period: H, steps between averages, 500 in the paper.
    outer: optax transformation of the pseudo-gradient; Nesterov SGD with
      learning rate 0.7 and momentum 0.9 if None. Its schedules count rounds.
    what: the fields that the average covers.
    reset: when the buffers of `tx` start anew; the paper keeps them.

  Raises:
    ValueError: if `period` is not an integer >= 1, or an optimizer is none.

  Reference:
    Douillard et al. 2023, DiLoCo: distributed low-communication training of
    language models (arXiv 2311.08105), Algorithm 1.
  """
  return chain(
    gradient(),
    local_update(tx),
    sync(
      mean(),
      when=every(period),
      what=what,
      outer=DILOCO_OUTER if outer is None else outer,
    ),
    reset_buffers(tx, when=reset),
  )


def streaming_diloco(
  tx: optax.GradientTransformation,
  *,
  period: int,
  fragments: int,
  delay: int,
  alpha: float,
  outer: optax.GradientTransformation | None = None,
) -> ReplicaTransformation:
  """Streaming DiLoCo: fragments in turn, on their way while training goes on.

  Fragment p = 1 .. P of the parameters is sent at the steps t with t =
  floor(p H / P) mod H. At t + tau, with x0 its last agreed parameters,
  x0 <- x0 + outer(x0 - mean_j x_j^t);  x_i <- alpha x_i + (1 - alpha) x0.

  One fragment, tau = 0 and alpha = 0 is `diloco`. A fragment is every P-th
  layer, a layer an entry at the top of the tree of parameters ("strided").

  Args:
    tx: the optimizer of every replica, whose buffers stay local.
    period: H, steps between two averages of the same fragment.
    fragments: P, at most H and at most the number of layers.
    delay: tau, steps that a mean is on its way, less than H.
    alpha: the part that the local parameters keep.
    outer: optax transformation of the pseudo-gradient, one for each fragment;
      as in `diloco` if None.

  Raises:
    ValueError: if an argument is out of range; from `init`, if there are fewer
      layers than fragments.

  Reference:
    Douillard et al. 2025, Streaming DiLoCo with overlapping communication
    (arXiv 2501.18512), Algorithm 2. The equations are recalled and agree with
    the implementation in torchft (`local_sgd.py`), whose offsets and start are
    taken, except that torchft has alpha = 0 only; the paper's text and its
    numbers for alpha and tau are not verified. The 4-bit differences are left
    out: here the fragment is sent as it is.
  """
  return chain(
    gradient(),
    local_update(tx),
    streaming_sync(
      DILOCO_OUTER if outer is None else outer,
      period=period,
      fragments=fragments,
      delay=delay,
      alpha=alpha,
    ),
  )


def easgd(
  tx: optax.GradientTransformation, *, period: int, alpha: float
) -> ReplicaTransformation:
  """Elastic averaging SGD: replicas tied to a centre (order A).

  If t mod tau = 0:  x_i <- x_i - alpha (x_i - c) - gamma G(x_i) and
  c <- c + alpha sum_i (x_i - c), all of the old x_i and c; else a local step.

  The output is the centre c, with the replicas' own batch statistics. The
  replicas never agree.

  Args:
    tx: the optimizer of every replica. With `optax.sgd(nesterov=True)` the
      force is that on the point at which the gradient is taken: another
      sequence than `eamsgd`.
    period: tau, steps between pulls. Here the first comes with the tau-th
      gradient; by the paper's clock, which has one at 0 that does nothing, the
      next comes with the (tau + 1)-th.
    alpha: the moving rate, at most 1 / N; the paper's beta = N alpha is 0.9.

  Raises:
    ValueError: if `period` is not an integer >= 1 or alpha not in (0, 1]; from
      `init`, if N alpha is more than 1.

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), equations of synchronous EASGD (numbers not verified).
    With period > 1 it is Algorithm 1 with all workers on one clock.
  """
  return chain(
    gradient(), elastic(when=every(period), alpha=alpha), local_update(tx)
  )


def eamsgd(
  tx: optax.GradientTransformation,
  *,
  period: int,
  alpha: float,
  momentum: float,
) -> ReplicaTransformation:
  """Elastic averaging SGD with Nesterov momentum inside (order A).

  v_i <- delta v_i - gamma G(x_i + delta v_i);  x_i <- x_i + v_i, and if
  t mod tau = 0 also x_i <- x_i - alpha (x_i - c) and
  c <- c + alpha sum_i (x_i - c), the force that of the old x_i and c.

  The output is the centre c. In y_i = x_i + delta v_i the momentum alone is
  `optax.sgd(nesterov=True)`, but the force is that on x_i, not on y_i: `easgd`
  with such an optimizer is another sequence.

  Args:
    tx: the optimizer without momentum, `optax.sgd(gamma)`.
    period: tau, steps between pulls.
    alpha: the moving rate, at most 1 / N.
    momentum: delta.

  Raises:
    ValueError: if `period` is not an integer >= 1, alpha not in (0, 1] or delta
      not in [0, 1); from `init`, if N alpha is more than 1; from `update`, if
      `tx` has momentum of its own.

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), Algorithm 2, with all workers on one clock.
  """
  return chain(
    gradient_ahead(momentum),
    elastic(when=every(period), alpha=alpha),
    local_update(optax.chain(tx, optax.trace(momentum))),
  )

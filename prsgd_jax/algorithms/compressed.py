"""Algorithms that compress gradients, steps or models."""

import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ReplicaTransformation, Schedule, Step
from prsgd_jax.mixing.codecs import (
  Compressor,
  bare_signs,
  check_compressor,
  feedback,
  stochastic_levels,
  ternary,
)
from prsgd_jax.mixing.mixings import Mixing, mean
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  average_differences,
  gossip_differences,
  gradient,
  let,
  local_update,
  remember,
  step,
  sync,
)


def qsgd(
  tx: optax.GradientTransformation, *, levels: int
) -> ReplicaTransformation:
  """QSGD: synchronous SGD with gradients rounded at random to s levels.

  x <- x - gamma mean_i Q(G_i), Q(v)_k = |v| sgn(v_k) xi_k, unbiased (see
  `stochastic_levels`). The norm is taken over a leaf; the paper takes it over
  buckets of a fixed size.

  Args:
    tx: an optimizer for every replica. All replicas see equal gradients.
    levels: s, the number of positive levels, an integer in 1 .. 32767.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = qsgd(optax.sgd(0.1), levels=7)

  Reference:
    Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, QSGD: communication-efficient
    SGD via gradient quantization and encoding (arXiv 1610.02132), Algorithm 1.
  """
  return algorithm(
    'qsgd',
    gradient(),
    sync(mean(), 'grads', codec=stochastic_levels(levels)),
    local_update(tx),
  )


def terngrad(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """TernGrad: synchronous SGD with gradients rounded at random to -s, 0, s.

  x <- x - gamma mean_i s_i sgn(G_i) b_i, P(b = 1) = |G_i| / s_i, s_i = max|G_i|
  by layer. The paper clips gradients first; `ternary` does not.

  Args:
    tx: an optimizer for every replica. All replicas see equal gradients.

  Raises:
    ValueError: if `tx` is not an optax transformation.

  Example:
    >>> import optax
    >>> algorithm = terngrad(optax.sgd(0.1))

  Reference:
    Wen, Xu, Yan, Wu, Wang, Chen, Li 2017, TernGrad: ternary gradients to reduce
    communication in distributed deep learning (arXiv 1705.07878), Algorithm 1.
  """
  return algorithm(
    'terngrad',
    gradient(),
    sync(mean(), 'grads', codec=ternary()),
    local_update(tx),
  )


def sign_sgd(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """signSGD with majority vote: x <- x - gamma sgn(sum_i sgn(G_i)).

  Each replica sends one bit per entry. A tied vote is 0. One bit cannot express
  0, so for an entry that is 0, replica i sends + if i + step is even, else -.
  If all replicas have a 0, these votes cancel for even N and alternate in sign
  for odd N. Momentum in `tx` accumulates the votes; the paper's Signum takes
  the sign of each replica's momentum instead.

  Args:
    tx: an optimizer for every replica. All replicas see equal votes.

  Raises:
    ValueError: if `tx` is not an optax transformation.

  Example:
    >>> import optax
    >>> algorithm = sign_sgd(optax.sgd(1e-3))

  Reference:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, signSGD with majority
    vote is communication efficient and fault tolerant (arXiv 1810.05291),
    Algorithm 1 with beta = 0.
  """
  return algorithm(
    'sign_sgd',
    gradient(),
    let(grads=_ballot),
    sync(mean(), 'grads', codec=bare_signs()),
    let(grads=_majority),
    local_update(tx),
  )


def _ballot(grads: Array, replica: Array, step: Step) -> Array:
  return jnp.where(grads == 0, 1 - 2 * ((replica + step) % 2), grads)


def _majority(grads: Array, num_replicas: int) -> Array:
  # Round the sum, because a mean of +1 and -1 may miss 0 by a rounding error.
  return jnp.sign(jnp.round(num_replicas * grads))


def error_feedback_sgd(
  tx: optax.GradientTransformation, *, compressor: Compressor
) -> ReplicaTransformation:
  """Error feedback: compression errors of a step are sent later.

    p_i = gamma G_i + e_i;  x <- x - mean_j Q(p_j);  e_i <- p_i - Q(p_i)

  e_i = 0 initially. p_i includes the learning rate, so that an error keeps the
  learning rate of its step.

  Args:
    tx: an optimizer for every replica; -tx(G_i) takes the place of gamma G_i.
      Momentum accumulates the replica's own gradients, before Q.
    compressor: Q, a contraction such as `top_k` or `signs`.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = error_feedback_sgd(
    ...     optax.sgd(0.1, momentum=0.9), compressor=pr.codecs.top_k(0.01))

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), Algorithm 2; Karimireddy, Rebjock, Stich, Jaggi 2019, Error
    feedback fixes signSGD and other gradient compression schemes (arXiv
    1901.09847), Algorithm 1. Neither has momentum.
  """
  return algorithm(
    'error_feedback_sgd',
    gradient(),
    local_update(tx, into='u'),
    let(u=lambda u: -u),
    sync(mean(), 'u', codec=feedback(compressor)),
    let(params=lambda params, u: params - u),
  )


def fedpaq(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  compressor: Compressor,
) -> ReplicaTransformation:
  """FedPAQ: local SGD whose model differences are compressed (order C).

  From a common x0, each replica takes I steps; then
  x0 <- x0 + mean_j Q(x_j - x0). All replicas participate in every round.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      Momentum stays local.
    period: I (tau in the paper), steps between averages, an integer >= 1; or a
      schedule.
    compressor: Q, unbiased such as `stochastic_levels`.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = fedpaq(
    ...     optax.sgd(0.1), period=8, compressor=pr.codecs.e3m0())

  Reference:
    Reisizadeh, Mokhtari, Hassani, Jadbabaie, Pedarsani 2020, FedPAQ: a
    communication-efficient federated learning method with periodic averaging
    and quantization (arXiv 1909.13014), Algorithm 1.
  """
  check_compressor(compressor)
  return algorithm(
    'fedpaq',
    remember(x0='params'),
    step(local),
    at(
      rounds(period),
      average_differences(compressor),
      let(x0='params'),
    ),
  )


def qsparse_local_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  compressor: Compressor,
) -> ReplicaTransformation:
  """Qsparse-local-SGD: FedPAQ with error feedback (order C).

  From a common x0, each replica takes H steps; then p_i = x_i - x0 + e_i,
  x0 <- x0 + mean_j Q(p_j), e_i <- p_i - Q(p_i). H = 1 is `error_feedback_sgd`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      Momentum stays local.
    period: H, steps between averages, an integer >= 1; or a schedule.
    compressor: Q, a contraction such as `top_k`.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = qsparse_local_sgd(
    ...     optax.sgd(0.1), period=8,
    ...     compressor=pr.codecs.top_k(0.01, pr.codecs.signs()))

  Reference:
    Basu, Data, Karakus, Diggavi 2019, Qsparse-local-SGD: distributed SGD with
    quantization, sparsification, and local computations (arXiv 1906.02367),
    Algorithm 1.
  """
  return algorithm(
    'qsparse_local_sgd',
    remember(x0='params'),
    step(local),
    at(
      rounds(period),
      average_differences(feedback(compressor)),
      let(x0='params'),
    ),
  )


def choco_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  mixing: Mixing,
  compressor: Compressor,
  consensus_step_size: float,
  period: int | Schedule = 1,
) -> ReplicaTransformation:
  """CHOCO-SGD: gossip that sends only compressed differences (order C).

  x_i <- x_i - eta G_i; every H steps xhat_i <- xhat_i + Q(x_i - xhat_i);
  x_i <- x_i + gamma sum_j W_ij (xhat_j - xhat_i), xhat_i = 0 initially. Without
  compression and with gamma = 1 it is x_i <- sum_j W_ij (x_j - eta G_j).

  Replica i keeps xhat_i and s_i = sum_j W_ij xhat_j (the paper's
  memory-efficient version), not the copies of its neighbors.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      Momentum stays local.
    mixing: W, one matrix for all rounds.
    compressor: Q, a contraction such as `top_k`.
    consensus_step_size: gamma, in (0, 1]. Use a smaller value the more Q leaves
      out.
    period: H, steps between messages, an integer >= 1; or a schedule. Default:
      1, as in the paper.

  Raises:
    ValueError: if an argument has the wrong type or is out of range; from
      `init`, if the mixing has several matrices.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = choco_sgd(
    ...     optax.sgd(0.1), mixing=pr.graphs.ring(),
    ...     compressor=pr.codecs.top_k(0.1),
    ...     consensus_step_size=0.3, period=4)

  Reference:
    Koloskova, Stich, Jaggi 2019, Decentralized stochastic optimization and
    gossip algorithms with compressed communication (arXiv 1902.00340),
    Algorithm 2.
  """
  return algorithm(
    'choco_sgd',
    step(local),
    at(
      rounds(period),
      gossip_differences(
        mixing, compressor, consensus_step_size=consensus_step_size
      ),
    ),
  )

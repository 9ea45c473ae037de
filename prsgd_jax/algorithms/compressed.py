"""Algorithms that send codes in place of gradients, steps or models."""

import optax

from prsgd_jax.base import ReplicaTransformation, chain
from prsgd_jax.compression import Compressor, stochastic_levels, ternary
from prsgd_jax.mixing import Mixing
from prsgd_jax.schedules import every
from prsgd_jax.transforms import (
  average_codes,
  average_differences,
  feed_back_errors,
  gossip_differences,
  gradient,
  local_update,
  vote,
)


def qsgd(
  tx: optax.GradientTransformation, *, levels: int
) -> ReplicaTransformation:
  """QSGD: synchronous SGD with gradients rounded at random to s levels.

  x <- x - gamma mean_i Q(G_i), Q(v)_k = |v| sgn(v_k) xi_k, unbiased (see
  `stochastic_levels`). The norm is that of a leaf; the paper takes it over
  buckets of a fixed size.

  Args:
    tx: the optimizer of every replica; all see the same gradient.
    levels: s, positive levels.

  Raises:
    ValueError: if `levels` is not an integer in [1, 32767].

  Reference:
    Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, QSGD: communication-efficient
    SGD via gradient quantization and encoding (arXiv 1610.02132), Algorithm 1.
  """
  return chain(
    gradient(), average_codes(stochastic_levels(levels)), local_update(tx)
  )


def terngrad(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """TernGrad: synchronous SGD with gradients rounded at random to -s, 0, s.

  x <- x - gamma mean_i s_i sgn(G_i) b_i, P(b = 1) = |G_i| / s_i, s_i = max|G_i|
  by layer. The paper clips gradients first, which `ternary` leaves out.

  Args:
    tx: the optimizer of every replica; all see the same gradient.

  Reference:
    Wen, Xu, Yan, Wu, Wang, Chen, Li 2017, TernGrad: ternary gradients to reduce
    communication in distributed deep learning (arXiv 1705.07878), Algorithm 1.
  """
  return chain(gradient(), average_codes(ternary()), local_update(tx))


def sign_sgd(tx: optax.GradientTransformation) -> ReplicaTransformation:
  """signSGD with majority vote: x <- x - gamma sgn(sum_i sgn(G_i)).

  A tie is 0. Each replica sends one bit an entry, see `vote` for zeros of its
  own. Momentum in `tx` is of the votes; the paper's Signum takes the sign of
  each replica's momentum instead.

  Args:
    tx: the optimizer of every replica; all see the same votes.

  Reference:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, signSGD with majority
    vote is communication efficient and fault tolerant (arXiv 1810.05291),
    Algorithm 1 with beta = 0.
  """
  return chain(gradient(), vote(), local_update(tx))


def error_feedback_sgd(
  tx: optax.GradientTransformation, *, compressor: Compressor
) -> ReplicaTransformation:
  """Error feedback: what a compressor leaves out of a step is sent later.

  p_i = gamma G_i + e_i; x <- x - mean_j Q(p_j); e_i <- p_i - Q(p_i), e_i = 0 at
  first. p_i has the learning rate in it: an error keeps the one at which it was
  made.

  Args:
    tx: the optimizer of every replica, whose step -tx(G_i) is gamma G_i in the
      equation: momentum is that of the replica's own gradients, before Q.
    compressor: Q, a contraction such as `top_k` or `signs`.

  Raises:
    ValueError: if `compressor` is none.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = error_feedback_sgd(
    ...     optax.sgd(0.1, momentum=0.9), compressor=pr.top_k(0.01))

  Reference:
    Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv
    1809.07599), Algorithm 2; Karimireddy, Rebjock, Stich, Jaggi 2019, Error
    feedback fixes signSGD and other gradient compression schemes (arXiv
    1901.09847), Algorithm 1. Neither has momentum.
  """
  return chain(gradient(), feed_back_errors(tx, compressor))


def fedpaq(
  tx: optax.GradientTransformation, *, period: int, compressor: Compressor
) -> ReplicaTransformation:
  """FedPAQ: local SGD whose model differences are compressed (order C).

  From a common x0 each replica takes I steps; then x0 <- x0 + mean_j Q(x_j -
  x0). All replicas take part.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    period: I (tau in the paper), steps between averages.
    compressor: Q, unbiased such as `stochastic_levels`.

  Raises:
    ValueError: if `period` is not an integer >= 1 or `compressor` is none.

  Reference:
    Reisizadeh, Mokhtari, Hassani, Jadbabaie, Pedarsani 2020, FedPAQ: a
    communication-efficient federated learning method with periodic averaging
    and quantization (arXiv 1909.13014), Algorithm 1.
  """
  return chain(
    gradient(),
    local_update(tx),
    average_differences(compressor, when=every(period)),
  )


def qsparse_local_sgd(
  tx: optax.GradientTransformation, *, period: int, compressor: Compressor
) -> ReplicaTransformation:
  """Qsparse-local-SGD: FedPAQ with error feedback (order C).

  From a common x0 each replica takes H steps; then p_i = x_i - x0 + e_i, x0 <-
  x0 + mean_j Q(p_j), e_i <- p_i - Q(p_i). H = 1 is `error_feedback_sgd`.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    period: H, steps between averages.
    compressor: Q, a contraction such as `top_k`.

  Raises:
    ValueError: if `period` is not an integer >= 1 or `compressor` is none.

  Reference:
    Basu, Data, Karakus, Diggavi 2019, Qsparse-local-SGD: distributed SGD with
    quantization, sparsification, and local computations (arXiv 1906.02367),
    Algorithm 1.
  """
  return chain(
    gradient(),
    local_update(tx),
    average_differences(compressor, when=every(period), error_feedback=True),
  )


def choco_sgd(
  tx: optax.GradientTransformation,
  *,
  mixing: Mixing,
  compressor: Compressor,
  consensus_step_size: float,
) -> ReplicaTransformation:
  """CHOCO-SGD: gossip that sends compressed differences alone (order C).

  x_i <- x_i - eta G_i; xhat_i <- xhat_i + Q(x_i - xhat_i); x_i <- x_i + gamma
  sum_j W_ij (xhat_j - xhat_i), xhat_i = 0 at first. Without compression and
  with gamma = 1 it is x_i <- sum_j W_ij (x_j - eta G_j).

  Replica i keeps xhat_i and s_i = sum_j W_ij xhat_j (the paper's
  memory-efficient version), not the copies of its neighbours.

  Args:
    tx: the optimizer of every replica; momentum stays local.
    mixing: W, the same at every step.
    compressor: Q, a contraction such as `top_k`.
    consensus_step_size: gamma, in (0, 1]; the more Q leaves out, the smaller.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the mixing has
      several matrices.

  Reference:
    Koloskova, Stich, Jaggi 2019, Decentralized stochastic optimization and
    gossip algorithms with compressed communication (arXiv 1902.00340),
    Algorithm 2.
  """
  return chain(
    gradient(),
    local_update(tx),
    gossip_differences(
      mixing, compressor, consensus_step_size=consensus_step_size
    ),
  )

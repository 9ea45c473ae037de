"""Algorithms that send few entries, frequencies or directions."""

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ReplicaTransformation, Schedule
from prsgd_jax.checks import check_bool, check_number, check_positive_int
from prsgd_jax.mixing.chunks import matrix_shape
from prsgd_jax.mixing.codecs import (
  Compressor,
  among_senders,
  bin_means,
  chunked_top_k,
  feedback,
  frequencies,
)
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  average_entries,
  gradient,
  let,
  local_update,
  remember,
  step,
  sync,
  zeros,
)


def sparse_loco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  compressor: Compressor | None = None,
  decay: float = 0.95,
  outer_learning_rate: float = 1.0,
  senders_only: bool = False,
) -> ReplicaTransformation:
  """SparseLoCo: DiLoCo that sends the largest entries of each movement.

  From a common x0, each replica takes H steps (order C); then d_i = x0 - x_i;
  e_i <- beta e_i + d_i; q_i = Q(e_i); e_i <- e_i - q_i;
  x0 <- x0 - alpha mean_j q_j. The unsent part remains in e_i, which replaces
  outer momentum.

  With beta = 0 and Q(v) = v it is `k_avg`, with beta = 1 `qsparse_local_sgd`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      AdamW in the paper.
    period: H, steps between averages, an integer >= 1; or a schedule. The paper
      uses 15 to 30.
    compressor: Q. Default: `chunked_top_k(64, values=bin_means(4))`, the 64
      largest entries of each 64 x 64 chunk, in two bits.
    decay: beta, in [0, 1]. Default: 0.95.
    outer_learning_rate: alpha, > 0. Default: 1.
    senders_only: whether to average each entry only over the replicas that sent
      it, as in the authors' code. Default: False, over all replicas, as in the
      paper.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = sparse_loco(optax.adamw(1e-3), period=30)

  Reference:
    Sarfi, Therien, Lidin, Belilovsky 2025, Communication efficient LLM
    pre-training with SparseLoCo (arXiv 2508.15706); the authors' code,
    tplr-ai/templar, src/tplr/compress.py and neurons.py. Not verified: the
    equations, which were read in a secondary source, and the number of the
    algorithm. The code also multiplies d_i by alpha, keeps an even number of
    entries, and clips the messages at the median of their norms.
  """
  alpha = check_number(
    'outer_learning_rate', outer_learning_rate, lambda x: x > 0, '> 0'
  )
  if compressor is None:
    compressor = chunked_top_k(64, values=bin_means(4))
  codec = feedback(compressor, decay)
  if check_bool('senders_only', senders_only):
    codec = among_senders(codec)
  return algorithm(
    'sparse_loco',
    remember(x0='params'),
    step(local),
    at(
      rounds(period),
      let(moved=lambda x0, params: x0 - params),
      sync(mean(), 'moved', codec=codec),
      let(x0=lambda x0, moved: x0 - alpha * moved, params='x0'),
    ),
  )


def demo(
  tx: optax.GradientTransformation,
  *,
  num_kept: int = 32,
  chunk: int = 64,
  decay: float = 0.999,
  senders_only: bool = False,
) -> ReplicaTransformation:
  """DeMo: signs of the largest frequencies of each replica's momentum.

  m_i <- beta m_i + G_i; q_i = the k largest of the DCT of each chunk of m_i;
  m_i <- m_i - iDCT(q_i); x <- x - gamma sgn(iDCT(mean_j q_j)).

  Momentum is never synchronized; the sent part is subtracted from it.

  Args:
    tx: the optimizer that receives the signs as gradients: `optax.sgd(gamma)`,
      with decoupled weight decay in the authors' code. All replicas see equal
      signs.
    num_kept: k, the frequencies sent of each chunk, an integer >= 1. Default:
      32.
    chunk: the largest side of a chunk, an integer >= 1. Default: 64.
    decay: beta, in [0, 1]. Default: 0.999.
    senders_only: whether to average each frequency only over the replicas that
      sent it, as in the authors' code. Default: False, over all replicas.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = demo(optax.sgd(3e-4))

  Reference:
    Peng, Quesnelle, Kingma 2024, DeMo: decoupled momentum optimization (arXiv
    2411.19870), after the authors' code, bloc97/DeMo, demo.py. Not verified:
    the number of the paper's algorithm. The code multiplies G_i by gamma before
    adding it to m_i, which does not change the signs while gamma is constant.
    The code stores m_i; here its frequencies are stored, which is equivalent up
    to rounding.
  """
  codec = feedback(chunked_top_k(num_kept, chunk=chunk), decay)
  if check_bool('senders_only', senders_only):
    codec = among_senders(codec)
  return algorithm(
    'demo',
    gradient(),
    sync(mean(), 'grads', codec=frequencies(codec, chunk=chunk)),
    let(grads=lambda grads: jnp.sign(grads)),
    local_update(tx),
  )


def sparta(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  fraction: float = 0.005,
) -> ReplicaTransformation:
  """SPARTA: a random fraction of the parameters is averaged at every step.

  x_i <- x_i - gamma G_i; then x_ik <- mean_j x_jk for k in S (order C). S is a
  random set of p n entries, drawn at every step and equal on all replicas.

  With p = 1 all parameters are averaged at every step, `k_avg(period=1)`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      With `diloco(...)` it is the authors' combination of both.
    fraction: p, in (0, 1]. Each leaf averages at least one entry. Default:
      0.005.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = sparta(optax.adamw(1e-3), fraction=0.005)

  Reference:
    Beton, Baioumy, van der Ouderaa, Reed, Howes, Cheema, Vrabie 2025, Improving
    the efficiency of distributed training using sparse parameter averaging
    (OpenReview stFPf3gzq1, of which only the abstract was read); after the
    authors' code, exo-explore/gym, exogym/strategy/sparta.py, which draws each
    entry independently. Here the number of entries is fixed, because arrays
    have fixed sizes.
  """
  return algorithm(
    'sparta',
    step(local),
    average_entries(fraction),
  )


def power_sgd(
  tx: optax.GradientTransformation, *, rank: int
) -> ReplicaTransformation:
  """PowerSGD: synchronous SGD with gradients of low rank.

  For each matrix, with a common Q and an error E_i of each replica, initially
  0:  A_i = G_i + E_i; P = orth(mean_j A_j Q); Q <- mean_j A_j' P;
  G <- P Q'; E_i <- A_i - G. tx receives G, and mean_j G_j for other parameters.

  Q is kept between steps, so that the steps continue one power iteration. With
  the full rank of a matrix it is synchronous SGD.

  Args:
    tx: an optimizer for every replica. All replicas see equal gradients.
    rank: r, an integer >= 1, limited to the smaller side of a matrix. The paper
      uses 1 to 4.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax
    >>> algorithm = power_sgd(optax.sgd(0.1, 0.9, nesterov=True), rank=2)

  Reference:
    Vogels, Karimireddy, Jaggi 2019, PowerSGD: practical low-rank gradient
    compression for distributed optimization (arXiv 1905.13727), Algorithms 1
    and 2, and the authors' code, epfml/powersgd, gradient_reducers.py. The
    paper uses Nesterov momentum, in optax `nesterov=True`. Here a tensor
    becomes a matrix of its last axis and all other axes; the paper uses the
    first axis, because its framework has the outputs there. orth is the QR
    decomposition; the paper uses Gram-Schmidt. The initial Q has a fixed seed,
    and is equal for matrices of one shape.
  """
  rank = check_positive_int('rank', rank)

  def start(params: Array) -> Array:
    if params.ndim < 2:
      return jnp.zeros((), params.dtype)  # checkpoints reject empty arrays
    rows, columns = matrix_shape(params.shape)
    key = jax.random.key(0, impl='threefry2x32')
    return jax.random.normal(
      key, (columns, min(rank, rows, columns)), params.dtype
    )

  return algorithm(
    'power_sgd',
    remember(e=zeros, q=start),
    gradient(),
    let(a=lambda grads, e: grads + e, p=_left),
    sync(mean(), 'p'),
    let(p=_orthonormal, r=_right),
    sync(mean(), 'r'),
    let(q=_kept, grads=_product, e=_error),
    local_update(tx),
  )


def _matrix(a: Array) -> Array:
  return a.reshape(matrix_shape(a.shape))


def _left(a: Array, q: Array) -> Array:
  return _matrix(a) @ q if a.ndim > 1 else a


def _orthonormal(a: Array, p: Array) -> Array:
  return jnp.linalg.qr(p)[0] if a.ndim > 1 else p


def _right(a: Array, p: Array) -> Array:
  return _matrix(a).T @ p if a.ndim > 1 else jnp.zeros(0, a.dtype)


def _kept(a: Array, q: Array, r: Array) -> Array:
  return r if a.ndim > 1 else q


def _product(a: Array, p: Array, r: Array) -> Array:
  return (p @ r.T).reshape(a.shape) if a.ndim > 1 else p


def _error(a: Array, grads: Array) -> Array:
  return a - grads if a.ndim > 1 else jnp.zeros_like(a)

"""Dion: matrices are updated along orthonormal directions of low rank."""

import math

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ReplicaTransformation
from prsgd_jax.checks import check_number, check_positive_int
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.stages import (
  algorithm,
  gradient,
  let,
  local_update,
  remember,
  sync,
  zeros,
)

# Added to column norms, as in the authors' code.
EPSILON = 1e-8


def dion(
  tx: optax.GradientTransformation, *, rank: int, momentum: float = 0.95
) -> ReplicaTransformation:
  """Dion: sends only orthonormal updates of low rank.

  For each matrix [in, out], with a common Q [in, r] and each replica's own M:
    M_i <- M_i + G_i;  P = orth(mean_j M_j' Q);  R = mean_j M_j P
    M_i <- M_i - (1 - mu) R P';  Q <- R, each column divided by its norm
  tx receives sqrt(out / in) Q P', and mean_j G_j for other parameters.

  The unsent part of M remains in each replica's M_i. The mean of the M_i and
  the parameters equal those of Dion applied to the mean gradient. But only
  (in + out) r numbers of a matrix are sent in a step, in two messages.

  Args:
    tx: the optimizer that receives the directions, without momentum for
      matrices: `optax.sgd(gamma)`, with weight decay in the paper. Use
      `optax.partition` for a different optimizer of other parameters.
    rank: r, an integer >= 1, limited to the smaller side of a matrix.
    momentum: mu, in [0, 1). Default: 0.95.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax
    >>> algorithm = dion(optax.sgd(0.02), rank=16)

  Reference:
    Ahn, Xu, Abreu, Langford 2025, Dion: distributed orthonormalized updates
    (arXiv 2504.05295), after the authors' code for one device (microsoft/dion,
    dion/dion_simple.py). The use of separate M_i with means of P and R follows
    from its linear parts and was not compared with their distributed code. The
    paper writes matrices as [out, in]. Its initial Q is random; here it has a
    fixed seed, and is equal for matrices of one shape.
  """
  rank = check_positive_int('rank', rank)
  mu = check_number('momentum', momentum, lambda x: 0 <= x < 1, 'in [0, 1)')

  def start(params: Array) -> Array:
    if not _is_matrix(params):
      return jnp.zeros((), params.dtype)
    shape = params.shape[0], min(rank, *params.shape)
    key = jax.random.key(0, impl='threefry2x32')
    return jax.random.normal(key, shape, params.dtype)

  def added(m: Array, grads: Array) -> Array:
    return m + grads if _is_matrix(m) else m

  def left(m: Array, q: Array, grads: Array) -> Array:
    return m.T @ q if _is_matrix(m) else grads

  def orthonormal(p: Array) -> Array:
    return jnp.linalg.qr(p)[0] if _is_matrix(p) else p

  def right(m: Array, p: Array) -> Array:
    return m @ p if _is_matrix(m) else jnp.zeros(0, p.dtype)

  def kept(m: Array, p: Array, r: Array) -> Array:
    return m - (1 - mu) * r @ p.T if _is_matrix(m) else m

  def normalized(q: Array, r: Array) -> Array:
    if not _is_matrix(r):
      return q
    return r / (jnp.linalg.norm(r, axis=0) + EPSILON)

  def direction(p: Array, q: Array) -> Array:
    if not _is_matrix(p):
      return p
    return math.sqrt(len(p) / len(q)) * q @ p.T

  return algorithm(
    'dion',
    remember(m=zeros, q=start),
    gradient(),
    let(m=added, p=left),
    sync(mean(), 'p'),
    let(p=orthonormal, r=right),
    sync(mean(), 'r'),
    let(m=kept, q=normalized, grads=direction),
    local_update(tx),
  )


def _is_matrix(x: Array) -> bool:
  return x.ndim == 2 and x.size > 0

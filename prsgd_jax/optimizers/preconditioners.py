"""Preconditioners of a replica's own gradient, as optax transformations."""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.checks import check_number, check_positive_int
from prsgd_jax.mixing.payload import cast_like, widen, wire_dtype

# Smallest rho, as a fraction of the largest eigenvalue: Kaldi's delta.
RELATIVE_FLOOR = 5e-4


class FisherFactor(NamedTuple):
  """F = R' diag(d) R + rho I over one axis of size D of one parameter.

  Attributes:
    basis: R, [rank, D], orthonormal rows.
    eigenvalues: d, [rank], >= 0.
    scale: rho; 0 before the first gradient.
  """

  basis: Array
  eigenvalues: Array
  scale: Array


class NaturalGradientState(NamedTuple):
  """State: one factor for each axis of each parameter, in flattened order."""

  factors: tuple[tuple[FisherFactor, ...], ...]


def scale_by_natural_gradient(
  *, rank: int = 20, smoothing: float = 4.0, update_rate: float = 0.1
) -> optax.GradientTransformation:
  """Return Kaldi's online natural gradient, computed from gradients only.

  For every axis of every parameter, the gradient is treated as a matrix X of M
  vectors of size D, the size of the axis. Their scatter is estimated by a
  matrix of low rank plus a multiple of the identity:

    F_t = R_t' D_t R_t + rho_t I,      S_t = X_t' X_t / M
    T_t = eta S_t + (1 - eta) F_t,     Y_t = R_t T_t
    Y_t Y_t' = U_t C_t U_t',           R_{t+1} = C_t^{-1/2} U_t' Y_t
    rho_{t+1} = (tr T_t - tr C_t^{1/2}) / (D - rank)
    D_{t+1} = C_t^{1/2} - rho_{t+1} I

  This is one step of the power method, which keeps the trace. Along each axis
  the gradient is multiplied by (F_t + alpha tr(F_t) / D I)^{-1}, where F_t is
  the estimate before this gradient. Then each parameter's gradient is rescaled
  to its original 2-norm, so that only the direction changes.

  Differences from Kaldi:
  - Kaldi preconditions, for each example of the minibatch, the input of a layer
    and the derivative of its output. A chain has only their summed product, so
    the other axes take the place of the examples, as in the PyTorch version by
    Kaldi's first author. A bias is one vector.
  - F_0 is the multiple of the identity with the trace of the first scatter, so
    the first gradient is not changed. Kaldi starts with three updates on it.
  - Kaldi applies the floor of rho after computing D; here it comes before,
    which changes trace and eigenvalues where the floor is active. D has the
    floor 0. rho_t also has a floor from the new scatter, so that R_{t+1} is
    well determined after a gradient a hundred times as long as earlier ones.
  - Rows of R are normalized by their length, which is C_t^{1/2}, and made
    orthonormal at every step.
  - The factors are updated at every step; Kaldi may skip steps to save time.

  In each step, each axis costs four products of [rank, D] with the gradient and
  one eigenvalue decomposition of [rank, rank], in float32 or wider.

  Args:
    rank: the rank of the part that is not the identity, >= 1. It is limited to
      D - 1.
    smoothing: alpha, the multiple of the mean eigenvalue that is added to F,
      >= 0.
    update_rate: eta, the weight of the newest scatter in F, in (0, 1).

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> tx = optax.chain(scale_by_natural_gradient(rank=2), optax.sgd(0.1))
    >>> state = tx.init(jnp.zeros((4, 3)))

  Reference:
    Povey, Zhang, Khudanpur 2015, Parallel training of DNNs with natural
    gradient and parameter averaging (arXiv 1410.7455), section on the online
    method, in the notation of Kaldi's src/nnet3/natural-gradient-online.h.
  """
  rank = check_positive_int('rank', rank)
  alpha = check_number(
    'smoothing', smoothing, lambda x: 0 <= x < math.inf, '>= 0 and finite'
  )
  eta = check_number(
    'update_rate', update_rate, lambda x: 0 < x < 1, 'in (0, 1)'
  )

  def init(params: ArrayTree) -> NaturalGradientState:
    return NaturalGradientState(
      tuple(
        tuple(_first_factor(x, x.shape[axis], rank) for axis in _axes(x))
        for x in jax.tree.leaves(params)
      )
    )

  def precondition(
    gradient: Array, factors: tuple[FisherFactor, ...]
  ) -> tuple[Array, tuple[FisherFactor, ...]]:
    given = gradient.astype(wire_dtype(gradient))
    direction, renewed = given, []
    for axis, factor in zip(_axes(gradient), factors, strict=True):
      examples = jnp.moveaxis(given, axis, -1).reshape(-1, given.shape[axis])
      # Highest precision, because the low one of accelerators would make the
      # rows of R lose orthonormality.
      with jax.default_matmul_precision('highest'):
        vectors = _solve(factor, alpha, jnp.moveaxis(direction, axis, -1))
        renewed.append(_renew(factor, eta, examples))
      direction = jnp.moveaxis(vectors, -1, axis)
    size, wanted = jnp.linalg.norm(direction), jnp.linalg.norm(given)
    direction *= jnp.where(size > 0, wanted / jnp.where(size > 0, size, 1), 1)
    return direction.astype(gradient.dtype), tuple(renewed)

  def update(
    updates: ArrayTree,
    state: NaturalGradientState,
    params: ArrayTree | None = None,
  ) -> tuple[ArrayTree, NaturalGradientState]:
    del params
    leaves, treedef = jax.tree.flatten(updates)
    pairs = [
      precondition(*pair) for pair in zip(leaves, state.factors, strict=True)
    ]
    directions = jax.tree.unflatten(treedef, [pair[0] for pair in pairs])
    return directions, NaturalGradientState(tuple(pair[1] for pair in pairs))

  return optax.GradientTransformation(init, update)


def _axes(x: Array) -> list[int]:
  """Return the axes that have anything to precondition."""
  return [axis for axis, size in enumerate(x.shape) if size > 1 and x.size]


def _first_factor(x: Array, size: int, rank: int) -> FisherFactor:
  """Return the factor before the first gradient, with Kaldi's initial R.

  Row r of R is 1.1, 1, 1, ... at r, r + rank, r + 2 rank, ..., normalized. So
  every column is covered. No row has equal entries, because along an axis
  normalized by a softmax, gradients are orthogonal to such a row.
  """
  rank, dtype = min(rank, size - 1), wire_dtype(x)
  basis = np.zeros((rank, size))
  basis[np.arange(size) % rank, np.arange(size)] = 1
  basis[np.arange(rank), np.arange(rank)] = 1.1
  basis /= np.linalg.norm(basis, axis=1, keepdims=True)
  return FisherFactor(
    jnp.asarray(basis, dtype), jnp.zeros(rank, dtype), jnp.zeros((), dtype)
  )


def _solve(factor: FisherFactor, alpha: float, vectors: Array) -> Array:
  """Return beta (F + alpha tr(F) / D I)^{-1} x for every vector x, [..., D].

  With beta = rho + alpha tr(F) / D and e = d / (beta + d), this equals
  x - R' diag(e) R x by Woodbury's identity.
  """
  basis, d, rho = factor
  size = basis.shape[1]
  beta = rho + alpha / size * (d.sum() + size * rho)
  e = jnp.where(beta > 0, d / jnp.where(beta > 0, beta + d, 1), 0)
  return vectors - (vectors @ basis.T * e) @ basis


def _renew(factor: FisherFactor, eta: float, examples: Array) -> FisherFactor:
  """Return F_{t+1} from F_t and X_t, [M, D]; a zero gradient keeps F_t."""
  basis, d, rho = factor
  rank, size = basis.shape
  trace = jnp.square(examples).sum() / len(examples)
  rho = jnp.where(rho > 0, rho, trace / size)
  rho = jnp.maximum(rho, RELATIVE_FLOOR * eta * trace)
  y = eta / len(examples) * (basis @ examples.T) @ examples
  y += (1 - eta) * (d + rho)[:, None] * basis
  total = eta * trace + (1 - eta) * (d.sum() + size * rho)
  # Divided by the trace, because the fourth power of small gradients would
  # underflow.
  y /= jnp.where(total > 0, total, 1)
  vectors = jnp.linalg.eigh(y @ y.T)[1].T[::-1] @ y
  norms = jnp.linalg.norm(vectors, axis=1)
  basis = _orthonormal(vectors / jnp.where(norms > 0, norms, 1)[:, None])
  rho = total * (1 - norms.sum()) / (size - rank)
  values = total * norms
  rho = jnp.maximum(rho, RELATIVE_FLOOR * values[0])
  new = FisherFactor(basis, jnp.maximum(values - rho, 0), rho)
  return jax.tree.map(lambda x, old: jnp.where(trace > 0, x, old), new, factor)


def _orthonormal(rows: Array) -> Array:
  """Orthonormalize nearly orthonormal rows, starting with the first."""
  # Invert the small matrix, because solving for the long rows was 100 times
  # slower on CPU.
  return _inverse(jnp.linalg.cholesky(rows @ rows.T)) @ rows


def _inverse(lower: Array) -> Array:
  """Invert a lower triangular matrix by forward substitution.

  Not by `solve_triangular`, because several of them in one program hang on CPU
  if each has a batch of about 64 replicas or more (JAX 0.10 and 0.12).
  """
  eye = jnp.eye(len(lower), dtype=lower.dtype)

  def put(i: Array, inverse: Array) -> Array:
    # Rows from i on are still 0.
    row = (eye[i] - lower[i] @ inverse) / lower[i, i]
    return inverse.at[i].set(row)

  return lax.fori_loop(0, len(lower), put, jnp.zeros_like(lower))


def limit_change(max_change: float) -> optax.GradientTransformation:
  """Return a transformation that limits the 2-norm of the whole step.

    u <- u min(1, max_change / |u|)

  |u| is the norm over all parameters together, in float32 or wider. Chain it
  last, after the learning rate, so that it limits the step and not the
  gradient. It is Kaldi's max-param-change (2.0 by default), which limits the
  step of a minibatch. Kaldi also has a limit for each layer.

  Args:
    max_change: the largest norm of a step, > 0.

  Raises:
    ValueError: if `max_change` is not a number > 0.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> tx = optax.chain(optax.sgd(1.0), limit_change(5.0))
    >>> x = jnp.zeros(2)
    >>> step, _ = tx.update(jnp.array([6.0, 8.0]), tx.init(x), x)
    >>> [round(float(x), 3) for x in step]
    [-3.0, -4.0]
  """
  cap = check_number(
    'max_change', max_change, lambda x: x > 0, '> 0', infinite=True
  )

  def update(
    updates: ArrayTree, state: ArrayTree, params: ArrayTree | None = None
  ) -> tuple[ArrayTree, ArrayTree]:
    del params
    wide = widen(updates)
    norm = optax.tree.norm(wide)
    scale = jnp.where(norm > cap, cap / norm, 1)
    limited = jax.tree.map(lambda u: u * scale.astype(u.dtype), wide)
    return cast_like(limited, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

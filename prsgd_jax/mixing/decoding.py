"""Weighted sums of values, and of codes, which every receiver decodes."""

from collections.abc import Callable
import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree, Context, over_block
from prsgd_jax.mixing import collectives

# One replica's codes -> its tree of floats.
Decode = Callable[[ArrayTree], ArrayTree]


def combine_codes(rows: Array, codes: ArrayTree, decode: Decode) -> ArrayTree:
  """Return `rows[r] . decoded`, decoding one replica's codes at a time."""
  gathered = collectives.all_gather(codes)

  def code(j: Array | int) -> ArrayTree:
    return jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, j, keepdims=False), gathered
    )

  zero = jax.tree.map(
    lambda x: jnp.zeros((rows.shape[0], *x.shape), x.dtype),
    jax.eval_shape(lambda: decode(code(0))),
  )
  return add_weighted(rows, lambda j: decode(code(j)), zero)


def add_weighted(
  rows: Array, nth: Callable[[Array], ArrayTree], zero: ArrayTree
) -> ArrayTree:
  """Return sum_j rows[:, j] nth(j), in which a weight of 0 always adds 0.

  Args:
    rows: the weights, `[V, N]`.
    nth: `j -> tree`, the value of replica j.
    zero: the start of the sum, leaves `[V, ...]`.
  """

  def add(j: Array, total: ArrayTree) -> ArrayTree:
    def weighted(x: Array) -> Array:
      return jax.vmap(lambda w: jnp.where(w != 0, w.astype(x.dtype) * x, 0))(
        rows[:, j]
      )

    return jax.tree.map(lambda y, x: y + weighted(x), total, nth(j))

  return lax.fori_loop(0, rows.shape[1], add, zero)


def scaled_rows(
  tree: ArrayTree, scale: np.ndarray, replica: Array
) -> ArrayTree:
  """Multiply the values of each replica by its entry of float64[N].

  An entry of 0 always gives 0, because a value that nobody sent may decode to
  inf or NaN.
  """
  if len(set(scale.tolist())) == 1:
    return jax.tree.map(functools.partial(operator.mul, float(scale[0])), tree)
  mine = jnp.asarray(scale)[replica]

  def scale_own(x: Array) -> Array:
    scaled = over_block(operator.mul)(mine.astype(x.dtype), x)
    return over_block(jnp.where)(mine != 0, scaled, jnp.zeros_like(x))

  return jax.tree.map(scale_own, tree)


def combine_codes_alike(
  row: np.ndarray, codes: ArrayTree, context: Context, decode: Decode
) -> ArrayTree:
  """Return `row . decoded`, equal on all replicas of the block."""
  once = combine_codes(jnp.asarray(row[None]), codes, decode)
  block = context.replica.shape[0]
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x, (block, *x.shape[1:])), once
  )


def mean_codes(
  codes: ArrayTree, size: int, context: Context, decode: Decode
) -> ArrayTree:
  """Return the mean of the decoded values in each group of `size` replicas."""
  gathered, starts, group = collectives.group_gather(
    codes, context.replica, size
  )

  def nth(j: Array | int) -> ArrayTree:
    each = jax.tree.map(lambda x: x[starts + j], gathered)
    return over_block(decode)(each)

  def add(j: Array, total: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda y, x: y + x / size, total, nth(j))

  zero = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: nth(0))
  )
  means = lax.fori_loop(0, size, add, zero)
  return jax.tree.map(lambda x: x[group], means)

"""Measures of consensus: the distance of replicas, and how fast they mix."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree, select
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.matrices import sums_to_one
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.mixing.payload import is_inexact, wire_dtype


def consensus_distance(
  params: ArrayTree, present: Array | None = None
) -> Array:
  """Return (1/N) sum_i |x_i - xbar|^2, inside a mapped function.

  Args:
    params: a block of replicas, leaves `[V, ...]`.
    present: bool[V], the replicas to include. Default: all.

  Returns:
    A scalar, equal on every device.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[0.0], [2.0]])  # on 2 devices, 1 replica each
    >>> jax.vmap(consensus_distance, axis_name='replica')(x).tolist()
    [1.0, 1.0]
  """
  total = jnp.zeros((), jnp.float32)
  for x in jax.tree.leaves(params):
    if is_inexact(x):
      x = x.astype(wire_dtype(x))
      if present is None:
        drift = x - collectives.replica_mean(x)
        total += jnp.square(jnp.abs(drift)).sum() / x.shape[0]
      else:
        drift = select(
          present, x - mean_of_present(x, present), jnp.zeros_like(x)
        )
        square = jnp.square(jnp.abs(drift)).reshape((x.shape[0], -1))
        total += mean_of_present(square.sum(axis=1), present)
  return lax.pmean(total, AXIS_NAME)


def mean_of_present(x: Array, present: Array) -> Array:
  """Return the mean of `[V, ...]` over the replicas that are present.

  If none is, it is the mean of all.

  Args:
    x: values of a block.
    present: bool[V].

  Returns:
    `[...]`, equal on every device.
  """
  count = lax.psum(present.sum(), AXIS_NAME)
  here = present | (count == 0)
  number = lax.psum(here.sum(), AXIS_NAME).astype(x.dtype)
  own = select(here, x, jnp.zeros_like(x)).sum(axis=0)
  return lax.psum(own, AXIS_NAME) / number


def spectral_gap(mixing: Mixing, num_replicas: int) -> float:
  """Return the spectral gap of a mixing, 1 - sqrt(lambda).

  lambda is the largest eigenvalue of E[(W - J)'(W - J)], J = 11'/N, over the
  matrices of the mixing. A round leaves at most the fraction lambda of
  E |x - xbar|^2. The gap is 1 - |lambda_2(W)| for one symmetric W, 1 for the
  mean, and 0 if some direction is never mixed. Matrices that alternate are
  treated as if they were drawn at random, so the gap does not describe their
  product.

  Args:
    mixing: W, doubly stochastic.
    num_replicas: N, >= 1.

  Returns:
    The gap, in [0, 1].

  Raises:
    ValueError: if the mixing is not doubly stochastic, or does not fit the
      number of replicas.

  Example:
    >>> import prsgd_jax as pr
    >>> round(spectral_gap(pr.graphs.ring(), 8), 3)
    0.195

  Reference:
    Boyd, Ghosh, Prabhakar, Shah 2006, Randomized gossip algorithms.
  """
  matrices = mixing.matrices(num_replicas)
  if not (sums_to_one(matrices, -1) and sums_to_one(matrices, -2)):
    raise ValueError(
      'spectral_gap expects a doubly stochastic mixing, got one whose rows or '
      'columns do not sum to 1'
    )
  apart = matrices - 1 / num_replicas
  left = (apart.swapaxes(-1, -2) @ apart).mean(axis=0)
  return float(1 - np.sqrt(max(np.linalg.eigvalsh(left)[-1], 0)))

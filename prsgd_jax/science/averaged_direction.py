"""Decentralized SGD as average-direction SAM: the turn of the mean gradient.

Like `landscape`, it runs on the host and needs only the `grad_fn` of the loss.
"""

from collections.abc import Iterator
import math
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing.payload import wire_dtype
from prsgd_jax.science.noise import GradFn, gradients, length, rows


class AveragedDirection(NamedTuple):
  """The turn of the mean gradient by the spread of the replicas.

  With w_a = mean_j w_j, the turn is delta = mean_j grad L(w_j) - grad L(w_a).
  Average-direction SAM has E grad L(w_a + e) - grad L(w_a), e Gaussian.

  Attributes:
    cosine: cosine of the angle between the two turns; nan if one of them is 0.
    ratio: |delta| over the norm of SAM's turn; nan if the latter is 0.
    turn: |delta|.
    gradient: |grad L(w_a)|.
    spread: (1/N) sum_j |w_j - w_a|^2.
    halves: cosine of the SAM turns by two independent halves of the pairs; nan
      with one pair, or if one of the turns is 0.
  """

  cosine: float
  ratio: float
  turn: float
  gradient: float
  spread: float
  halves: float

  @property
  def ceiling(self) -> float:
    """The cosine that turns in one direction would have, at most 1.

    The noise of the pairs lowers `cosine`, and halves of the pairs measure it.
    nan if `halves` is negative, because the pairs are then too few.
    """
    if not self.halves >= 0:
      return math.nan
    return math.sqrt(2 * self.halves / (1 + self.halves))


def averaged_direction(
  grad_fn: GradFn,
  points: ArrayTree,
  batch: Any,
  key: Array,
  *,
  num_pairs: int = 64,
  isotropic: bool = False,
  seed: int = 0,
) -> AveragedDirection:
  """Compare the mean gradient of the replicas with average-direction SAM.

  The covariance of e is Xi = (1/N) sum_j (w_j - w_a)(w_j - w_a)'. Both turns
  have the term grad tr(H(w) Xi) / 2 at w_a, and differ from the fourth
  derivative of L on. E grad L(w_a + e) is a mean over pairs e and -e, in which
  the term H e cancels. The e are Gaussian combinations of the w_j - w_a. Their
  coefficients are orthogonal in blocks of N, because their covariance then is
  closer to Xi than with independent ones.

  Args:
    grad_fn: the gradient of the loss, `(params, batch, key) -> gradients`.
    points: w_j, leaves `[N, ...]`.
    batch: the batch of L, such as all examples.
    key: the random key of the loss, which should draw nothing from it, because
      every gradient has another key.
    num_pairs: pairs of e and -e, >= 1. Each costs two gradients. Default: 64.
    isotropic: whether the covariance of e is a multiple of the identity with
      the trace of Xi, as a control. Default: False.
    seed: seed of the e. Default: 0.

  Raises:
    ValueError: if `num_pairs` is not an integer >= 1.

  Example:
    >>> found = averaged_direction(  # x^3 / 3 at -1 and 1, whose slope is x^2
    ...     lambda x, batch, key: x**2, np.array([[-1.], [1.]]), np.zeros(1),
    ...     jax.random.key(0), num_pairs=400)
    >>> round(found.cosine, 3), round(found.ratio), found.turn
    (1.0, 1, 1.0)

  Reference:
    Zhu, He, Chen, Song, Tao 2023, Decentralized SGD and average-direction SAM
    are asymptotically equivalent (arXiv 2306.02913), the theorem on the mean
    iterate. Not verified: its number and its remainder.
  """
  pairs = check_positive_int('num_pairs', num_pairs)
  size = length(points)
  wide = jax.tree.map(lambda x: np.asarray(x, wire_dtype(x)), points)
  first, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], wide))
  flat = np.stack([ravel_pytree(p)[0] for p in rows(wide)]).astype(np.float64)
  mean = flat.mean(axis=0)
  deviations = flat - mean
  spread = float((deviations**2).sum() / size)
  rng = np.random.default_rng(seed)

  def moved(count: int) -> Iterator[np.ndarray]:
    if isotropic:
      scale = (spread / mean.size) ** 0.5
      steps = (scale * rng.normal(size=mean.size) for _ in range(count))
    else:
      drawn = orthogonal_gaussians(rng, count, size)
      steps = (z @ deviations / size**0.5 for z in drawn)
    for e in steps:
      yield from (mean + e, mean - e)

  def mean_gradient(vectors: Iterator[np.ndarray], count: int) -> np.ndarray:
    many = jax.tree.map(
      lambda x: np.broadcast_to(x, (count, *np.shape(x))), batch
    )
    there = (unravel(jnp.asarray(v, first.dtype)) for v in vectors)
    drawn = gradients(grad_fn, there, many, key)
    return sum(drawn, np.zeros(mean.size)) / count

  g = mean_gradient(iter([mean]), 1)
  delta = mean_gradient(iter(flat), size) - g
  counts = [n for n in (pairs - pairs // 2, pairs // 2) if n]
  halves = [mean_gradient(moved(n), 2 * n) - g for n in counts]
  sam = np.average(halves, axis=0, weights=counts)
  norm, other = float(np.linalg.norm(delta)), float(np.linalg.norm(sam))
  return AveragedDirection(
    cosine=_cosine(delta, sam),
    ratio=norm / other if other else math.nan,
    turn=norm,
    gradient=float(np.linalg.norm(g)),
    spread=spread,
    halves=_cosine(*halves) if len(halves) == 2 else math.nan,
  )


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
  norms = float(np.linalg.norm(one) * np.linalg.norm(other))
  return float(one @ other) / norms if norms else math.nan


def orthogonal_gaussians(
  rng: np.random.Generator, count: int, size: int
) -> Iterator[np.ndarray]:
  """Yield Gaussian vectors, float64[size], orthogonal in blocks of `size`.

  Each is N(0, I): its direction is uniform, and its length has the distribution
  of a Gaussian vector's.

  Args:
    rng: generator of the draws.
    count: number of vectors.
    size: length of each of them.
  """
  for begin in range(0, count, size):
    directions, upper = np.linalg.qr(rng.normal(size=(size, size)))
    # The signs, because QR itself does not give uniform directions.
    directions *= np.sign(np.diag(upper))
    lengths = np.sqrt(rng.chisquare(size, size=size))
    yield from (lengths[:, None] * directions.T)[: count - begin]

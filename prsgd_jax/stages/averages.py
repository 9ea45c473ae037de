"""AVERAGES: alternatives to the plain mean at the end of a round.

Each is a stage on `params`. Pass it to an algorithm as `average=`.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax.base import Array, ArrayTree, ReplicaTransformation
from prsgd_jax.checks import check_fraction, check_number
from prsgd_jax.mixing.codecs import Compressor, num_kept
from prsgd_jax.mixing.codecs.memory import Codec, difference
from prsgd_jax.mixing.mixings import Mixing, mean
from prsgd_jax.stages.assignments import compute, let
from prsgd_jax.stages.communication import sync
from prsgd_jax.stages.scopes import algorithm


def average_differences(
  codec: Compressor | Codec, *, mixing: Mixing | None = None
) -> ReplicaTransformation:
  """Average the encoded movements of the replicas in a round.

    x_i <- x0 + sum_j W_ij Q(x_j - x0)

  x0 is the point at which the round began. It is a register of the surrounding
  algorithm, such as `diloco`, `slowmo`, `bmuf` or `fedavg` with a server. In
  your own algorithm, declare it with `remember(x0='params')`. All replicas must
  have equal x0.

  Args:
    codec: Q, a compressor, or a codec with memory such as
      `feedback(top_k(0.1))`.
    mixing: W, the mixing. Default: the mean of all replicas.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diloco(
    ...     optax.adamw(1e-3), period=30,
    ...     average=pr.stages.average_differences(
    ...         pr.codecs.feedback(pr.codecs.top_k(0.02))))
  """
  return algorithm(
    'average_differences',
    let(moved=lambda params, x0: params - x0),
    sync(mean() if mixing is None else mixing, 'moved', codec=codec),
    let(params=lambda moved, x0: x0 + moved),
  )


def gossip_differences(
  mixing: Mixing, compressor: Compressor, *, consensus_step_size: Any
) -> ReplicaTransformation:
  """Gossip compressed differences (CHOCO).

    xhat_i <- xhat_i + Q(x_i - xhat_i)
    x_i <- x_i + gamma sum_j W_ij (xhat_j - xhat_i),  xhat_i = 0 initially

  Args:
    mixing: W, one matrix for all rounds. The theory assumes that it is
      symmetric and doubly stochastic.
    compressor: Q, a contraction such as `top_k`.
    consensus_step_size: gamma, in (0, 1]. Use a smaller value the more Q leaves
      out.

  Raises:
    ValueError: if an argument has the wrong type or is out of range; from
      `init`, if the mixing has several matrices.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> gossip = pr.stages.gossip_differences(
    ...     pr.graphs.ring(), pr.codecs.top_k(0.1), consensus_step_size=0.3)
    >>> algorithm = pr.k_avg(optax.sgd(0.1), period=8, average=gossip)

  Reference:
    Koloskova, Stich, Jaggi 2019, Decentralized stochastic optimization and
    gossip algorithms with compressed communication (arXiv 1902.00340),
    Algorithm 1.
  """
  gamma = check_number(
    'consensus_step_size',
    consensus_step_size,
    lambda x: 0 < x <= 1,
    'in (0, 1]',
  )
  return algorithm(
    'gossip_differences',
    let(mixed='params'),
    sync(mixing, 'mixed', codec=difference(compressor), own='known'),
    let(params=lambda params, mixed, known: params + gamma * (mixed - known)),
  )


def average_entries(
  fraction: float, *, mixing: Mixing | None = None
) -> ReplicaTransformation:
  """Average a random fraction of the entries, equal on all replicas.

    x_ik <- sum_j W_ij x_jk for k in S; other entries do not change

  S is drawn in each round. No replica sends positions, because all replicas
  draw S from the shared key. The values are summed in transit as in a plain
  mean, so a round costs `fraction` of a mean.

  Args:
    fraction: the fraction of the entries of each leaf in S, in (0, 1]. |S| is
      rounded, and at least 1.
    mixing: W, the mixing. Default: the mean of all replicas.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(
    ...     optax.sgd(0.1), period=1, average=pr.stages.average_entries(0.005))
  """
  fraction = check_fraction('fraction', fraction)

  def draw(params: ArrayTree, shared_key: Array) -> ArrayTree:
    leaves, treedef = jax.tree.flatten(params)
    places = []
    for key, x in zip(jax.random.split(shared_key, len(leaves)), leaves):
      # The positions of the k largest of random numbers, because this takes
      # half the time of a permutation.
      bits = jax.random.bits(key, (x.size,), jnp.uint32)
      places.append(lax.top_k(bits, num_kept(fraction, x.size))[1])
    return jax.tree.unflatten(treedef, places)

  def take(params: ArrayTree, places: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x, p: x.ravel()[p], params, places)

  def put(params: ArrayTree, part: ArrayTree, places: ArrayTree) -> ArrayTree:
    def replaced(x: Array, new: Array, p: Array) -> Array:
      return x.ravel().at[p].set(new.astype(x.dtype)).reshape(x.shape)

    return jax.tree.map(replaced, params, part, places)

  return algorithm(
    'average_entries',
    compute(places=draw, part=take),
    sync(mean() if mixing is None else mixing, 'part'),
    compute(params=put),
  )

"""Sums of all models, relayed along a tree."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.base import Array, ReplicaTransformation, Step, chain
from prsgd_jax.checks import check_listed, check_step
from prsgd_jax.mixing.matrices import from_links
from prsgd_jax.mixing.mixings import sparse
from prsgd_jax.stages import (
  algorithm,
  let,
  on_resize,
  reading,
  remember,
  require_everyone,
  step,
  sync,
  zeros,
)
from prsgd_jax.stages.rules import Rule

if TYPE_CHECKING:
  from scipy.sparse import csr_array


def relay_sgd(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  parents: Sequence[int] | None = None,
) -> ReplicaTransformation:
  """RelaySGD: the sum of all models, relayed link by link along a tree.

  On the link i -> j, replica i sends the sum of the models on its side of the
  tree. Models of distant replicas are older. Models that have not arrived yet
  are replaced by x^0:

    m_ij <- x_i + u_i + sum_{k != j} m_ki^-
    x_i <- (x_i + u_i + sum_j m_ji + missing x^0) / N

  So x_i <- (1/N) sum_j (x_j + u_j), in which the model at distance d is d - 1
  steps old. All models have equal weight, at any distance. With two replicas it
  is `ssgd`.

  A replica sends a different message to each neighbor. The links are colored so
  that all links of a replica have different colors. One `sync` swaps the
  messages along the links of one color. A replica stores one message per color.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    parents: int[N - 1], the parent of each replica 1 .. N - 1 in a tree with
      root 0. A parent must have a smaller index than its child. Default: a
      binary tree.

  Raises:
    ValueError: if a parent is not an integer >= 0, or not smaller than its
      child; from `init`, if the number of parents is not N - 1.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> path = pr.relay_sgd(optax.sgd(0.1), parents=(0, 1, 2))

  Reference:
    Vogels, He, Koloskova, Lin, Karimireddy, Stich, Jaggi 2021, RelaySum for
    decentralized deep learning on heterogeneous data (arXiv 2110.04175),
    Algorithm 1, as in the authors' code (`relaysum_model`). The code also sends
    the number of models in a message; here it follows from the step.
  """
  find = _tree(parents)
  colors = range(find.num_colors)
  heard = [f'heard{k}' for k in colors]  # m_ji on the link of color k
  told = [f'told{k}' for k in colors]

  def tell(k: int) -> Rule:
    others = [name for name in heard if name != heard[k]]
    return reading(lambda params, *m: params + sum(m), 'params', *others)

  def hear(k: int) -> Rule:
    def from_neighbor(told: Array, replica: Array, num_replicas: int) -> Array:
      partner = jnp.asarray(find.partners(num_replicas)[k])[replica]
      return jnp.where(partner != replica, told, 0)

    return reading(from_neighbor, told[k], 'replica', 'num_replicas')

  def hear_again(k: int) -> Callable[..., Array]:
    """Return the rule for the message of a tree of equal models."""

    def message(
      params: Array, step: Step, replica: Array, num_replicas: int
    ) -> Array:
      near = find.distances(num_replicas) <= step
      there = find.behind(k, num_replicas) & near
      return jnp.asarray(there.sum(axis=1), params.dtype)[replica] * params

    return message

  def averaged(
    params: Array,
    x0: Array,
    step: Array,
    replica: Array,
    num_replicas: int,
    *m: Array,
  ) -> Array:
    far = jnp.asarray(find.distances(num_replicas))[replica] > step + 1
    return (params + sum(m) + far.sum() * x0) / num_replicas

  return algorithm(
    'relay_sgd',
    chain(
      remember(x0='params', **dict.fromkeys(heard, zeros)),
      on_resize(**{heard[k]: hear_again(k) for k in colors}),
    ),
    step(local),
    let(**{told[k]: tell(k) for k in colors}),
    *[sync(sparse(find.swaps(k)), told[k]) for k in colors],
    let(
      **{heard[k]: hear(k) for k in colors},
      params=reading(
        averaged, 'params', 'x0', 'step', 'replica', 'num_replicas', *heard
      ),
    ),
    require_everyone(
      'relay_sgd sums models along its tree, and one missed message '
      'loses a part of it'
    ),
  )


class _Tree(NamedTuple):
  """A tree of replicas with colored links.

  Attributes:
    num_colors: C; all links of a replica have different colors.
    parents: `num_replicas -> int[N - 1]`, the parents of replicas 1 .. N - 1.
  """

  num_colors: int
  parents: Callable[[int], Sequence[int]]

  def partners(self, num_replicas: int) -> np.ndarray:
    """Return int[C, N], the neighbor on the link of each color, or i itself."""
    found = np.tile(np.arange(num_replicas), (self.num_colors, 1))
    for child, parent in enumerate(self.parents(num_replicas), start=1):
      # Only the parent matters, because the child has no other link yet.
      color = int(np.flatnonzero(found[:, parent] == parent)[0])
      found[color, [child, parent]] = parent, child
    return found

  def swaps(self, color: int) -> Callable[[int], list['csr_array']]:
    """Return `num_replicas -> [W]`, which swaps along the links of a color."""

    def matrices(num_replicas: int) -> list['csr_array']:
      partner = self.partners(num_replicas)[color]
      index, ones = np.arange(num_replicas), np.ones(num_replicas)
      return [from_links(num_replicas, index, partner, ones)]

    return matrices

  def behind(self, color: int, num_replicas: int) -> np.ndarray:
    """Return bool[N, N], whether i's way to j begins on the link of a color."""
    distances = self.distances(num_replicas)
    return distances[self.partners(num_replicas)[color]] < distances

  def distances(self, num_replicas: int) -> np.ndarray:
    """Return int32[N, N], the number of links between two replicas."""
    found = np.zeros((num_replicas, num_replicas), np.int32)
    for child, parent in enumerate(self.parents(num_replicas), start=1):
      found[child, :child] = found[:child, child] = found[parent, :child] + 1
    return found


def _tree(parents: Sequence[int] | None) -> _Tree:
  if parents is None:
    return _Tree(3, lambda n: [(i - 1) // 2 for i in range(1, n)])
  given = [check_step('parents', p) for p in check_listed('parents', parents)]
  for child, parent in enumerate(given, start=1):
    if parent >= child:
      raise ValueError(
        f'a parent must have a smaller index than its child, got {parent} for '
        f'replica {child}; number the replicas outwards from replica 0'
      )

  def check(num_replicas: int) -> Sequence[int]:
    if len(given) != num_replicas - 1:
      raise ValueError(
        'parents must have one number for each replica except the first, '
        f'{num_replicas - 1}, got {len(given)}'
      )
    return given

  degrees = np.bincount([*given, *range(1, len(given) + 1)], minlength=1)
  return _Tree(int(degrees.max()), check)

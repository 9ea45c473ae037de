"""STREAMING: fragments of the model, averaged in turn and applied later."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Schedule,
  over_block,
)
from prsgd_jax.checks import check_number, check_optax, check_positive_int
from prsgd_jax.mixing import mean
from prsgd_jax.payload import mix_inexact, payload_bytes
from prsgd_jax.transforms.common import (
  at_steps,
  cast_like,
  traffic,
  widen,
)


class FragmentState(NamedTuple):
  """Of one fragment, as lists of leaves.

  Attributes:
    anchor: the last agreed parameters.
    opt_state: of the outer optimizer.
    received: the mean of what was sent last.
  """

  anchor: list[Array]
  opt_state: ArrayTree
  received: list[Array]


def streaming_sync(
  outer: optax.GradientTransformation,
  *,
  period: int,
  fragments: int,
  delay: int,
  alpha: float,
) -> ReplicaTransformation:
  """Averages of fragments in turn, which an outer optimizer applies later.

  Fragment p = 1 .. P is sent at the steps t with t = floor(p H / P) mod H. At
  t + tau, with x0 its last agreed parameters,

    x0 <- x0 + outer(x0 - mean_j x_j^t);  x_i <- alpha x_i + (1 - alpha) x0.

  Layers, the entries at the top of the tree of parameters in the tree's order,
  are dealt out to the fragments in turn, like cards.

  Args:
    outer: optax transformation of the pseudo-gradient; of each fragment it has
      a state of its own.
    period: H, steps between two averages of the same fragment.
    fragments: P.
    delay: tau, steps that a mean is on its way, less than H.
    alpha: the part that the local parameters keep.

  Raises:
    ValueError: if an argument is not what it should be; from `init`, if there
      are fewer layers than fragments.
  """
  check_optax('outer', outer)
  period = check_positive_int('period', period)
  fragments = check_positive_int('fragments', fragments)
  if fragments > period:
    raise ValueError(
      f'fragments must be at most period = {period}, got {fragments}'
    )
  is_int = isinstance(delay, int | np.integer) and not isinstance(delay, bool)
  if not is_int or not 0 <= delay < period:
    raise ValueError(
      f'delay must be an integer in [0, period = {period}), got {delay!r}'
    )
  alpha = check_number('alpha', alpha, lambda x: 0 <= x < 1, 'in [0, 1)')
  mixing = mean()
  offsets = [(p + 1) * period // fragments for p in range(fragments)]

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    leaves = jax.tree.leaves(replica.params)

    def start(members: list[int]) -> FragmentState:
      own = [leaves[i] for i in members]
      return FragmentState(own, over_block(outer.init)(own), own)

    return replica, tuple(map(start, _deal(replica.params, fragments)))

  def update(
    replica: Replica, states: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    leaves, treedef = jax.tree.flatten(replica.params)
    groups = _deal(replica.params, fragments)
    after = []
    for offset, members, state in zip(offsets, groups, states, strict=True):
      own = [leaves[i] for i in members]

      def send(received: list[Array], own: list[Array] = own) -> list[Array]:
        del received
        return mix_inexact(lambda tree: mixing.apply(tree, context), own)

      received = at_steps(
        _sent(period, offset), context.step, send, state.received
      )
      own, state = at_steps(
        _sent(period, offset, delay),
        context.step,
        merge,
        (own, state._replace(received=received)),
      )
      for i, leaf in zip(members, own, strict=True):
        leaves[i] = leaf
      after.append(state)
    params = jax.tree.unflatten(treedef, leaves)
    return replica._replace(params=params), tuple(after)

  def merge(
    args: tuple[list[Array], FragmentState],
  ) -> tuple[list[Array], FragmentState]:
    own, (anchor, opt_state, received) = args
    pseudo_gradient = jax.tree.map(jnp.subtract, anchor, received)
    updates, opt_state = over_block(outer.update)(
      pseudo_gradient, opt_state, anchor
    )
    anchor = optax.apply_updates(anchor, updates)
    mixed = jax.tree.map(
      lambda x, x0: alpha * x + (1 - alpha) * x0, widen(own), widen(anchor)
    )
    return cast_like(mixed, own), FragmentState(anchor, opt_state, received)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    leaves = jax.tree.leaves(shapes.params)
    sizes = [
      payload_bytes([leaves[i] for i in members])
      for members in _deal(shapes.params, fragments)
    ]
    return tuple(
      traffic(mixing, size, _sent(period, offset), num_replicas, steps)
      for size, offset in zip(sizes, offsets, strict=True)
    )

  return ReplicaTransformation(update, init, cost)


def _sent(period: int, offset: int, delay: int = 0) -> Schedule:
  """So many steps after each t = offset mod H, not before the first of them."""
  return lambda step: (
    (step >= delay) & ((step + 1 - delay - offset) % period == 0)
  )


def _deal(params: ArrayTree, fragments: int) -> list[list[int]]:
  """The positions of each fragment's leaves among those of the tree."""
  layers: dict = {}
  for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
    layers.setdefault(path[:1], []).append(i)
  if len(layers) < fragments:
    raise ValueError(
      f'fragments must be at most the number of layers, {len(layers)} entries '
      f'at the top of the parameters, got {fragments}'
    )
  groups = list(layers.values())
  return [
    list(itertools.chain(*groups[p::fragments])) for p in range(fragments)
  ]

"""PRESENCE: rounds in which some replicas do not take part.

A register `present` holds one bool for each replica. `sync` reads it, and mixes
only among the replicas that are present; see `among_present`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prsgd_jax.base import Array, Context, Replica, over_block, select
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.names import PRESENT


def presence(replica: Replica) -> Array | None:
  """Return bool[V], the replicas that take part in a round; None for all."""
  if not replica.has(PRESENT):
    return None
  # A view of selected leaves may hold it as a list.
  return jax.tree.leaves(replica.get(PRESENT))[0].astype(bool)


def without_presence(replica: Replica) -> Replica:
  """Return the replica without the register `present`."""
  rest = {n: x for n, x in replica.registers.items() if n != PRESENT}
  return replica._replace(registers=rest)


def masses(present: Array, weight: Array | None) -> Array:
  """Return [V], the weight with which each replica enters a round."""
  kind = jnp.result_type(float) if weight is None else weight.dtype
  return jnp.where(present, jnp.ones((), kind) if weight is None else weight, 0)


def among_present(
  mixing: Mixing,
  mix: Callable[[Any, Any], tuple[list[Array], Any]],
  values: list[Array],
  weight: Array | None,
  present: Array,
  context: Context,
  *,
  divides: bool = True,
) -> tuple[list[Array], Array | None]:
  """Mix values among the replicas that are present.

  A mean is taken over the replicas that are present, with the weights that they
  have:

    x_i <- sum_j W_ij p_j w_j x_j / sum_j W_ij p_j w_j

  An absent replica receives it, too. If no present replica has weight, nothing
  changes. On a graph, the links of an absent replica are down in both
  directions, and the weight of a link that is down is added to the diagonal: in
  row i without a register `weight`, so that rows still sum to 1; in column j
  with it, so that push-sum loses no weight. A symmetric W stays symmetric.

  Args:
    mixing: W.
    mix: `(masses, extras) -> (mixed values, mixed extras)`, which sends the
      values times the masses, and [V] numbers besides.
    values: the values before the round, leaves `[V, ...]`.
    weight: [V], the register `weight`; None without it.
    present: bool[V].
    context: the context of the round.
    divides: whether to divide a mean by the masses received. Default: True;
      False if the codec counts the senders.

  Returns:
    (values, weight) after the round.
  """
  mass = masses(present, weight)
  if mixing.averages:
    here = present.astype(mass.dtype)
    mixed, (total, share) = mix(mass, (mass, here))
    some = total != 0
    safe = jnp.where(some, total, 1)
    if divides:
      mixed = [_over(x, safe) for x in mixed]
    after = total / jnp.where(share != 0, share, 1)
    return select(some, mixed, values), (
      None if weight is None else jnp.where(some, after, weight)
    )
  absent = (~present).astype(mass.dtype)
  if weight is None:
    mixed, kept = mix(mass, absent)
    mixed = [_plus(x, y, kept) for x, y in zip(mixed, values, strict=True)]
    return select(present, mixed, values), None
  kept = _column_sums(mixing, absent, context)
  mixed, total = mix(mass, mass)
  total = total + kept * mass
  mixed = [_plus(x, y, kept * mass) for x, y in zip(mixed, values, strict=True)]
  mixed = [_over(x, total) for x in mixed]
  return select(present, mixed, values), jnp.where(present, total, weight)


def _column_sums(mixing: Mixing, absent: Array, context: Context) -> Array:
  """Return [V], sum_i W_ij a_i, the weight that j would send to absent ones."""
  # The transpose of W, because a mixing is a linear function.
  _, transposed = jax.vjp(lambda x: mixing.apply([x], context)[0], absent)
  return transposed(absent)[0]


def _plus(x: Array, own: Array, kept: Array) -> Array:
  """Return x plus the kept share of the replica's own value."""

  def add(x: Array, own: Array, share: Array) -> Array:
    # Selected, because 0 times NaN is NaN.
    return x + jnp.where(share != 0, share.astype(x.dtype) * own, 0)

  return over_block(add)(x, own, kept)


def _over(x: Array, mass: Array) -> Array:
  return over_block(lambda x, w: x / w.astype(x.dtype))(x, mass)

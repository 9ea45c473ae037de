"""PUSH-SUM: averages by a mixing whose rows need not sum to one."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  chain,
  over_block,
)
from prsgd_jax.matrices import sums_to_one
from prsgd_jax.mixing import Mixing
from prsgd_jax.payload import is_inexact, mix_inexact, payload_bytes, wire_dtype
from prsgd_jax.schedules import always
from prsgd_jax.transforms.common import start_turns, take_turn, traffic


class PushSumState(NamedTuple):
  """w, float[V]; rounds done, where matrices take turns; the stages' state."""

  weight: Array
  turns: ArrayTree = ()
  inner: ArrayTree = ()


def push_sum(
  mixing: Mixing, *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages at z = x / w, applies what they change to x, mixes both.

    z_i' = stages(z_i);  x_i = z_i w_i + (z_i' - z_i)
    x_i <- sum_j W_ij x_j;  w_i <- sum_j W_ij w_j;  z_i = x_i / w_i

  The parameters between steps are z, the de-biased model, which is evaluated;
  x is what they are times w. Where the columns of W sum to one, the sums of x
  and of w over the replicas are kept, so that every z tends to the mean of x
  even though the rows of W do not sum to one. With a doubly stochastic W, w
  stays 1 and this is `chain(*stages, sync(mixing))`.

  Args:
    mixing: W, whose columns sum to one.
    *stages: what a replica does between two messages.

  Raises:
    ValueError: if `mixing` is none; from `init`, if its columns do not sum to
      one, a weight is negative, or it does not fit the number of replicas.
  """
  if not isinstance(mixing, Mixing):
    raise ValueError(f'mixing expects one such as pr.graph(W), got {mixing!r}')
  inner = chain(*stages)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    _check_columns(mixing.matrices(num_replicas))
    block = jax.tree.leaves(replica.params)[0].shape[:1]
    weight = jnp.ones(block, jnp.result_type(float))
    turns = start_turns(mixing, replica, num_replicas)
    replica, state = inner.init(replica, num_replicas)
    return replica, PushSumState(weight, turns, state)

  def update(
    replica: Replica, state: PushSumState, context: Context
  ) -> tuple[Replica, PushSumState]:
    z = replica.params
    replica, inner_state = inner.update(replica, state.inner, context)
    x = jax.tree.map(functools.partial(_push, state.weight), z, replica.params)
    # The stages fold their own index into the key; this is none of theirs.
    key = jax.random.fold_in(context.shared_key, len(stages))
    turn, turns = take_turn(context._replace(shared_key=key), state.turns)
    x, weight = mix_inexact(
      lambda tree: mixing.apply(tree, turn), (x, state.weight)
    )
    pull = functools.partial(_pull, weight)
    replica = replica._replace(params=jax.tree.map(pull, x, replica.params))
    return replica, PushSumState(weight, turns, inner_state)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    weight = jax.ShapeDtypeStruct((), jnp.result_type(float))
    payload = payload_bytes((shapes.params, weight))
    sent = traffic(mixing, payload, always(), num_replicas, steps)
    return (*inner.cost(shapes, num_replicas, steps), sent)

  def output(replica: Replica, state: PushSumState) -> Replica:
    return inner.output(replica, state.inner)

  return ReplicaTransformation(update, init, cost, output)


def _push(weight: Array, z: Array, new: Array) -> Array:
  """x = z w + (z' - z), written so that w = 1 gives z' to the bit."""
  if not is_inexact(z):
    return new
  excess = (weight - 1).astype(wire_dtype(z))
  scaled = over_block(jnp.multiply)(excess, z.astype(wire_dtype(z)))
  return new.astype(wire_dtype(z)) + scaled


def _pull(weight: Array, x: Array, like: Array) -> Array:
  """z = x / w, in the parameters' own precision."""
  if not is_inexact(x):
    return x
  return over_block(jnp.divide)(x, weight.astype(x.dtype)).astype(like.dtype)


def _check_columns(matrices: np.ndarray) -> None:
  if not sums_to_one(matrices, -2):
    sums = matrices.sum(axis=-2)
    _, column = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
    worst = sums.flat[np.abs(sums - 1).argmax()]
    raise ValueError(
      'push-sum needs a mixing with columns that sum to 1, got '
      f'{worst:.6g} in column {column}; divide each column by its sum'
    )
  if (matrices < 0).any() or (matrices.sum(axis=-1) == 0).any():
    raise ValueError(
      'push-sum needs weights >= 0 and one > 0 in each row, got a smallest of '
      f'{matrices.min():.6g} and a row that sums to '
      f'{matrices.sum(axis=-1).min():.6g}; keep some weight on the diagonal'
    )

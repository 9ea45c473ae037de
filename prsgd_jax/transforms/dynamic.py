"""Communication that the data decide."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Decided,
  Replica,
  ReplicaTransformation,
  Schedule,
  over_block,
)
from prsgd_jax.mixing import mean
from prsgd_jax.payload import is_inexact, payload_bytes, wire_dtype
from prsgd_jax.transforms.common import (
  at_steps,
  check_number,
  check_schedule,
  traffic,
)
from prsgd_jax.transforms.sync import SyncState, sync

# What one replica sends at a check: whether it is far away, in float32.
FLAG_BYTES = 4


class DriftState(NamedTuple):
  """The last average of the parameters, r, and the averages done."""

  reference: ArrayTree
  decided: Decided


def sync_on_drift(
  *, threshold: float, when: Schedule, what: Sequence[str] = ('params',)
) -> ReplicaTransformation:
  """Averages all replicas if one is far from the last average.

  At the steps of the schedule each replica looks by itself whether
  |x_i - r|^2 > Delta. If any does, x_i <- mean_j x_j for all, and r is that
  mean; at first r is where the replica starts. A check sends one flag, which is
  reduced over all replicas before anything is decided.

  Args:
    threshold: Delta, of the squared distance over all parameters.
    when: the steps of the checks.
    what: the fields that an average covers, params among them.

  Raises:
    ValueError: if `threshold` is not a finite number >= 0, `when` no schedule,
      or `what` not some fields of `Replica` with params.
  """
  threshold = check_number(
    'threshold', threshold, lambda d: 0 <= d < math.inf, '>= 0 and finite'
  )
  check_schedule('when', when)
  average = sync(mean(), what=what)
  what = (what,) if isinstance(what, str) else tuple(what)
  if 'params' not in what:
    raise ValueError(f"sync_on_drift needs 'params' in what, got {what}")

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    del num_replicas
    block = jax.tree.leaves(replica.params)[0].shape[:1]
    none_yet = Decided(jnp.zeros(block, jnp.int32))
    return replica, DriftState(replica.params, none_yet)

  def update(
    replica: Replica, state: DriftState, context: Context
  ) -> tuple[Replica, ArrayTree]:
    def mix(args: tuple[dict, DriftState]) -> tuple[dict, DriftState]:
      fields, state = args
      mixed, _ = average.update(Replica(**fields), SyncState(), context)
      fields = {name: getattr(mixed, name) for name in what}
      decided = Decided(state.decided.rounds + 1)
      return fields, DriftState(mixed.params, decided)

    def check(args: tuple[dict, DriftState]) -> tuple[dict, DriftState]:
      fields, state = args
      moved = over_block(_squared_distance)(fields['params'], state.reference)
      flags = (moved > threshold).astype(jnp.float32)
      anyone = collectives.replica_mean(flags)[0] > 0
      return lax.cond(anyone, mix, lambda args: args, args)

    fields = {name: getattr(replica, name) for name in what}
    fields, state = at_steps(when, context.step, check, (fields, state))
    return replica._replace(**fields), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = payload_bytes([getattr(shapes, name) for name in what])
    flag, full = (
      traffic(mean(), size, when, num_replicas, steps)
      for size in (FLAG_BYTES, payload)
    )
    return flag, full._replace(fires=None)

  return ReplicaTransformation(update, init, cost)


def _squared_distance(x: ArrayTree, y: ArrayTree) -> Array:
  """|x - y|^2 of one replica's floating leaves, in float32 or wider."""

  def of_leaf(x: Array, y: Array) -> Array:
    wide = wire_dtype(x)
    return jnp.square(jnp.abs(x.astype(wide) - y.astype(wide))).sum()

  pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  parts = [of_leaf(x, y) for x, y in pairs if is_inexact(x)]
  return sum(parts, jnp.zeros((), jnp.float32))

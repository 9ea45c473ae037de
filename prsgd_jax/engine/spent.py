"""SPENT: the cost of the steps that a state has done."""

from collections.abc import Callable
from typing import Any

import jax

from prsgd_jax import ledger
from prsgd_jax.base import ReplicaTransformation
from prsgd_jax.engine.train_state import TrainState, replica_shapes

# The newest positions that are remembered.
POSITIONS = 8


def make_spent(
  algorithm: ReplicaTransformation, num_replicas: int
) -> Callable[[TrainState, int, ledger.Network], ledger.Spent]:
  """Return a function that counts the cost of a state.

  It continues from the latest position that it remembers, because a loop that
  counts from step 0 at every call takes a time quadratic in its length.

  Args:
    algorithm: the algorithm.
    num_replicas: N, >= 1.

  Returns:
    `(state, step, network) -> Spent` of a state after `step` steps.
  """
  known: list[tuple[Any, ledger.Position]] = []

  def spent(
    state: TrainState, step: int, network: ledger.Network
  ) -> ledger.Spent:
    shapes = replica_shapes(state)
    meter = ledger.meter(algorithm, shapes, num_replicas, step, network)
    # Copied, because a caller may change its dict of links later.
    machines = network._replace(
      links=dict(network.links), speeds=tuple(network.speeds)
    )
    key = (jax.tree.flatten(shapes), machines)
    usable = [p for k, p in known if p.step <= step and k == key]
    before = max(usable, key=lambda p: p.step, default=meter.init())
    position = meter.advance(before, step)
    if position is not before:
      known.append((key, position))
      del known[:-POSITIONS]
    return meter.spent(position, state.algorithm_state)

  return spent

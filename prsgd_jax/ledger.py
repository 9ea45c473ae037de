"""Rounds and bytes of an algorithm, from the objects that run.

Replicas are counted as machines, however many share a device. A ring all-reduce
of P bytes over n replicas sends 2 (n - 1) / n P per replica in 2 (n - 1)
latencies; gathering sends (n - 1) P; a neighbour costs P. Bytes are those of
the floating leaves as they are sent, at least four for each number.
"""

from typing import NamedTuple

import numpy as np

from prsgd_jax.base import Replica, ReplicaTransformation, Traffic


class Account(NamedTuple):
  """What one replica has sent after t steps, t = 0 .. num_steps.

  Attributes:
    rounds: int64[num_steps + 1], communications.
    bytes_sent: float64[num_steps + 1].
    bytes_by_tier: tier -> float64[num_steps + 1]; they add up to `bytes_sent`.
  """

  rounds: np.ndarray
  bytes_sent: np.ndarray
  bytes_by_tier: dict[str, np.ndarray]


def account(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
) -> Account:
  """Adds up what the stages of an algorithm send.

  Args:
    algorithm: the chain that runs.
    shapes: one replica's shapes (`train_state.replica_shapes`).
    num_replicas: N.
    num_steps: T, the length of the run.

  Returns:
    Running totals, whose entry t is what was sent in the first t steps.
  """
  rounds = np.zeros(num_steps + 1, np.int64)
  by_tier: dict[str, np.ndarray] = {}
  for sent in algorithm.cost(shapes, num_replicas, np.arange(num_steps)):
    if not isinstance(sent, Traffic) or not sent.bytes_sent:
      continue  # work, or a group of one
    if sent.fires is None:
      continue  # counted where it happens
    done = np.concatenate([[0], np.cumsum(sent.fires)])
    rounds += done
    spent = by_tier.setdefault(sent.tier, np.zeros(num_steps + 1))
    spent += done * sent.bytes_sent
  total = sum(by_tier.values(), np.zeros(num_steps + 1))
  return Account(rounds, total, by_tier)

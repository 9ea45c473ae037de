"""The modeled time of a run: a clock for each replica.

A replica's gradients move its clock on, and a communication lasts from when the
last of those whose message a replica waits for has begun it. A mean waits for
the slowest replica, gossip for the neighbors. Nothing overlaps: in order A an
implementation may send while it computes, which is not counted in its favor.
"""

from collections.abc import Callable, Iterator
import copy
from typing import NamedTuple

import numpy as np

from prsgd_jax.base import Cost, Traffic, Work
from prsgd_jax.ledger.network import Network


class Clock(NamedTuple):
  """The times of the replicas after some steps.

  Attributes:
    times: float64[N], when each replica is done with them.
    apart: whether replicas were ever out of step with one another. Until then
      nobody waits, and the links of random graphs need not be drawn.
    jitter, draw: the generators of slow steps and of random graphs. Two of
      them: all algorithms meet the same slow steps.
  """

  times: np.ndarray
  apart: bool
  jitter: np.random.Generator
  draw: np.random.Generator


class Block(NamedTuple):
  """What is done in a few consecutive steps.

  Attributes:
    size: b, the number of steps.
    costs: in the order in which they are done, those of the first block: their
      arrays are not read.
    active: for each `Work` bool[b, N].
    counts: for each cost how many replicas take a gradient at each step, or
      whether it fires; [b], zeros where the data decide.
    turns: for each cost what the counts of all steps before add up to.
  """

  size: int
  costs: tuple[Cost, ...]
  active: list[np.ndarray]
  counts: list[np.ndarray]
  turns: tuple[int, ...]


def start(network: Network, num_replicas: int) -> Clock:
  """Returns the clock before the first step."""
  return Clock(
    np.zeros(num_replicas),
    False,
    np.random.default_rng([network.seed, 0]),
    np.random.default_rng([network.seed, 1]),
  )


def advance(
  clock: Clock,
  block: Block,
  network: Network,
  earlier: Callable[[], Iterator[Block]],
) -> tuple[Clock, np.ndarray]:
  """Moves the clock over a block of steps.

  Args:
    clock: before the block; it stays as it is.
    block: of b steps.
    network: the machines.
    earlier: iterates over all blocks before this one.

  Returns:
    The clock after the block, and float64[b], the time of the last replica
    after each step. Both are bitwise the same however the steps are cut into
    blocks.
  """
  if not clock.apart and _in_step(block, network, len(clock.times)):
    return _together(clock, block, network)
  # Generators change as they draw; those of the clock given stay as they are.
  jitter, draw = copy.deepcopy((clock.jitter, clock.draw))
  if not clock.apart:
    for before in earlier():
      _draw_links(before, draw)
  clock = Clock(clock.times, True, jitter, draw)
  return _apart(clock, block, network)


def _in_step(block: Block, network: Network, num_replicas: int) -> bool:
  """Whether all replicas have the same time at every step of the block."""
  if not block.active:
    return True
  return (
    not network.jitter
    and len(set(network.speeds)) < 2
    and all(
      np.isin(count, (0, num_replicas)).all()
      for cost, count in zip(block.costs, block.counts, strict=True)
      if isinstance(cost, Work)
    )
  )


def _together(
  clock: Clock, block: Block, network: Network
) -> tuple[Clock, np.ndarray]:
  num_replicas = len(clock.times)
  pace = network.pace(num_replicas)[0]
  lasts = np.zeros((block.size, 1 + len(block.costs)))
  for i, (cost, count) in enumerate(
    zip(block.costs, block.counts, strict=True)
  ):
    once = pace if isinstance(cost, Work) else network.seconds(cost)
    lasts[:, i] = np.where(count, once, 0.0)
  # From the time before, in the order in which a loop over the steps adds.
  whole = np.concatenate([clock.times[:1], lasts.ravel()])
  ends = np.cumsum(whole)[1:].reshape(lasts.shape)[:, -1]
  return clock._replace(times=np.full(num_replicas, ends[-1])), ends


def _apart(
  clock: Clock, block: Block, network: Network
) -> tuple[Clock, np.ndarray]:
  """As `_together`, of replicas that wait for one another."""
  num_work = len(block.active)
  lasts = _lasts(block.active, network, clock.jitter)
  ends = np.empty(block.size)
  times, done, turns = clock.times, 0, list(block.turns)
  before = np.cumsum([isinstance(cost, Work) for cost in block.costs]).tolist()
  seconds = [
    0.0 if isinstance(cost, Work) else network.seconds(cost)
    for cost in block.costs
  ]

  def work(until: int) -> None:
    """Does the gradients up to that row, of `num_work` rows a step."""
    nonlocal times, done
    if until == done:
      return
    rows = lasts[done:until]
    rows[0] += times
    np.cumsum(rows, axis=0, out=rows)
    times = rows[-1]
    first, stop = done // num_work, until // num_work
    own = rows[(first + 1) * num_work - 1 - done :: num_work]
    ends[first:stop] = own[: stop - first].max(axis=1)
    done = until

  for t, i, cost in _rounds(block):
    work(t * num_work + before[i])
    times = _wait(times, cost, turns[i], clock.draw) + seconds[i]
    turns[i] += 1
    ends[t] = times.max()
  work(block.size * num_work)
  return clock._replace(times=times.copy()), ends


def _rounds(block: Block) -> Iterator[tuple[int, int, Traffic]]:
  """(step of the block, number of the cost, cost) of rounds in their order."""
  fires = np.zeros((block.size, len(block.costs)), bool)
  traffic = {}
  for i, cost in enumerate(block.costs):
    if isinstance(cost, Traffic):
      fires[:, i], traffic[i] = block.counts[i], cost
  for t, i in zip(*map(np.ndarray.tolist, np.nonzero(fires)), strict=True):
    yield t, i, traffic[i]


def _draw_links(block: Block, draw: np.random.Generator) -> None:
  """Draws what the rounds of a block draw where somebody waits."""
  turns = list(block.turns)
  for _, i, cost in _rounds(block):
    if callable(cost.waits):
      cost.waits(turns[i], draw)
    turns[i] += 1


def _lasts(
  active: list[np.ndarray], network: Network, jitter: np.random.Generator
) -> np.ndarray:
  """float64[b * W, N], how long each of W gradients a step takes a replica."""
  num_steps, num_replicas = active[0].shape
  shape = (num_steps, len(active), num_replicas)
  lasts = np.broadcast_to(network.pace(num_replicas), shape)
  if network.jitter:
    noise = network.jitter * jitter.normal(size=shape)
    lasts = lasts * np.exp(noise - network.jitter**2 / 2)
  lasts = np.where(np.stack(active, axis=1), lasts, 0.0)
  return lasts.reshape((-1, num_replicas))


def _wait(
  times: np.ndarray, sent: Traffic, turn: int, draw: np.random.Generator
) -> np.ndarray:
  """When each replica and all that it waits for have come so far."""
  if sent.waits == 1:
    return times
  if isinstance(sent.waits, int):
    slowest = times.reshape(-1, sent.waits).max(axis=1)
    return np.repeat(slowest, sent.waits)
  senders = sent.waits(turn, draw)
  if isinstance(senders, tuple):
    origin, begins = senders
    return np.maximum.reduceat(times[origin], begins)
  return times[senders].max(axis=0)

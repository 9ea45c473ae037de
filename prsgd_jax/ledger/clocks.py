"""The modeled time of a run: one clock per replica.

Gradients advance the clock of a replica. A communication starts when the last
replica that it waits for arrives: a mean waits for the slowest replica, gossip
for the neighbors. Computation and communication do not overlap, although an
implementation of order A could send while it computes.
"""

from collections.abc import Callable, Iterator
import copy
from typing import NamedTuple

import numpy as np

from prsgd_jax.base import Cost, Traffic, Work
from prsgd_jax.ledger.network import Network


class Clock(NamedTuple):
  """Times of the replicas after some steps.

  Attributes:
    times: float64[N], seconds at which each replica has finished.
    apart: whether the times ever differed. Until then no replica waits, so the
      links of random graphs need not be drawn.
    jitter: the generator of slow steps. It is separate from `draw`, so that all
      algorithms have equal slow steps.
    draw: the generator of random graphs.
  """

  times: np.ndarray
  apart: bool
  jitter: np.random.Generator
  draw: np.random.Generator


class Block(NamedTuple):
  """Costs of a few consecutive steps.

  Attributes:
    size: b, the number of steps.
    costs: the costs of the first block, in the order of execution. Their arrays
      are not read.
    active: float[b, N] for each `Work`, the time of a gradient of each replica
      in units of its usual time, 0 without a gradient; bool if all are 0 or 1.
    present: for each cost, bool[b, N], the replicas that take part in a round;
      None if all do.
    counts: [b] for each cost: the number of gradients at each step, or whether
      the cost fires; zeros for data-dependent communication.
    lost: [b] for each cost: the number of lost gradients at each step, or of
      replicas absent from a round.
    turns: for each cost, the sum of its counts over all earlier steps.
  """

  size: int
  costs: tuple[Cost, ...]
  active: list[np.ndarray]
  present: list[np.ndarray | None]
  counts: list[np.ndarray]
  lost: list[np.ndarray]
  turns: tuple[int, ...]


def start(network: Network, num_replicas: int) -> Clock:
  """Return the clock before the first step."""
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
  """Move the clock over a block of steps.

  Args:
    clock: the clock before the block, which is not modified.
    block: b steps.
    network: the machines and links.
    earlier: returns an iterator over all earlier blocks.

  Returns:
    The clock after the block, and float64[b], the time of the last replica
    after each step. Neither depends on how the steps are cut into blocks, bit
    for bit.
  """
  if not clock.apart and _in_step(block, network, len(clock.times)):
    return _together(clock, block, network)
  # Copied, because generators change when they draw.
  jitter, draw = copy.deepcopy((clock.jitter, clock.draw))
  if not clock.apart:
    for before in earlier():
      _draw_links(before, draw)
  clock = Clock(clock.times, True, jitter, draw)
  return _apart(clock, block, network)


def _in_step(block: Block, network: Network, num_replicas: int) -> bool:
  """Return whether all replicas have equal times throughout the block."""
  if not block.active:
    return True
  return (
    not network.jitter
    and not any(x.dtype != bool for x in block.active)
    and not any(x is not None and not x.all() for x in block.present)
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
  # Add in the order of a loop over the steps, because sums must be bit-equal.
  whole = np.concatenate([clock.times[:1], lasts.ravel()])
  ends = np.cumsum(whole)[1:].reshape(lasts.shape)[:, -1]
  return clock._replace(times=np.full(num_replicas, ends[-1])), ends


def _apart(
  clock: Clock, block: Block, network: Network
) -> tuple[Clock, np.ndarray]:
  """Advance replicas that wait for each other; see `_together`."""
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
    """Do the gradients up to a row; a step has `num_work` rows."""
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
    here = block.present[i]
    who = None if here is None or here[t].all() else here[t]
    times = _wait(times, cost, turns[i], clock.draw, who) + seconds[i]
    turns[i] += 1
    ends[t] = times.max()
  work(block.size * num_work)
  return clock._replace(times=times.copy()), ends


def _rounds(block: Block) -> Iterator[tuple[int, int, Traffic]]:
  """Yield (step in the block, index of the cost, cost) of the rounds."""
  fires = np.zeros((block.size, len(block.costs)), bool)
  traffic = {}
  for i, cost in enumerate(block.costs):
    if isinstance(cost, Traffic):
      fires[:, i], traffic[i] = block.counts[i], cost
  for t, i in zip(*map(np.ndarray.tolist, np.nonzero(fires)), strict=True):
    yield t, i, traffic[i]


def _draw_links(block: Block, draw: np.random.Generator) -> None:
  """Draw the links of a block, to keep the generator in its sequence."""
  turns = list(block.turns)
  for _, i, cost in _rounds(block):
    if callable(cost.waits):
      cost.waits(turns[i], draw)
    turns[i] += 1


def _lasts(
  active: list[np.ndarray], network: Network, jitter: np.random.Generator
) -> np.ndarray:
  """Return float64[b * W, N], seconds of each of the W gradients per step."""
  num_steps, num_replicas = active[0].shape
  shape = (num_steps, len(active), num_replicas)
  lasts = np.broadcast_to(network.pace(num_replicas), shape)
  if network.jitter:
    noise = network.jitter * jitter.normal(size=shape)
    lasts = lasts * np.exp(noise - network.jitter**2 / 2)
  units = np.stack(active, axis=1)
  lasts = np.where(units, lasts * units, 0.0)
  return lasts.reshape((-1, num_replicas))


def _wait(
  times: np.ndarray,
  sent: Traffic,
  turn: int,
  draw: np.random.Generator,
  present: np.ndarray | None = None,
) -> np.ndarray:
  """Return when each replica and all its senders have arrived.

  Only replicas in bool[N] `present` are waited for. A late one leaves its work
  as soon as the others have arrived. Default: all replicas.
  """
  if sent.waits == 1:
    return times
  if present is not None:
    arrivals = np.where(present, times, -np.inf)
    reached = _wait(arrivals, sent, turn, draw)
    # Only a mean sends its result to late replicas.
    ends = isinstance(sent.waits, int) & np.isfinite(reached)
    late = np.where(ends, np.minimum(times, reached), times)
    return np.where(present, reached, late)
  if isinstance(sent.waits, int):
    slowest = times.reshape(-1, sent.waits).max(axis=1)
    return np.repeat(slowest, sent.waits)
  senders = sent.waits(turn, draw)
  if isinstance(senders, tuple):
    origin, begins = senders
    return np.maximum.reduceat(times[origin], begins)
  return times[senders].max(axis=0)

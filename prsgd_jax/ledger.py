"""Rounds, bytes and modelled time of an algorithm, from the objects that run.

Replicas are counted as machines, however many share a device. A ring all-reduce
of P bytes over n replicas sends 2 (n - 1) / n P per replica in 2 (n - 1)
latencies; gathering sends (n - 1) P; a neighbour costs P. Bytes are those of
the floating leaves as they are sent, at least four for each number, or those of
the codes.

Time is that of a model, not measured: every replica has a clock, which its
gradients move on, and a communication lasts from when the last of those whose
message a replica waits for has begun it. A mean waits for the slowest replica,
gossip for the neighbours. Nothing overlaps: in order A an implementation may
send while it computes, which is not counted in its favour.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.base import (
  ArrayTree,
  Cost,
  Decided,
  Replica,
  ReplicaTransformation,
  Traffic,
  Work,
)

TIERS = ('global', 'group', 'neighbour')
# The ledger holds so many numbers at once, one for each replica and step: of
# the costs, and of the times, which stay in a processor's cache.
HELD = 2**24
TIMED = 2**17


class Link(NamedTuple):
  """The links of a tier: seconds for a message, and bytes per second."""

  latency: float
  bandwidth: float


# Machines on 10 Gb/s Ethernet, each group inside one machine: round numbers.
ETHERNET = Link(latency=50e-6, bandwidth=1.25e9)
INSIDE = Link(latency=5e-6, bandwidth=50e9)


class Network(NamedTuple):
  """The machines and links on which the time of a run is modelled.

  Attributes:
    links: tier -> Link, for 'global', 'group' and 'neighbour'.
    step_time: seconds of one gradient and update at speed 1.
    speeds: one for each replica; all 1 if empty.
    jitter: standard deviation of the logarithm of a step's time; the mean time
      stays as it is.
    seed: of the jitter and of graphs that are drawn by chance.
  """

  links: Mapping[str, Link] = {
    'global': ETHERNET,
    'group': INSIDE,
    'neighbour': ETHERNET,
  }
  step_time: float = 10e-3
  speeds: tuple[float, ...] = ()
  jitter: float = 0.0
  seed: int = 0

  def check(self, num_replicas: int) -> None:
    """Raises ValueError unless it is a network of that many replicas."""
    if set(self.links) != set(TIERS):
      raise ValueError(
        f'links must have the tiers {TIERS}, got {tuple(self.links)}'
      )
    if not all(k.latency >= 0 and k.bandwidth > 0 for k in self.links.values()):
      raise ValueError(
        'a link must have latency >= 0 and bandwidth > 0, got '
        f'{dict(self.links)}'
      )
    if not (self.step_time >= 0 and self.jitter >= 0):
      raise ValueError(
        'step_time and jitter must be >= 0, got '
        f'{self.step_time} and {self.jitter}'
      )
    if (
      len(self.speeds) not in (0, num_replicas)
      or min(self.speeds, default=1) <= 0
    ):
      raise ValueError(
        f'speeds must be one number > 0 for each of the {num_replicas} '
        f'replicas, got {self.speeds}'
      )

  def seconds(self, sent: Traffic) -> float:
    """How long one round takes once all have begun it."""
    link = self.links[sent.tier]
    return sent.latencies * link.latency + sent.bytes_sent / link.bandwidth


NETWORK = Network()


class Account(NamedTuple):
  """What one replica has spent after t steps, t = 0 .. num_steps.

  What the data decide is not in the totals: `with_decided` adds it.

  Attributes:
    gradients: int64[num_steps + 1], those of all replicas together.
    rounds: int64[num_steps + 1], communications.
    bytes_sent: float64[num_steps + 1].
    bytes_by_tier: tier -> float64[num_steps + 1]; they add up to `bytes_sent`.
    seconds: float64[num_steps + 1], modelled: when the last replica is done.
    decided: what a round costs that the data decide, (tier, bytes, seconds)
      for each stage that has such, in the order of the chain.
  """

  gradients: np.ndarray
  rounds: np.ndarray
  bytes_sent: np.ndarray
  bytes_by_tier: dict[str, np.ndarray]
  seconds: np.ndarray
  decided: tuple[tuple[str, float, float], ...]


class Spent(NamedTuple):
  """What one replica has spent so far."""

  rounds: int
  bytes_sent: float
  bytes_by_tier: dict[str, float]
  seconds: float


def account(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
  network: Network = NETWORK,
) -> Account:
  """Adds up what the stages of an algorithm spend.

  Args:
    algorithm: the chain that runs.
    shapes: one replica's shapes (`train_state.replica_shapes`).
    num_replicas: N.
    num_steps: T, the length of the run.
    network: for the modelled time.

  Returns:
    Running totals, whose entry t is what was spent in the first t steps.

  Raises:
    ValueError: if the network is not one of so many replicas.
  """
  network.check(num_replicas)
  run = _run(algorithm, shapes, num_replicas, num_steps)
  gradients = np.zeros(num_steps + 1, np.int64)
  rounds = np.zeros(num_steps + 1, np.int64)
  by_tier: dict[str, np.ndarray] = {}
  decided = []
  for sent, count in zip(run.costs, run.counts, strict=True):
    done = np.concatenate([[0], np.cumsum(count)])
    if isinstance(sent, Work):
      gradients += done
    elif sent.fires is None:
      decided.append((sent.tier, sent.bytes_sent, network.seconds(sent)))
    elif sent.bytes_sent:  # not in a group of one
      rounds += done
      spent = by_tier.setdefault(sent.tier, np.zeros(num_steps + 1))
      spent += done * sent.bytes_sent
  total = sum(by_tier.values(), np.zeros(num_steps + 1))
  seconds = (_together if _in_step(run, network) else _apart)(run, network)
  return Account(gradients, rounds, total, by_tier, seconds, tuple(decided))


class _Run(NamedTuple):
  """The costs of a run, asked for in spans of steps.

  Attributes:
    costs: of the first span.
    counts: for each cost how many replicas take a gradient at each step, or
      whether it fires; int[num_steps] or bool[num_steps].
    active: iterates over the activity of each `Work`, bool[b, N], in blocks of
      b steps.
    num_replicas: N.
    num_steps: T.
  """

  costs: tuple[Cost, ...]
  counts: list[np.ndarray]
  active: Callable[[], Iterator[list[np.ndarray]]]
  num_replicas: int
  num_steps: int


def _run(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
) -> _Run:
  longest = max(HELD // num_replicas, 1)
  spans = [
    np.arange(begin, min(begin + longest, num_steps))
    for begin in range(0, max(num_steps, 1), longest)
  ]

  # A run of one span, as most are, need not be asked twice.
  @functools.lru_cache(1)
  def costs_of(span: int) -> tuple[Cost, ...]:
    return algorithm.cost(shapes, num_replicas, spans[span])

  def count(cost: Cost) -> np.ndarray:
    if isinstance(cost, Work):
      return cost.active.sum(axis=1)
    return np.zeros(0, bool) if cost.fires is None else cost.fires

  def active() -> Iterator[list[np.ndarray]]:
    for i, span in enumerate(spans):
      work = [c.active for c in costs_of(i) if isinstance(c, Work)]
      size = max(TIMED // (num_replicas * max(len(work), 1)), 1)
      for begin in range(0, len(span), size):
        yield [each[begin : begin + size] for each in work]

  by_span = [list(map(count, costs_of(i))) for i in range(len(spans))]
  counts = [np.concatenate(parts) for parts in zip(*by_span, strict=True)]
  return _Run(costs_of(0), counts, active, num_replicas, num_steps)


def _in_step(run: _Run, network: Network) -> bool:
  """Whether all replicas always have the same time."""
  work = [
    count
    for cost, count in zip(run.costs, run.counts, strict=True)
    if isinstance(cost, Work)
  ]
  if not work:
    return True
  return (
    not network.jitter
    and len(set(network.speeds)) < 2
    and all(np.isin(count, (0, run.num_replicas)).all() for count in work)
  )


def _together(run: _Run, network: Network) -> np.ndarray:
  """float64[num_steps + 1]: the time of replicas that are in step."""
  pace = _pace(network, run.num_replicas)[0]
  lasts = np.zeros((run.num_steps, 1 + len(run.costs)))
  for i, cost in enumerate(run.costs):
    if isinstance(cost, Work):
      lasts[:, i] = np.where(run.counts[i], pace, 0.0)
    elif cost.fires is not None:
      lasts[:, i] = np.where(run.counts[i], network.seconds(cost), 0.0)
  ends = np.cumsum(lasts).reshape(lasts.shape)[:, -1]
  return np.concatenate([[0.0], ends])


def _apart(run: _Run, network: Network) -> np.ndarray:
  """float64[num_steps + 1]: when the last replica has done so many steps."""
  # Two generators: all algorithms meet the same slow steps.
  jitter = np.random.default_rng([network.seed, 0])
  draw = np.random.default_rng([network.seed, 1])
  clock = np.zeros(run.num_replicas)
  turns = [0] * len(run.costs)
  seconds = np.zeros(run.num_steps + 1)
  step = 0
  for active in run.active():
    lasts = _lasts(active, network, jitter)
    ends = np.empty_like(lasts[0])
    for t in range(len(ends)):
      works = iter(lasts)
      for i, cost in enumerate(run.costs):
        if isinstance(cost, Work):
          clock = clock + next(works)[t]
        elif cost.fires is not None and run.counts[i][step + t]:
          clock = _wait(clock, cost, turns[i], draw) + network.seconds(cost)
          turns[i] += 1
      ends[t] = clock
    seconds[step + 1 : step + 1 + len(ends)] = ends.max(axis=1)
    step += len(ends)
  return seconds


def _lasts(
  active: list[np.ndarray], network: Network, jitter: np.random.Generator
) -> list[np.ndarray]:
  """float64[b, N] for each `Work`, how long it takes every replica."""
  num_steps, num_replicas = active[0].shape
  lasts = _pace(network, num_replicas)
  lasts = np.broadcast_to(lasts, (num_steps, len(active), num_replicas))
  if network.jitter:
    noise = network.jitter * jitter.normal(size=lasts.shape)
    lasts = lasts * np.exp(noise - network.jitter**2 / 2)
  return [np.where(each, lasts[:, i], 0.0) for i, each in enumerate(active)]


def _pace(network: Network, num_replicas: int) -> np.ndarray:
  """float64[N], seconds of a step."""
  return network.step_time / np.array(network.speeds or [1.0] * num_replicas)


def _wait(
  clock: np.ndarray, sent: Traffic, turn: int, draw: np.random.Generator
) -> np.ndarray:
  """When each replica and all that it waits for have come so far."""
  if sent.waits == 1:
    return clock
  if isinstance(sent.waits, int):
    slowest = clock.reshape(-1, sent.waits).max(axis=1)
    return np.repeat(slowest, sent.waits)
  senders = sent.waits(turn, draw)
  if isinstance(senders, tuple):
    origin, begins = senders
    return np.maximum.reduceat(clock[origin], begins)
  return clock[senders].max(axis=0)


def with_decided(
  spent: Account, step: int, algorithm_state: ArrayTree
) -> Spent:
  """What was spent after so many steps, with the rounds that the data decided.

  Args:
    spent: the account of the run.
    step: steps done.
    algorithm_state: of the train state then; the rounds are in it. Their time
      is that of the messages: how long replicas waited for them is not known.
  """
  counts = [
    int(np.ravel(jax.device_get(node.rounds))[0])
    for node in jax.tree.leaves(algorithm_state, is_leaf=_is_decided)
    if _is_decided(node)
  ]
  by_tier = {
    tier: float(sent[step]) for tier, sent in spent.bytes_by_tier.items()
  }
  rounds, seconds = int(spent.rounds[step]), float(spent.seconds[step])
  for count, (tier, size, lasts) in zip(counts, spent.decided, strict=True):
    if not size:
      continue  # of one replica
    rounds += count
    by_tier[tier] = by_tier.get(tier, 0.0) + count * size
    seconds += count * lasts
  return Spent(rounds, sum(by_tier.values()), by_tier, seconds)


def _is_decided(node: Any) -> bool:
  return isinstance(node, Decided)

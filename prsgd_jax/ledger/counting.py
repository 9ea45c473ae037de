"""Rounds, bytes and modeled time of an algorithm, from the stages that run.

Each replica counts as one machine, even if several share a device. A ring
all-reduce of P bytes over n replicas sends 2 (n - 1) / n P per replica in
2 (n - 1) latencies. Gathering sends (n - 1) P, and a message to a neighbor P.
Bytes count the floating leaves as sent, at least four per number, or the codes.

Time is modeled, not measured; see `clocks`. `account` returns the totals after
every step of a run. A `meter` returns them one at a time, in constant memory.
"""

from collections.abc import Callable, Iterable, Iterator
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
  Work,
)
from prsgd_jax.checks import check_step
from prsgd_jax.ledger import clocks
from prsgd_jax.ledger.network import NETWORK, Network
from prsgd_jax.tree_types import describe

# Numbers in memory at once, one per replica and step. HELD is for costs; TIMED
# is for times, and is smaller because they should fit into the cache.
HELD = 2**22
TIMED = 2**17
# Steps in a span of costs. All spans are equally long, because the time to the
# next record and the memory of a run must not grow with its length.
SPAN = 2**12
# Number of steps sampled from a long run to estimate the working share.
SAMPLED = 2**14


class Account(NamedTuple):
  """Cost of one replica after t steps, t = 0 .. num_steps.

  Data-dependent communication is not included; `with_decided` adds it.

  Attributes:
    gradients: int64[num_steps + 1], gradients of all replicas together.
    rounds: int64[num_steps + 1], number of communications.
    bytes_sent: float64[num_steps + 1], bytes that one replica sends.
    bytes_by_tier: tier -> float64[num_steps + 1], which add up to `bytes_sent`.
    seconds: float64[num_steps + 1], modeled time at which the last replica has
      finished.
    decided: (tier, bytes, seconds) of one data-dependent round, for each stage
      that has such rounds, in the order of the chain.
    gradients_lost: int64[num_steps + 1], gradients not taken by replicas that
      have crashed, all together.
    rounds_missed: int64[num_steps + 1], pairs of a replica and a round in which
      it did not take part, because it had crashed or was late.
  """

  gradients: np.ndarray
  rounds: np.ndarray
  bytes_sent: np.ndarray
  bytes_by_tier: dict[str, np.ndarray]
  seconds: np.ndarray
  decided: tuple[tuple[str, float, float], ...]
  gradients_lost: np.ndarray
  rounds_missed: np.ndarray


class Spent(NamedTuple):
  """Cost of one replica so far.

  Attributes:
    gradients: gradients of all replicas together.
    rounds: number of communications.
    bytes_sent: bytes that one replica has sent.
    bytes_by_tier: tier -> bytes, which add up to `bytes_sent`.
    seconds: modeled time at which the last replica has finished.
    gradients_lost: gradients not taken by replicas that have crashed.
    rounds_missed: pairs of a replica and a round in which it did not take part.
      Data-dependent rounds are not included.
  """

  gradients: int
  rounds: int
  bytes_sent: float
  bytes_by_tier: dict[str, float]
  seconds: float
  gradients_lost: int = 0
  rounds_missed: int = 0


class Position(NamedTuple):
  """Position of a meter.

  Attributes:
    step: number of steps done.
    counts: for each cost, the gradients of all replicas, or the rounds.
    clock: the clock of the replicas.
    lost: for each cost, the gradients lost by all replicas, or the replicas
      absent from its rounds.
  """

  step: int
  counts: tuple[int, ...]
  clock: clocks.Clock
  lost: tuple[int, ...]


class Meter(NamedTuple):
  """Running totals of a run, as pure functions of a position.

  Attributes:
    init: `() -> Position`, before the first step.
    advance: `(position, step) -> Position`, after `step` steps. It raises
      ValueError if `step` is before the position or after the end of the run.
    spent: `(position, algorithm_state=()) -> Spent`. With the state of the
      algorithm at this step, data-dependent rounds are included. Their time is
      only the time of the messages, because waiting times are unknown.
    decided: (tier, bytes, seconds) of one data-dependent round, for each stage
      that has such rounds, in the order of the chain.
  """

  init: Callable[[], Position]
  advance: Callable[[Position, int], Position]
  spent: Callable[..., Spent]
  decided: tuple[tuple[str, float, float], ...]


def meter(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
  network: Network = NETWORK,
) -> Meter:
  """Return a meter of the running cost of an algorithm.

  Its memory, and the time to advance it to a step, do not depend on the length
  of the run.

  Args:
    algorithm: the algorithm.
    shapes: one replica's shapes. Only `params` and `model_state` are needed.
    num_replicas: N, >= 1.
    num_steps: T, the length of the run in steps.
    network: the machines and links of the modeled time. Default: `Network()`.

  Raises:
    ValueError: if the network does not fit N replicas.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> run = meter(
    ...     pr.k_avg(optax.sgd(0.1), period=4), shapes, 8, num_steps=10**9)
    >>> run.spent(run.advance(run.init(), 10)).rounds
    2
  """
  run = _run(algorithm, shapes, num_replicas, num_steps, network)
  decided = _decided(run)

  def advance(position: Position, step: int) -> Position:
    if not position.step <= step <= num_steps:
      raise ValueError(
        f'step must be in {position.step} .. {num_steps}, from the steps done '
        f'to the end of the run, got {step}'
      )
    for after, _, _ in _walk(run, position, step):
      position = after
    return position

  def spent(position: Position, algorithm_state: ArrayTree = ()) -> Spent:
    gradients, rounds, by_tier = _totals(run.costs, position.counts)
    known = Spent(
      int(gradients),
      int(rounds),
      float(sum(by_tier.values())),
      {tier: float(sent) for tier, sent in by_tier.items()},
      float(position.clock.times.max()),
      *map(int, _losses(run.costs, position.lost)),
    )
    return _plus_decided(known, decided, algorithm_state)

  return Meter(lambda: _start(run), advance, spent, decided)


def spent_at(meter: Meter, steps: Iterable[int]) -> Iterator[Spent]:
  """Yield the cost after each of the given numbers of steps.

  Args:
    meter: the meter of the run.
    steps: the numbers of steps, ascending.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> run = meter(
    ...     pr.k_avg(optax.sgd(0.1), period=4), shapes, 8, num_steps=20)
    >>> [spent.rounds for spent in spent_at(run, (4, 8, 20))]
    [1, 2, 5]
  """
  position = meter.init()
  for step in steps:
    position = meter.advance(position, step)
    yield meter.spent(position)


def account(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
  network: Network = NETWORK,
) -> Account:
  """Return the cost of an algorithm after every step of a run.

  Args:
    algorithm: the algorithm.
    shapes: one replica's shapes. Only `params` and `model_state` are needed.
    num_replicas: N, >= 1.
    num_steps: T, the length of the run in steps.
    network: the machines and links of the modeled time. Default: `Network()`.

  Returns:
    Running totals; entry t is the cost of the first t steps.

  Raises:
    ValueError: if the network does not fit N replicas.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> algorithm = pr.k_avg(optax.sgd(0.1), period=4)
    >>> pr.ledger.account(algorithm, shapes, 8, num_steps=10).rounds[-1].item()
    2
  """
  run = _run(algorithm, shapes, num_replicas, num_steps, network)
  start = _start(run)
  counts = [[np.zeros(1, np.int64)] for _ in run.costs]
  lost = [[np.zeros(1, np.int64)] for _ in run.costs]
  seconds = [np.zeros(1)]
  for _, block, ends in _walk(run, start, num_steps):
    seconds.append(ends)
    for parts, count in zip(
      [*counts, *lost], [*block.counts, *block.lost], strict=True
    ):
      parts.append(count)
  done, absent = (
    [np.cumsum(np.concatenate(p), dtype=np.int64) for p in parts]
    for parts in (counts, lost)
  )
  gradients, rounds, by_tier = _totals(run.costs, done)
  gradients_lost, rounds_missed = _losses(run.costs, absent)
  zeros = np.zeros(num_steps + 1, np.int64)
  return Account(
    zeros + gradients,
    zeros + rounds,
    sum(by_tier.values(), np.zeros(num_steps + 1)),
    by_tier,
    np.concatenate(seconds),
    _decided(run),
    zeros + gradients_lost,
    zeros + rounds_missed,
  )


def working_share(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
) -> float:
  """Return the average fraction of replicas that take a gradient in a step.

  It is exact for runs of up to 2^14 steps. A longer run is sampled at 2^14
  steps. The standard error is then at most 0.5%, and 0 if all replicas always
  work.

  Args:
    algorithm: the algorithm.
    shapes: one replica's shapes (`train_state.replica_shapes`).
    num_replicas: N, >= 1.
    num_steps: T, the length of the run in steps.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> half = pr.fedavg(optax.sgd(0.1), period=4, participation=0.5)
    >>> round(working_share(half, shapes, 8, num_steps=100), 6)
    0.5
  """
  steps = np.arange(min(num_steps, SAMPLED))
  if num_steps > SAMPLED:
    drawn = np.random.default_rng(0).integers(num_steps, size=SAMPLED)
    steps = np.sort(drawn)
  costs = algorithm.cost(shapes, num_replicas, steps)
  return sum(float(c.active.mean()) for c in costs if isinstance(c, Work))


class _Run(NamedTuple):
  """Costs of a run, computed in spans of steps.

  Attributes:
    costs: the costs of the first span.
    costs_of: `(first, stop) -> costs` of a span.
    num_replicas: N.
    num_steps: T.
    network: the machines and links.
  """

  costs: tuple[Cost, ...]
  costs_of: Callable[[int, int], tuple[Cost, ...]]
  num_replicas: int
  num_steps: int
  network: Network


def _run(
  algorithm: ReplicaTransformation,
  shapes: Replica,
  num_replicas: int,
  num_steps: int,
  network: Network,
) -> _Run:
  if not isinstance(network, Network):
    raise ValueError(
      f'network expects a pr.ledger.Network(...), got {describe(network)}'
    )
  network.check(num_replicas)
  check_step('num_steps', num_steps)
  shapes = _complete(algorithm, shapes, num_replicas)

  # Cached, because a run stays in one span for many steps.
  @functools.lru_cache(1)
  def costs_of(first: int, stop: int) -> tuple[Cost, ...]:
    return algorithm.cost(shapes, num_replicas, np.arange(first, stop))

  span = _span(0, num_replicas, num_steps)
  return _Run(costs_of(*span), costs_of, num_replicas, num_steps, network)


def _complete(
  algorithm: ReplicaTransformation, shapes: Replica, num_replicas: int
) -> Replica:
  """Return the shapes, completed by the gradients and the result of `init`.

  A stage counts no bytes for a register that it does not find.
  """
  if not (shapes.has('opt_state') or shapes.registers):
    block = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
      Replica(params=shapes.params, model_state=shapes.model_state),
    )
    made, _ = jax.eval_shape(lambda x: algorithm.init(x, num_replicas), block)
    opt_state, registers = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      (made.opt_state, dict(made.registers)),
    )
    shapes = shapes._replace(opt_state=opt_state, registers=registers)
  return shapes if shapes.has('grads') else shapes._replace(grads=shapes.params)


def _span(step: int, num_replicas: int, num_steps: int) -> tuple[int, int]:
  """Return (first, stop) of the span that contains a step.

  Spans have SPAN steps, or fewer if HELD numbers are exceeded.
  """
  size = min(SPAN, max(HELD // num_replicas, 1))
  first = step // size * size
  return first, min(first + size, num_steps)


def _start(run: _Run) -> Position:
  clock = clocks.start(run.network, run.num_replicas)
  none = (0,) * len(run.costs)
  return Position(0, none, clock, none)


def _walk(
  run: _Run, position: Position, stop: int
) -> Iterator[tuple[Position, clocks.Block, np.ndarray]]:
  """Yield (position, block, seconds) after each block of steps."""

  def before() -> Iterator[clocks.Block]:
    return _blocks(run, 0, position.step, _start(run).counts)

  clock = position.clock
  for block in _blocks(run, position.step, stop, position.counts):
    clock, ends = clocks.advance(clock, block, run.network, before)
    counts = tuple(map(_sum, block.turns, block.counts))
    lost = tuple(map(_sum, position.lost, block.lost))
    position = Position(position.step + block.size, counts, clock, lost)
    yield position, block, ends


def _sum(before: int, counts: np.ndarray) -> int:
  return before + int(counts.sum(dtype=np.int64))


def _blocks(
  run: _Run, first: int, stop: int, turns: tuple[int, ...]
) -> Iterator[clocks.Block]:
  """Yield the steps from `first` to `stop` in blocks that TIMED allows."""
  work = sum(isinstance(cost, Work) for cost in run.costs)
  size = max(TIMED // (run.num_replicas * max(work, 1)), 1)
  while first < stop:
    begin, end = _span(first, run.num_replicas, run.num_steps)
    costs = run.costs_of(begin, end)
    end = min(end, stop, first + size)
    part = slice(first - begin, end - begin)
    active = [_active(c, part) for c in costs if isinstance(c, Work)]
    present = [_present(cost, part) for cost in costs]
    counts = [_count(cost, part, end - first) for cost in costs]
    lost = [_count_lost(cost, part, end - first) for cost in costs]
    yield clocks.Block(
      end - first, run.costs, active, present, counts, lost, turns
    )
    turns = tuple(map(_sum, turns, counts))
    first = end


def _count(cost: Cost, part: slice, size: int) -> np.ndarray:
  """Return the number of gradients, or of rounds, at each step of a part."""
  if isinstance(cost, Work):
    active = cost.active[part]
    if active.all():  # a shortcut, because this case is common
      return np.full(size, active.shape[1])
    return active.sum(axis=1)
  return np.zeros(size, bool) if cost.fires is None else cost.fires[part]


def _active(work: Work, part: slice) -> np.ndarray:
  """Return the times of gradients in units of the usual time; see `Block`."""
  if work.slowdown is None:
    return work.active[part]
  return work.active[part] * work.slowdown[part]


def _present(cost: Cost, part: slice) -> np.ndarray | None:
  """Return who takes part in the rounds of a part; None for all replicas."""
  if isinstance(cost, Work) or cost.present is None:
    return None
  return cost.present[part]


def _count_lost(cost: Cost, part: slice, size: int) -> np.ndarray:
  """Return how many gradients are lost, or replicas absent, at each step."""
  if isinstance(cost, Work):
    if cost.lost is not None:
      return cost.lost[part].sum(axis=1)
  elif cost.present is not None and cost.fires is not None and cost.bytes_sent:
    return (~cost.present[part]).sum(axis=1) * cost.fires[part]
  return np.zeros(size, np.int64)


def _losses(costs: tuple[Cost, ...], lost: Any) -> tuple[Any, Any]:
  """Return (gradients lost, rounds missed) from the losses by cost."""
  gradients: Any = 0
  rounds: Any = 0
  for cost, count in zip(costs, lost, strict=True):
    if isinstance(cost, Work):
      gradients = gradients + count
    else:
      rounds = rounds + count
  return gradients, rounds


def _totals(
  costs: tuple[Cost, ...], counts: Any
) -> tuple[Any, Any, dict[str, Any]]:
  """Return (gradients, rounds, bytes by tier) from the counts by cost."""
  gradients: Any = 0
  rounds: Any = 0
  by_tier: dict[str, Any] = {}
  for sent, count in zip(costs, counts, strict=True):
    if isinstance(sent, Work):
      gradients = gradients + count
    elif sent.fires is not None and sent.bytes_sent:  # not in a group of one
      rounds = rounds + count
      spent = by_tier.get(sent.tier, 0.0) + count * float(sent.bytes_sent)
      by_tier[sent.tier] = spent
  return gradients, rounds, by_tier


def _decided(run: _Run) -> tuple[tuple[str, float, float], ...]:
  return tuple(
    (cost.tier, cost.bytes_sent, run.network.seconds(cost))
    for cost in run.costs
    if not isinstance(cost, Work) and cost.fires is None
  )


def with_decided(
  spent: Account, step: int, algorithm_state: ArrayTree
) -> Spent:
  """Return the cost after some steps, including data-dependent rounds.

  The time of data-dependent rounds is only the time of their messages, because
  waiting times are unknown.

  Args:
    spent: the account of the run.
    step: the number of steps done.
    algorithm_state: the state of the algorithm after these steps, which counts
      the data-dependent rounds.
  """
  by_tier = {
    tier: float(sent[step]) for tier, sent in spent.bytes_by_tier.items()
  }
  known = Spent(
    int(spent.gradients[step]),
    int(spent.rounds[step]),
    float(spent.bytes_sent[step]),
    by_tier,
    float(spent.seconds[step]),
    int(spent.gradients_lost[step]),
    int(spent.rounds_missed[step]),
  )
  return _plus_decided(known, spent.decided, algorithm_state)


def _plus_decided(
  known: Spent,
  decided: tuple[tuple[str, float, float], ...],
  algorithm_state: ArrayTree,
) -> Spent:
  if isinstance(algorithm_state, tuple) and not algorithm_state:
    return known
  counts = [
    int(np.ravel(jax.device_get(node.rounds))[0])
    for node in jax.tree.leaves(algorithm_state, is_leaf=_is_decided)
    if _is_decided(node)
  ]
  by_tier = dict(known.bytes_by_tier)
  rounds, seconds = known.rounds, known.seconds
  for count, (tier, size, lasts) in zip(counts, decided, strict=True):
    if not size:
      continue  # one replica sends nothing
    rounds += count
    by_tier[tier] = by_tier.get(tier, 0.0) + count * size
    seconds += count * lasts
  return known._replace(
    rounds=rounds,
    bytes_sent=sum(by_tier.values()),
    bytes_by_tier=by_tier,
    seconds=seconds,
  )


def _is_decided(node: Any) -> bool:
  return isinstance(node, Decided)

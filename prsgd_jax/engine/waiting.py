"""WAITING: the time that the devices stood still because batches were missing.

Only time counts in which no dispatch ran: a batch that comes while the devices
work costs nothing.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import time
from typing import Any, NamedTuple

import jax

from prsgd_jax.base import Array
from prsgd_jax.engine import in_flight


class Waiting(NamedTuple):
  """A clock of the time without batches.

  Attributes:
    timed: `batches -> batches`, the iterator with its time measured. The caller
      dispatches one batch before it takes the next.
    seconds: `() -> float`, seconds that the devices waited, in all.
  """

  timed: Callable[[Iterator[Any]], Iterator[Any]]
  seconds: Callable[[], float]


def make_waiting() -> Waiting:
  """Return a clock that starts at zero.

  Example:
    >>> waiting = make_waiting()
    >>> list(waiting.timed(iter('ab')))
    ['a', 'b']
    >>> waiting.seconds() < 1
    True
  """
  total = 0.0
  # When the newest dispatch was done. Known to a thread only, because asking
  # the devices would make the host wait for them.
  watcher = futures.ThreadPoolExecutor(1, 'waiting')
  done: futures.Future[float] | None = None

  def timed(batches: Iterator[Any]) -> Iterator[Any]:
    nonlocal total, done
    while True:
      begun = time.perf_counter()
      try:
        found = next(batches)
      except StopIteration:
        return
      ended = time.perf_counter()
      idle = begun
      if done is not None:
        idle = done.result() if done.done() else ended
      total += max(ended - max(begun, idle), 0.0)
      yield found
      newest = in_flight.newest()
      if newest is not None:
        done = watcher.submit(_when_ready, newest)

  return Waiting(timed, lambda: total)


def _when_ready(token: Array) -> float:
  jax.block_until_ready(token)
  return time.perf_counter()

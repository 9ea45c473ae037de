"""Stop the work of a program after a number of seconds, as a signal would.

The work saves itself and raises `signals.Stopped`, or ends at once if it has
nothing to save. Repeating the command continues it.
"""

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading
import time

from experiments.running.process import signals

# Seconds that must be left to start a piece of work, because it first compiles.
LEAST = 60.0


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[Callable[[], float]]:
  """Stop the work of a block after a number of seconds.

  Args:
    seconds: the budget; None for no limit.

  Yields:
    A function that returns the seconds left, <= 0 once the budget is spent.

  Example:
    >>> with limited(None) as left:
    ...   left()
    inf
  """
  if seconds is None:
    yield lambda: float('inf')
    return
  end = time.monotonic() + seconds
  # SIGUSR1, because it is a warning, which leaves the exit code of a requeue.
  reason = f'{seconds / 60:g} minutes are over'
  timer = threading.Timer(seconds, signals.stop, (signal.SIGUSR1, reason))
  timer.daemon = True
  timer.start()
  try:
    yield lambda: end - time.monotonic()
  finally:
    timer.cancel()

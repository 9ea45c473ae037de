"""End a run in which no step ends for too long.

A collective waits forever for a process that hangs, and no signal interrupts
it. The watchdog is a thread, so it can end the process meanwhile: it prints the
stacks of all Python threads, then one line, and exits with
`exit_codes.STALLED`.
"""

from collections.abc import Callable, Iterator
import contextlib
import faulthandler
import os
import threading
from typing import Protocol

from experiments.running.process import exit_codes, messages

# A compilation, an evaluation and a checkpoint may take this many times as long
# as `stall_seconds`, because they may take longer than a step.
PATIENCE = 10
# Limit in seconds where several processes run. A step of one process waits for
# the other ones, so a stalled run would hold all of their hosts.
DEFAULT_SECONDS = 1800.0


def limit(given: float | None, num_processes: int) -> float:
  """Return the `stall_seconds` of a run.

  Args:
    given: value of --stall_seconds; None if it is not given.
    num_processes: number of processes of the run.

  Raises:
    ValueError: if the value is negative or not finite.

  Example:
    >>> limit(None, 1), limit(None, 2), limit(60.0, 1)
    (0.0, 1800.0, 60.0)
  """
  if given is None:
    return DEFAULT_SECONDS if num_processes > 1 else 0.0
  if not 0 <= given < float('inf'):
    raise ValueError(f'--stall_seconds must be >= 0, got {given}')
  return given


class Announced(Protocol):
  """What a run announces; see `phases.Phases`."""

  name: str
  step: int
  count: int


@contextlib.contextmanager
def watching(
  run: Announced,
  stall_seconds: float,
  *,
  brief: str = 'train',
  elsewhere: Callable[[], str] = lambda: '',
  end: Callable[[int], object] = os._exit,
) -> Iterator[None]:
  """Watch a run until the block ends.

  Args:
    run: announcements of the run. A growing `count` shows that it works.
    stall_seconds: longest time between two announcements in the brief phase; 0
      turns the watchdog off. In other phases it is `PATIENCE` times as long.
    brief: name of the brief phase.
    elsewhere: function that returns where the other processes are, for the
      message. Default: nothing.
    end: function of an exit code that ends the process.
  """
  ended = threading.Event()

  def watch() -> None:
    # Counted in ticks, because a process that was suspended did not stall.
    tick = min(1.0, stall_seconds / 10)
    idle, seen = 0.0, -1
    while not ended.wait(tick):
      idle = idle + tick if run.count == seen else 0.0
      seen = run.count
      factor = 1 if run.name == brief else PATIENCE
      if idle > factor * stall_seconds:
        _report(run, idle, elsewhere())
        end(exit_codes.STALLED)
        return

  thread = threading.Thread(target=watch, name='watchdog', daemon=True)
  if stall_seconds:
    thread.start()
  try:
    yield
  finally:
    ended.set()


def print_stacks() -> None:
  """Print the stacks of all Python threads on stderr."""
  # By the number, because a test or a program may have replaced the stream.
  faulthandler.dump_traceback(2, all_threads=True)


def _report(run: Announced, seconds: float, elsewhere: str) -> None:
  print_stacks()
  messages.end_line(
    f'error: stalled: no progress for {seconds:.0f} s in phase {run.name} '
    f'after step {run.step}{elsewhere}; the stacks are above; resume with '
    '--resume'
  )

"""The phase that a run is in, and the seconds it has spent in each.

The loop announces each phase. The watchdog and the other processes read it, and
`goodput` counts its seconds.
"""

from collections.abc import Callable
import time

START = 'start'  # restore the state, open the files
COMPILE = 'compile'  # compile the steps and run the first ones
TRAIN = 'train'
RECORD = 'record'
EVALUATE = 'evaluate'
SAVE = 'save'
ALL = (START, COMPILE, TRAIN, RECORD, EVALUATE, SAVE)


class Phases:
  """Seconds in each phase; every moment belongs to exactly one phase.

  Attributes:
    name: current phase, one of `ALL`.
    step: number of steps done when the phase began.
    count: number of announcements so far, which grows while the run does.

  Args:
    step: step at which the run starts or resumes.
    clock: function that returns the time in seconds. Default: monotonic time.

  Example:
    >>> phases = Phases(0, clock=iter([0.0, 2.0, 5.0]).__next__)
    >>> phases.enter(TRAIN, 0)
    >>> phases.enter(SAVE, 4)
    >>> phases.seconds()['start'], phases.seconds()['train']
    (2.0, 3.0)
  """

  def __init__(self, step: int, clock: Callable[[], float] = time.monotonic):
    self.name = START
    self.step = step
    self.count = 0
    self._clock = clock
    self._since = clock()
    self._seconds = dict.fromkeys(ALL, 0.0)

  def enter(self, name: str, step: int) -> None:
    """Announce a phase, also if the current one continues.

    Args:
      name: one of `ALL`.
      step: number of steps done.
    """
    now = self._clock()
    self._seconds[self.name] += now - self._since
    self._since = now
    self.name, self.step = name, step
    self.count += 1

  def seconds(self) -> dict[str, float]:
    """Return the seconds in each phase up to the last announcement."""
    return dict(self._seconds)

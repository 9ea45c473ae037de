"""Notice when other programs disturb a measurement that has several rounds.

Linux counts the processor seconds of all programs, of which the seconds of the
measuring processes are subtracted. On other systems, every round counts.
"""

from collections.abc import Sequence
import os
import pathlib

# Share of the processors above which a round counts as disturbed.
DISTURBED = 0.1
# Rounds without a disturbance that suffice.
ENOUGH = 3


def busy_seconds() -> float:
  """Return the processor seconds of all programs, 0 where Linux is not.

  It counts user, nice and system time, but no interrupts, because these include
  the network traffic of a measurement.
  """
  try:
    total = pathlib.Path('/proc/stat').read_text().split('\n', 1)[0].split()
  except OSError:
    return 0.0
  return sum(map(int, total[1:4])) / 100


def process_seconds(pid: int) -> float:
  """Return the processor seconds of a process, 0 if it or Linux is not there.

  Args:
    pid: number of the process.
  """
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return 0.0
  # The name in parentheses may have spaces.
  fields = stat.rpartition(')')[2].split()
  return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')


def share_of_others(busy: float, own: float, lasted: float) -> float:
  """Return the share of the processors that other programs used, >= 0.

  Args:
    busy: processor seconds of all programs.
    own: processor seconds of the measuring processes.
    lasted: seconds of the round.

  Example:
    >>> share_of_others(1.0, 2.0, 1.0)
    0.0
  """
  return max(0.0, (busy - own) / (lasted * (os.cpu_count() or 1)))


def undisturbed(others: Sequence[float]) -> list[int]:
  """Return the rounds in which other programs used few processors.

  With fewer than three of them, all rounds are returned; see `is_disturbed`.

  Args:
    others: share of the processors that other programs used, for each round.

  Example:
    >>> undisturbed([0.0, 0.5, 0.02, 0.05])
    [0, 2, 3]
    >>> undisturbed([0.0, 0.5])
    [0, 1]
  """
  quiet = [i for i, share in enumerate(others) if share <= DISTURBED]
  return quiet if len(quiet) >= ENOUGH else list(range(len(others)))


def is_disturbed(others: Sequence[float]) -> bool:
  """Return whether disturbed rounds had to be kept.

  Args:
    others: share of the processors that other programs used, for each round.

  Example:
    >>> is_disturbed([0.0, 0.5]), is_disturbed([0.0, 0.5, 0.0, 0.0])
    (True, False)
  """
  return any(others[i] > DISTURBED for i in undisturbed(others))

"""Seconds since the process was started, with its imports."""

import os
import pathlib
import time

_IMPORTED = time.monotonic()
_START_TIME = (
  19  # index in /proc/self/stat after the name, which may have spaces
)


def seconds() -> float:
  """Return the seconds since this process was started.

  Where the system does not tell, they count from the import of this module.

  Example:
    >>> seconds() >= 0
    True
  """
  try:
    stat = pathlib.Path('/proc/self/stat').read_text()
    ticks = int(stat.rpartition(')')[2].split()[_START_TIME])
    started = ticks / os.sysconf('SC_CLK_TCK')
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
  except (OSError, ValueError, IndexError, AttributeError):
    return time.monotonic() - _IMPORTED

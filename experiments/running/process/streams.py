"""Standard streams that a program can lose without being ended by it.

A reader such as `head` closes the pipe after some lines, the disk with the log
fills up, a terminal goes away: the work continues, and what can't be shown is
dropped.
"""

import errno
import io
import os
import sys


class _Lossy(io.FileIO):
  """A file that drops what the system no longer takes.

  Attributes:
    lost: the first error, or None.
  """

  lost: OSError | None = None

  def write(self, data) -> int:  # type: ignore[no-untyped-def]
    try:
      written = super().write(data)
    except OSError as error:
      self.lost = self.lost or error
    else:
      if written is not None:
        return written
      busy = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
      self.lost = self.lost or busy
    return len(data)


def open_closed() -> None:
  """Opens streams that were closed before the start on /dev/null.

  Otherwise the next file opened, or a pipe, would get their number, and with it
  what the program and its libraries print.
  """
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def install() -> None:
  """Makes `sys.stdout` and `sys.stderr` drop what can't be written.

  Streams that a test or a notebook has put in their place are left alone.
  """
  open_closed()
  if sys.stdout is sys.__stdout__:
    sys.stdout = _lossy(1, line_buffered=False)
  if sys.stderr is sys.__stderr__:
    sys.stderr = _lossy(2, line_buffered=True)


def _lossy(descriptor: int, *, line_buffered: bool) -> io.TextIOWrapper:
  was = (sys.stdout, sys.stderr)[descriptor - 1]
  if was is not None:
    was.flush()
  raw = _Lossy(descriptor, 'w', closefd=False)
  return io.TextIOWrapper(
    io.BufferedWriter(raw),
    encoding=None if was is None else was.encoding,
    # A label that the terminal's encoding lacks is no reason to end either.
    errors='backslashreplace',
    line_buffering=line_buffered or raw.isatty(),
  )


def lost_output() -> OSError | None:
  """Why standard output is incomplete; None if it isn't.

  A reader that closed the pipe has what it wanted, so that is no reason.
  """
  raw = getattr(getattr(sys.stdout, 'buffer', None), 'raw', None)
  if not isinstance(raw, _Lossy):
    return None
  sys.stdout.flush()
  if raw.lost is None or raw.lost.errno == errno.EPIPE:
    return None
  return raw.lost

"""Let a program continue when its standard streams break.

A reader such as `head` may close the pipe, the disk with the log may fill up,
or the terminal may close. The program then drops its output and continues.
"""

import errno
import io
import os
import sys


class _Lossy(io.FileIO):
  """A file that drops data the system no longer accepts.

  Attributes:
    lost: first error, or None.
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
  """Open /dev/null as each standard stream that is closed.

  Otherwise the next opened file or pipe would get the stream's number and
  receive what the program and its libraries print.
  """
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def install() -> None:
  """Make `sys.stdout` and `sys.stderr` drop output that cannot be written.

  Streams that a test or a notebook replaced are not changed.
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
    # So that a label outside the terminal's encoding does not end the program.
    errors='backslashreplace',
    # launch.py sets the variable, to print the lines when they are written.
    line_buffering=line_buffered
    or raw.isatty()
    or bool(os.environ.get('PYTHONUNBUFFERED')),
  )


def lost_output() -> OSError | None:
  """Return the error that made standard output incomplete, None if none did.

  A closed pipe is not an error, because its reader has what it wanted.
  """
  raw = getattr(getattr(sys.stdout, 'buffer', None), 'raw', None)
  if not isinstance(raw, _Lossy):
    return None
  sys.stdout.flush()
  if raw.lost is None or raw.lost.errno == errno.EPIPE:
    return None
  return raw.lost

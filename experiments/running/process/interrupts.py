"""End a program silently on Ctrl-C during its imports.

Importing JAX takes seconds. An interrupt meanwhile would print a traceback or
get lost in a callback. A program therefore calls `end_silently` before its
other imports; nothing has been written by then. `cli.run` restores Python's
handler.
"""

import os
import signal

from experiments.running.process import exit_codes, streams


def _end(number: int, frame: object) -> None:
  del number, frame
  os._exit(exit_codes.INTERRUPTED)


def end_silently() -> None:
  """Make an interrupt end the process immediately, until `restore`.

  An ignored SIGINT stays ignored, as in the background jobs of a script.
  """
  streams.open_closed()  # before a library opens a file with their number
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def restore() -> None:
  """Make an interrupt raise KeyboardInterrupt again."""
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)

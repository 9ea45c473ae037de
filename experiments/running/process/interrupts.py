"""Ctrl-C while a program still imports: it ends silently, with code 130.

A program calls `end_silently` before its other imports. Importing JAX takes
seconds, and an interrupt in the middle of that is a traceback, or is lost in a
callback. Nothing has been written by then, so that the process may just end.
`cli.run` puts Python's own handling back.
"""

import os
import signal

from experiments.running.process import streams

CODE = 130  # as shells have it: 128 and the number of SIGINT


def _end(number: int, frame: object) -> None:
  del number, frame
  os._exit(CODE)


def end_silently() -> None:
  """Makes an interrupt end the process at once, until `restore`.

  A process in the background of a script ignores interrupts; so it stays.
  """
  streams.open_closed()  # before a library opens a file with their number
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def restore() -> None:
  """Makes an interrupt raise KeyboardInterrupt again."""
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)

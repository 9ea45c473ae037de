"""Signals that end a run: those of schedulers, and Ctrl-C.

A program that was signaled ends with code 75 (EX_TEMPFAIL: requeue it), after
SIGINT with 130. While there is something to save, it saves at the next dispatch
boundary and then ends; `requested` asks for that. Otherwise it ends at once.

SIGTERM, SIGHUP and SIGINT end the process at once when one of them comes a
second time. SIGUSR1, SIGUSR2 and SIGXCPU are warnings that schedulers repeat or
send ahead of SIGTERM: any number of them counts as one.

A thread takes the signals, because Python runs handlers between the bytecodes
of the main thread, which a compilation may hold for minutes.

Only the standard library is imported here and in `streams`, so that a program
calls `watch` before its other imports, which take seconds.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from typing import NoReturn

from experiments.running.process import streams

PREEMPTED = 75
INTERRUPTED = 130

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# `timeout` signals its child and then the child's group; that is one signal.
_SAME_SECONDS = 0.1


class Stopped(BaseException):
  """The work was ended by a signal; the message says what was saved.

  It is no Exception, as KeyboardInterrupt is none: nobody recovers from it.

  Attributes:
    number: of the signal.
  """

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.number = number


class _Watch:
  """What the thread and the program tell each other."""

  def __init__(self) -> None:
    self.number: int | None = None  # of the first signal
    self.ending: tuple[int, float] | None = None  # the first to end, and when
    self.deferred = False
    self.left = 'nothing was begun'
    self.at_once: Callable[[], object] = lambda: None

  def take(self, number: int) -> None:
    """Takes a signal: ends the process, or leaves that to the program."""
    if number in _ENDINGS:
      now = time.monotonic()
      first, when = self.ending or (number, now)
      if first != number or now - when > _SAME_SECONDS:
        self.at_once()
        _end_now(number, 'ended at once by a second signal')
      self.ending = first, when
    if self.number is None:
      self.number = number
      if not self.deferred:
        _end_now(number, f'{name(number)}: {self.left}')


_watch = _Watch()


def watch() -> None:
  """Takes the signals from now on; to be called by a program, once, first."""
  # The pipe must not have the number of stderr: lines would be signals.
  streams.open_closed()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  for number in (*_WARNINGS, *_ENDINGS):
    # What a starter ignores (nohup, a script's background) stays ignored.
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, _leave)
  thread = threading.Thread(target=_read, args=(reader,), daemon=True)
  thread.start()


def _leave(number: int, frame: object) -> None:
  """Does nothing in the main thread: the pipe has it."""
  del number, frame


def _take_no_more() -> None:
  """Ignores the signals from now on.

  Python puts the system's own handling back while it ends, which takes a second
  with JAX: the signal that follows a warning would take the exit code.
  """
  for number in (*_WARNINGS, *_ENDINGS):
    if signal.getsignal(number) is _leave:
      signal.signal(number, signal.SIG_IGN)


def _read(reader: int) -> None:
  while True:
    for number in os.read(reader, 64):
      if number in (*_WARNINGS, *_ENDINGS):
        _watch.take(number)


def requested() -> int | None:
  """Returns the signal by which the work is to end, None if it may continue."""
  return _watch.number


@contextlib.contextmanager
def deferred(at_once: Callable[[], object] = lambda: None) -> Iterator[None]:
  """Leaves the end to the block, which asks `requested` every now and then.

  Args:
    at_once: called before a second signal ends the process.
  """
  before = _watch.deferred, _watch.at_once
  _watch.deferred, _watch.at_once = True, at_once
  try:
    yield
  finally:
    _watch.deferred, _watch.at_once = before


@contextlib.contextmanager
def exit_when_stopped(command: str) -> Iterator[None]:
  """Ends the program with one line and an exit code if a signal stops it.

  Args:
    command: by which the user resumes what the block does.
  """
  before = _watch.left
  _watch.left = f'nothing was lost; resume with: {command}'
  try:
    yield
  except Stopped as stopped:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()  # so that the line is the last one of a log
    _print(f'{name(stopped.number)}: {stopped}; resume with: {command}')
    _take_no_more()
    sys.exit(code(stopped.number))
  finally:
    _watch.left = before


def code(number: int) -> int:
  """Returns the exit code after a signal.

  Example:
    >>> code(signal.SIGTERM), code(signal.SIGINT)
    (75, 130)
  """
  return INTERRUPTED if number == signal.SIGINT else PREEMPTED


def name(number: int) -> str:
  """Returns the name of a signal.

  Example:
    >>> name(15)
    'SIGTERM'
  """
  return signal.Signals(number).name


def again(*arguments: str) -> str:
  """Returns the command that started this program, for a message.

  Args:
    *arguments: in place of those that it had; none for the same.
  """
  had = len(sys.argv) - 1
  start = sys.orig_argv[: len(sys.orig_argv) - had]
  return shlex.join([*start, *(arguments or sys.argv[1:])])


def _end_now(number: int, line: str) -> NoReturn:
  # All files are written so that the process may be killed at any moment.
  _print(line)
  os._exit(code(number))


def _print(line: str) -> None:
  """Prints a line on stderr, past buffers that another thread may hold."""
  program = os.path.basename(sys.argv[0])
  with contextlib.suppress(OSError):
    os.write(2, f'{program}: {line}\n'.encode(errors='replace'))

"""End a run on a signal of a scheduler or on Ctrl-C, after saving it.

The exit code comes from `exit_codes.after_signal`. While a program has
something to save, it saves at the next dispatch boundary, where it polls
`requested`. Otherwise it ends immediately.

A second SIGTERM, SIGHUP or SIGINT ends the process immediately. SIGUSR1,
SIGUSR2 and SIGXCPU are warnings, which schedulers repeat or send before
SIGTERM: any number of them counts as one.

A thread receives the signals. Python runs signal handlers between the bytecodes
of the main thread, which a compilation may block for minutes.

This module and those it imports need only the standard library, so that a
program can call `watch` before its slow imports.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from typing import NoReturn

from experiments.running.process import exit_codes, messages, streams

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Within this time two signals are one, because `timeout` signals its child and
# then the child's group.
_SAME_SECONDS = 0.1
# Environment variable: the command of launch.py, if it started this process.
_LAUNCHED = 'PRSGD_JAX_LAUNCHED'


class Stopped(BaseException):
  """Work ended by a signal; the message states what was saved.

  It is a BaseException, as KeyboardInterrupt is, because no code recovers from
  it.

  Attributes:
    number: number of the signal.
  """

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.number = number


class _Watch:
  """State that the thread and the program share."""

  def __init__(self) -> None:
    self.number: int | None = None  # of the first signal
    self.reason = ''  # in place of its name, if the program stops itself
    self.ending: tuple[int, float] | None = None  # the first to end, and when
    self.deferred = False
    self.left = 'nothing was started'
    self.at_once: Callable[[], object] = lambda: None
    self.before_exit: Callable[[int], object] = lambda code: None

  def take(self, number: int) -> None:
    """Handle a signal: end the process, or defer that to the program."""
    if number in _ENDINGS:
      now = time.monotonic()
      first, when = self.ending or (number, now)
      if first != number or now - when > _SAME_SECONDS:
        self.at_once()
        _end_now(number, 'ended immediately by a second signal')
      self.ending = first, when
    if self.number is None:
      self.number = number
      if not self.deferred:
        _end_now(number, f'{self.reason or name(number)}: {self.left}')


_watch = _Watch()


def watch() -> None:
  """Start to handle signals; a program calls this once, before its imports."""
  # So that the pipe does not get the number of stderr: lines would be signals.
  streams.open_closed()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  for number in (*_WARNINGS, *_ENDINGS):
    # A signal that the parent ignores (nohup, background jobs) stays ignored.
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, _leave)
  thread = threading.Thread(target=_read, args=(reader,), daemon=True)
  thread.start()


def _leave(number: int, frame: object) -> None:
  """Do nothing in the main thread, because the pipe delivers the signal."""
  del number, frame


def _take_no_more() -> None:
  """Ignore further signals.

  Python restores the system's handlers while it ends, which takes a second with
  JAX. Without this, the signal after a warning would change the exit code.
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
  """Return the signal that ends the work, None if the work may continue."""
  return _watch.number


def stop(number: int, reason: str) -> None:
  """End the work as if a signal had come, for example at the end of a budget.

  Args:
    number: number of the signal.
    reason: text that replaces the name of the signal in the last line.
  """
  if _watch.number is None:
    _watch.reason = reason
  _watch.take(number)


@contextlib.contextmanager
def deferred(at_once: Callable[[], object] = lambda: None) -> Iterator[None]:
  """Defer the end to the block, which polls `requested`.

  Args:
    at_once: function called before a second signal ends the process.
  """
  before = _watch.deferred, _watch.at_once
  _watch.deferred, _watch.at_once = True, at_once
  try:
    yield
  finally:
    _watch.deferred, _watch.at_once = before


def before_exit(function: Callable[[int], object]) -> None:
  """Call a function with the exit code before a signal ends the process."""
  _watch.before_exit = function


@contextlib.contextmanager
def exit_when_stopped(command: str) -> Iterator[None]:
  """End the program with one line and an exit code if a signal stops it.

  Args:
    command: command that resumes the work of the block, for the message.
  """
  before = _watch.left
  _watch.left = f'nothing was lost; resume with: {command}'
  try:
    yield
  except Stopped as stopped:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()  # so that the message is the last line of a log
    why = f'{_watch.reason or name(stopped.number)}: {stopped}'
    messages.end_line(f'{why}; resume with: {command}')
    _take_no_more()
    sys.exit(exit_codes.after_signal(stopped.number))
  finally:
    _watch.left = before


def name(number: int) -> str:
  """Return the name of a signal.

  Example:
    >>> name(15)
    'SIGTERM'
  """
  return signal.Signals(number).name


def again(*arguments: str) -> str:
  """Return the command that started this program, for a message.

  Args:
    *arguments: replacement for its arguments; if empty, they are kept.
  """
  if (launched := os.environ.get(_LAUNCHED)) is not None:
    start, had = json.loads(launched)
    return shlex.join([*start, *(arguments or had)])
  count = len(sys.argv) - 1
  start = sys.orig_argv[: len(sys.orig_argv) - count]
  return shlex.join([*start, *(arguments or sys.argv[1:])])


def launched_by(
  command: Sequence[str], program: Sequence[str]
) -> dict[str, str]:
  """Return the environment variable by which `again` repeats a launch.

  Args:
    command: command that launches the program, up to the program.
    program: the program and its arguments.
  """
  size = 2 if program[0] == '-m' else 1
  parts = [[*command, *program[:size]], list(program[size:])]
  return {_LAUNCHED: json.dumps(parts)}


def is_launched() -> bool:
  """Whether launch.py started this process, with its own addresses."""
  return _LAUNCHED in os.environ


def _end_now(number: int, line: str) -> NoReturn:
  # Safe, because every file write tolerates a kill at any moment.
  messages.end_line(line)
  code = exit_codes.after_signal(number)
  _watch.before_exit(code)
  os._exit(code)

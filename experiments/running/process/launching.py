"""Run the processes of one program together, on this machine or by ssh.

The number of the process precedes each line of its output. When one process
fails, the others have some seconds to end by themselves, because they may print
what they noticed and may be saving. After that they are ended.

This module does not import JAX, so that a launch adds no time to the start.
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from typing import IO, NamedTuple

from experiments.running.process import exit_codes, signals

# Short, because a person waits; not 0, because polling costs CPU time.
POLL_SECONDS = 0.05
# Time between SIGTERM and SIGKILL for a process that outlives a failed one.
_LAST_SECONDS = 3.0
# Lines of stderr that are kept to find the error.
_KEPT_LINES = 200
_LONGEST = 500  # characters of the error
# First line of a remote process: the number to which signals are sent.
_MARK = 'prsgd-launch: process '
_BATCH = ('-o', 'BatchMode=yes')  # fail instead of asking for a password


class Member(NamedTuple):
  """One process to start.

  Attributes:
    arguments: the program and its arguments.
    environment: variables to set; the others are kept.
    host: name for ssh; None for this machine.
    directory: working directory on the host; None for this machine.
  """

  arguments: Sequence[str]
  environment: Mapping[str, str] = {}
  host: str | None = None
  directory: str | None = None


class Ended(NamedTuple):
  """How the processes ended.

  Attributes:
    code: exit code of the first process that failed, else of the first process
      that a signal stopped, else 0.
    process: index of that process; 0 if all processes succeeded.
    line: its error in one line; empty if it printed none.
  """

  code: int
  process: int = 0
  line: str = ''


def describe(ended: Ended) -> str:
  """Return how the first failed process ended, as one line.

  Example:
    >>> describe(Ended(137, 1, 'step 4'))
    'process 1 ended with exit code 137 (SIGKILL): step 4'
    >>> describe(Ended(1, 0))
    'process 0 ended with exit code 1'
  """
  by = ''
  with contextlib.suppress(ValueError):  # a code above 128 that is no signal
    by = f' ({signals.name(ended.code - 128)})' if ended.code > 128 else ''
  line = f': {ended.line}' if ended.line else ''
  return f'process {ended.process} ended with exit code {ended.code}{by}{line}'


def run_together(members: Sequence[Member], *, grace_seconds: float) -> Ended:
  """Start the processes, print their output, and wait until all have ended.

  A signal to this process is passed on to each of them. A second one ends them
  and this process immediately.

  Args:
    members: the processes, in the order of their numbers.
    grace_seconds: seconds that the other processes have to end after one of
      them ended before its work was done.
  """
  with contextlib.ExitStack() as stack:
    running: list[_Process] = []

    def kill() -> None:
      for one in running:
        one.kill()

    stack.callback(kill)  # also if one of them cannot be started
    stack.enter_context(signals.deferred(at_once=kill))
    lock, width = threading.Lock(), len(str(len(members) - 1))
    for i, member in enumerate(members):
      running.append(_Process(member, f'[{i:{width}}] ', lock))
    return _wait(running, grace_seconds)


def _wait(running: Sequence['_Process'], grace_seconds: float) -> Ended:
  first: Ended | None = None  # the first process that did not succeed
  passed_on, asked, deadline = False, False, math.inf
  while True:
    number = signals.requested()
    if number is not None and not passed_on:
      passed_on = True
      for one in running:
        one.send(number)
    codes = [one.poll() for one in running]
    for i, code in enumerate(codes):
      if code and (first is None or _outranks(code, first.code)):
        first = Ended(code, i, running[i].error())
        stopped = passed_on and code in _stopped_codes(number)
        # A stopped one does not hurry the others, which may be saving.
        if not stopped and deadline == math.inf:
          deadline = time.monotonic() + grace_seconds
    if None not in codes:
      for one in running:
        one.finish()
      # Read again, because the last lines may come after the exit code.
      if first is None:
        return Ended(0)
      return first._replace(line=running[first.process].error())
    if time.monotonic() > deadline:
      for one in running:  # without effect on those that have ended
        if asked:
          one.kill()
        else:
          one.send(signal.SIGTERM)
      asked, deadline = True, time.monotonic() + _LAST_SECONDS
    time.sleep(POLL_SECONDS)


def _outranks(code: int, before: int) -> bool:
  """Whether a code is a failure and the one before a stop by a signal."""
  stops = (exit_codes.STOPPED, exit_codes.INTERRUPTED)
  return before in stops and code not in stops


def _stopped_codes(number: int | None) -> tuple[int, ...]:
  """Return the exit codes of processes that end by a signal."""
  if number is None:
    return ()
  return exit_codes.after_signal(number), 128 + number


class _Process:
  """A started process, the threads that copy its output, and its last lines.

  Args:
    member: the process to start.
    prefix: text before each line of output.
    lock: held while a line is printed.
  """

  def __init__(self, member: Member, prefix: str, lock: threading.Lock):
    self._member = member
    self._pid: int | None = None  # on the host
    self._kept: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    self._process = subprocess.Popen(
      command(member),
      env={**os.environ, **member.environment},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # Its own group, so that Ctrl-C reaches it once: through this process.
      process_group=0,
    )
    self._threads = [
      threading.Thread(
        target=self._copy, args=(source, name, prefix, lock), daemon=True
      )
      for source, name in (
        (self._process.stdout, 'stdout'),
        (self._process.stderr, 'stderr'),
      )
    ]
    for thread in self._threads:
      thread.start()

  def _copy(
    self, source: IO[bytes], name: str, prefix: str, lock: threading.Lock
  ) -> None:
    with source:
      for data in source:
        line = data.decode(errors='replace').rstrip('\r\n')
        if self._pid is None and line.startswith(_MARK):
          self._pid = int(line.removeprefix(_MARK))
          continue
        if name == 'stderr':
          self._kept.append(line)
        # The stream of now, because a test may have replaced it.
        stream = getattr(sys, name)
        with lock, contextlib.suppress(OSError, ValueError):
          stream.write(f'{prefix}{line}\n')
          stream.flush()

  def poll(self) -> int | None:
    """Return the exit code as a shell reports it; None while it runs."""
    code = self._process.poll()
    return 128 - code if code is not None and code < 0 else code

  def finish(self) -> None:
    """Wait until the output is copied, unless a child still has it open."""
    for thread in self._threads:
      thread.join(timeout=1)

  def error(self) -> str:
    """Return the error in the last lines of stderr."""
    return error_line(list(self._kept))

  def send(self, number: int) -> None:
    """Send a signal to the process, wherever it runs."""
    if self._process.poll() is not None:
      return
    if self._member.host is None or self._pid is None:
      self._process.send_signal(number)
    else:
      _on_host(self._member.host, f'kill -s {_short(number)} {self._pid}')

  def kill(self) -> None:
    """End the process and its children immediately."""
    if self._process.poll() is not None:
      return
    if self._member.host is not None:
      self.send(signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)


def _short(number: int) -> str:
  return signals.name(number).removeprefix('SIG')


def _on_host(host: str, text: str) -> None:
  """Start a command on a host, without waiting for it."""
  with contextlib.suppress(OSError):
    subprocess.Popen(
      ['ssh', *_BATCH, host, text],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )


def command(member: Member) -> list[str]:
  """Return the command that starts a process.

  On a host, the shell prints its process number and becomes the program, so
  that signals can be sent to it.

  Example:
    >>> command(Member(['python', 'train.py']))
    ['python', 'train.py']
  """
  if member.host is None:
    return list(member.arguments)
  settings = [f'{name}={value}' for name, value in member.environment.items()]
  words = ['exec', 'env', *map(shlex.quote, settings)]
  script = (
    f'echo "{_MARK}$$"; cd {shlex.quote(member.directory or ".")} && '
    f'{" ".join(words)} {shlex.join(member.arguments)}'
  )
  return ['ssh', *_BATCH, member.host, f'sh -c {shlex.quote(script)}']


def error_line(lines: Sequence[str]) -> str:
  """Return the line of stderr that names the error; empty if there is none.

  It is the first line with an error of a program of this project, the last
  line of a traceback, the first line of a fatal error of JAX, or the last line.

  Example:
    >>> error_line(['step 4', 'train.py: error: no preset x', 'bye'])
    'train.py: error: no preset x'
    >>> error_line(['Traceback (most recent call last):', '  f()', 'E: bad'])
    'E: bad'
  """
  written = [line for line in lines if line.strip()]
  found = [line for line in written if re.match(r'\S+: (.*: )?error: ', line)]
  if not found and any(line.startswith('Traceback ') for line in written):
    found = _ends_of_tracebacks(written)
  if not found:
    found = [line for line in written if re.match(r'F\d{4} ', line)]
  return (found or written[-1:] or [''])[0][:_LONGEST]


def _ends_of_tracebacks(lines: Sequence[str]) -> list[str]:
  """Return the exceptions: the first line without an indent after each one."""
  ends, inside = [], False
  for line in lines:
    if line.startswith('Traceback '):
      inside = True
    elif inside and not line.startswith(' '):
      ends.append(line)
      inside = False
  # The last, because a chain of exceptions ends with the one that was raised.
  return ends[-1:]

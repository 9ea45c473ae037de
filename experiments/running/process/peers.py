"""Watch the other processes of a run, and stop together with them.

Each process writes a sign of life, with its phase and step, to the store of
JAX's coordination service, and reads the signs of the others. If one is missing
for most of the heartbeat, this process prints which one, and exits with
`exit_codes.LOST`. JAX would abort it a moment later, without the name.

A process that received a signal asks all processes to stop. Each of them calls
`requested` at the same places. So they can agree on a call that no process has
reached yet, without communication between the devices.

With one process, `requested` is that of `signals`, and nothing is watched.
"""

import contextlib
import json
import os
import threading
import time
from typing import NamedTuple

from experiments.running.process import (
  aborts,
  exit_codes,
  messages,
  signals,
  watchdog,
)
from prsgd_jax.engine import processes

# Part of the heartbeat after which a process counts as lost. JAX was seen to
# abort after 0.6 of it, without the name of the process.
_PART = 0.5
# Seconds between two signs of life, and more of them for many processes,
# because all read those of all.
_INTERVAL = 0.25
_INTERVAL_PER_PROCESS = 0.01
# Seconds that a process may take to end by itself after another one ended with
# an error, because it may have the same error.
_GRACE = 8.0
_ROOT = 'prsgd_jax/peers'


class _Sign(NamedTuple):
  """What a process last wrote."""

  beat: int = -1  # number of the sign
  phase: str = 'start'
  step: int = 0
  failed: bool = False  # whether an error ends it


class _Start:
  """What a process announces before its loop; see `phases.Phases`."""

  name = 'start'
  step = 0
  count = 0


class _Crew:
  """State that the threads and the program share.

  Args:
    heartbeat: seconds after which JAX aborts without a sign of life.
  """

  def __init__(self, heartbeat: float):
    self.index, self.size = processes.index(), processes.count()
    self.store = processes.store()
    self.interval = max(_INTERVAL, _INTERVAL_PER_PROCESS * self.size)
    self.limit = _PART * heartbeat
    self.run: watchdog.Announced = _Start()
    self.failed = False
    self.ended = threading.Event()
    self.code = exit_codes.DONE  # of this process, once it has ended
    self.error: Exception | None = None  # of the store
    self.beat = 0
    self.quiet = 0.0  # seconds without an answer of the store
    others = [p for p in range(self.size) if p != self.index]
    self.signs = dict.fromkeys(others, _Sign())
    self.idle = dict.fromkeys(others, 0.0)  # seconds without a new sign
    self.left: dict[int, int] = {}  # process that ended -> exit code
    self.lock = threading.Lock()
    self.calls = 0  # of `requested`
    self.stop: tuple[int, int] | None = None  # the call, and the signal

  def talk(self) -> None:
    """Write and read signs of life until the process ends; for a thread."""
    try:
      while not self.ended.wait(self.interval):
        found = self.exchange()
        if 'stop' in found and self.stop is None:
          self.agree_to_stop(int(found['stop']))
    except Exception as error:  # because the store is gone
      self.error = error

  def exchange(self) -> dict[str, str]:
    """Write one sign of life, and return all that is in the store."""
    number = signals.requested()
    if number is not None and self.stop is None:
      with contextlib.suppress(RuntimeError):  # because another one asked first
        self.store.key_value_set(f'{_ROOT}/stop', str(number))
    self.beat += 1
    sign = _Sign(self.beat, self.run.name, self.run.step, self.failed)
    self.write(f'sign/{self.index}', json.dumps(sign))
    found = {
      key.removeprefix(f'{_ROOT}/'): value
      for key, value in self.store.key_value_dir_get(f'{_ROOT}/')
    }
    for process, before in self.signs.items():
      text = found.get(f'sign/{process}')
      sign = before if text is None else _Sign(*json.loads(text))
      new = sign.beat != before.beat
      self.idle[process] = 0.0 if new else self.idle[process] + self.interval
      self.signs[process] = sign
      if f'left/{process}' in found:
        self.left.setdefault(process, int(found[f'left/{process}']))
    return found

  def agree_to_stop(self, number: int) -> None:
    """Find the call of `requested` at which all processes stop.

    No process passes a call until all have written theirs, so the one after the
    largest is ahead of all.
    """
    with self.lock:
      self.write(f'call/{self.index}', str(self.calls))
      calls: list[int] = []
      while len(calls) < self.size:
        if self.ended.wait(self.interval):
          return
        found = self.exchange()
        names = [f'call/{process}' for process in range(self.size)]
        calls = [int(found[name]) for name in names if name in found]
      self.stop = max(calls) + 1, number

  def write(self, name: str, text: str) -> None:
    self.store.key_value_set(f'{_ROOT}/{name}', text, allow_overwrite=True)

  def judge(self) -> None:
    """End this process if another one is lost or has failed; for a thread.

    It is another thread than `talk`, because the store does not answer when
    process 0, which keeps it, hangs. Time is counted in rounds, because a
    process that was suspended did not wait.
    """
    beat, since_left = -1, 0.0
    while not self.ended.wait(self.interval):
      self.quiet = 0.0 if self.beat != beat else self.quiet + self.interval
      beat = self.beat
      failed = {p: code for p, code in self.left.items() if code}
      since_left = since_left + self.interval if failed else 0.0
      gone = self.error is not None or self.quiet > self.limit
      if failed and (since_left > _GRACE or gone):
        self.end_with(*min(failed.items()))
      elif gone:
        self.end_without(self.suspect(), self.quiet)
      for process, idle in list(self.idle.items()):
        if idle > self.limit and process not in self.left:
          self.end_without(process, idle)

  def suspect(self) -> int:
    """Return the process that is lost if the store is."""
    return 0 if self.index else self.most_idle()

  def most_idle(self) -> int:
    return max(self.idle, key=self.idle.__getitem__)

  def end_without(self, process: int, seconds: float) -> None:
    """End this process because another one gives no sign of life."""
    sign = self.signs.get(process, _Sign())
    silent = f' for {seconds:.0f} s' if seconds >= 1 else ''
    self.end(
      exit_codes.LOST,
      f'process {process} was lost: no sign of life{silent}, last in phase '
      f'{sign.phase} at step {sign.step}',
    )

  def end_with(self, process: int, code: int) -> None:
    """End this process with the code of another one that ended early."""
    sign = self.signs[process]
    if code == exit_codes.STALLED:
      watchdog.print_stacks()  # because this process may be the one that hangs
    self.end(
      code,
      f'process {process} ended with exit code {code} in phase {sign.phase} at '
      f'step {sign.step}; see its message',
    )

  def end(self, code: int, why: str) -> None:
    if self.ended.is_set():  # because the process ends already
      return
    here = f'this process was in phase {self.run.name} at step {self.run.step}'
    advice = '; resume with --resume' if code in exit_codes.REQUEUE else ''
    stops = (exit_codes.STOPPED, exit_codes.INTERRUPTED)
    kind = '' if code in stops else 'error: '  # a signal is no error
    messages.end_line(f'{kind}{why}; {here}{advice}')
    os._exit(code)

  def on_abort(self) -> None:
    """Print who is lost, if that is why JAX aborts this process.

    It must not use the store, whose lock the aborting thread may hold. It waits
    for the other threads, which may know more in a moment.
    """
    if self.ended.is_set():
      os._exit(self.code)
    time.sleep(4 * self.interval)
    failed = {p: code for p, code in self.left.items() if code}
    if failed:
      self.end_with(*min(failed.items()))
    address = str(processes.coordinator_address())
    if self.index and not aborts.is_reachable(address):
      self.end_without(0, 0.0)
    idle = max(self.idle.values())
    silent = max(idle, self.quiet) > 3 * self.interval
    if silent or self.failed or self.error is not None:
      process = self.suspect() if self.quiet > idle else self.most_idle()
      self.end_without(process, max(idle, self.quiet))


_crew: _Crew | None = None


def join(heartbeat: float) -> None:
  """Start to watch the other processes; call it once all have joined.

  Args:
    heartbeat: seconds after which JAX counts a process as lost.
  """
  global _crew
  if processes.count() == 1:
    return
  _crew = _Crew(heartbeat)
  aborts.before(_crew.on_abort)
  signals.before_exit(leave)
  for target in (_crew.talk, _crew.judge):
    threading.Thread(target=target, name='peers', daemon=True).start()


def follow(run: watchdog.Announced) -> None:
  """Write the phase and the step of a run into the signs of life from now."""
  if _crew is not None:
    _crew.run = run


def requested() -> int | None:
  """Return the signal that ends the work of all processes, None if none does.

  Every process must call it at the same places. All get the same answer.
  """
  if _crew is None:
    return signals.requested()
  with _crew.lock:
    _crew.calls += 1
    if _crew.stop is not None and _crew.calls >= _crew.stop[0]:
      return _crew.stop[1]
  return None


def leave(code: int) -> None:
  """Write the exit code of this process, so that the others do not miss it.

  Args:
    code: exit code; 0 if the work is done.
  """
  crew = _crew
  if crew is None or crew.ended.is_set():
    return
  crew.code = code
  crew.ended.set()

  def write() -> None:
    with contextlib.suppress(Exception):
      crew.write(f'left/{crew.index}', str(code))
      if code and not crew.index:
        time.sleep(3 * crew.interval)  # while the others read it

  # By a thread, because the store may not answer.
  thread = threading.Thread(target=write, daemon=True)
  thread.start()
  thread.join(timeout=max(1.0, 4 * crew.interval))


def end(code: int) -> None:
  """End this process at once, after `leave`; a thread may call it."""
  leave(code)
  os._exit(code)


def await_verdict(error: BaseException) -> None:
  """Wait after an error until the reason may be known: a lost process.

  A collective fails at once when another process dies, but does not name it.
  The process ends here if one is lost. Otherwise the error is its own.

  Args:
    error: unexpected error of this process.
  """
  crew = _crew
  if crew is None or crew.ended.is_set():
    return
  crew.failed = True
  deadline = time.monotonic() + crew.limit + 4 * crew.interval
  lines = str(error).strip().splitlines() or [type(error).__name__]
  messages.warn(
    f'warning: failed in phase {crew.run.name} after step {crew.run.step} '
    f'({lines[0][:200]}); waiting up to {crew.limit:.0f} s, because another '
    'process may be lost'
  )
  while time.monotonic() < deadline:
    time.sleep(crew.interval)
    waiting = [p for p in crew.signs if p not in crew.left]
    if all(crew.signs[p].failed for p in waiting) and not crew.left:
      return


def describe() -> str:
  """Return where the other processes are, for a message; '' with one."""
  if _crew is None:
    return ''
  places = [
    f'process {process} in phase {sign.phase} at step {sign.step}'
    for process, sign in sorted(_crew.signs.items())
  ]
  return f'; {", ".join(places)}'

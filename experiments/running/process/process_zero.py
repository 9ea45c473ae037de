"""Let process 0 of a run use its files, and share the results.

Only process 0 locks, reads and writes the directory of a run, because the
others could see it a moment earlier or later. With one process, every function
calls what it was given, and does nothing else.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
import sys
import time
import traceback
from typing import Any

from experiments.running.process import exit_codes, peers
from prsgd_jax.engine import processes

# Seconds that a failed process waits for the others, which may have the same
# error.
_LAST_SECONDS = 5.0
# Seconds that process 0 ends after the others, because JAX aborts those that
# outlive it.
_FIRST_SECONDS = 0.5


def decide(name: str, work: Callable[[], Any]) -> Any:
  """Call a function on process 0 and return its result on every process.

  Args:
    name: what is decided, for the message of a process that waits in vain.
    work: function without arguments; its result is of JSON types.

  Raises:
    Exception: on process 0, the exception of `work`.
    SystemExit: on the other processes if `work` failed; process 0 prints why.

  Example:
    >>> decide('the answer', lambda: 6 * 7)
    42
  """
  if processes.count() == 1:
    return work()
  if not processes.is_first():
    found = processes.agree(name, None)
    if 'result' not in found:
      sys.exit(exit_codes.ERROR)
    return found['result']
  try:
    result = work()
  except BaseException:
    processes.agree(name, {})
    raise
  processes.agree(name, {'result': result})
  return result


@contextlib.contextmanager
def held(
  name: str, make: Callable[[], contextlib.AbstractContextManager[Any]]
) -> Iterator[None]:
  """Enter a context on process 0 only, such as the lock of a directory.

  Args:
    name: what is entered, for the message of a process that waits in vain.
    make: function that returns the context.

  Raises:
    Exception: as `decide`.
  """
  with contextlib.ExitStack() as stack:

    def enter() -> None:
      stack.enter_context(make())

    decide(name, enter)
    yield


def check_equal(values: Mapping[str, Any]) -> None:
  """Check that all processes of a run were started for the same one.

  Args:
    values: settings of JSON types, by the name of their flag.

  Raises:
    ValueError: on every process, if a setting of a process differs from
      process 0.
  """
  found = processes.collect('the settings', dict(values))
  for process, theirs in enumerate(found):
    for name in sorted({*theirs, *found[0]}):
      one, other = theirs.get(name), found[0].get(name)
      if one != other:
        raise ValueError(
          f'--{name} is {one!r} in process {process}, and {other!r} in process '
          '0; pass the same flags to all processes'
        )


def leave(code: object) -> None:
  """End a process of several after an error, which the others may not have.

  JAX would wait for minutes for the others, which wait for this process. So it
  waits for seconds, and then ends without JAX.

  Args:
    code: exit code or message, as in `SystemExit`; 0 or None is no error.
  """
  if not code or processes.count() == 1:
    return
  number = code if isinstance(code, int) else exit_codes.ERROR
  peers.leave(number)
  with contextlib.suppress(processes.ProcessError):
    processes.barrier('the end', _LAST_SECONDS)
    if processes.is_first():
      time.sleep(_FIRST_SECONDS)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(number)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """End the process by `leave` if the block fails."""
  try:
    yield
    peers.leave(exit_codes.DONE)
  except SystemExit as stop:
    leave(stop.code)
    raise
  except Exception as error:
    if processes.count() > 1:
      peers.await_verdict(error)
      traceback.print_exc()
      leave(exit_codes.ERROR)
    raise

"""READING PROCESSES: a function that runs in other processes.

They are spawned, because a fork would copy the threads of JAX in an unknown
state.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

from prsgd_jax.data.sources import DataError

# Seconds between looks at whether the main process still runs.
_LOOK = 1.0

_read: Callable[[int], Any] | None = None


@contextlib.contextmanager
def started(
  read: Callable[[int], Any], num_processes: int
) -> Iterator[Callable[[int], Any]]:
  """Start processes, and return `read` as a function that uses them.

  Args:
    read: function of a number; it is copied to each process once.
    num_processes: processes, >= 1. Calls from as many threads keep them busy.

  Returns:
    A context manager. It ends the processes when it exits.

  Raises:
    DataError: if `read` cannot be copied.
  """
  import cloudpickle  # because functions and closures cannot be pickled

  try:
    copied = cloudpickle.dumps(read)
  # Any error, because the objects of the caller may raise their own.
  except Exception as error:
    raise DataError(
      f'a source that processes read must be picklable, but {error}; open '
      'files in __getitem__, or use num_processes=0'
    ) from error
  pool = futures.ProcessPoolExecutor(
    num_processes,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_begin,
    initargs=(copied, os.getpid()),
  )

  def call(number: int) -> Any:
    try:
      return pool.submit(_call, number).result()
    except BrokenProcessPool:
      raise DataError(
        'a process that reads data ended unexpectedly (killed, or out of '
        'memory); use fewer num_processes'
      ) from None

  try:
    yield call
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _begin(copied: bytes, parent: int) -> None:
  """Prepare a process, and leave signals to the main process.

  A scheduler signals all processes, but the main one still needs batches until
  it has saved a checkpoint.
  """
  global _read
  import cloudpickle

  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
  _read = cloudpickle.loads(copied)


def _end_with(parent: int) -> None:
  """End this process after its parent, which may have been killed."""
  while os.getppid() == parent:
    time.sleep(_LOOK)
  os._exit(1)


def _call(number: int) -> Any:
  assert _read is not None
  return _read(number)

"""One process at a time in a directory of runs.

The lock is the operating system's (`flock`) on the file `.lock` in it, so it
ends with the process, however that ends. The file stays and means nothing by
itself; it names the process that took the lock last.

On NFS the lock holds between machines where the server locks files (Linux
since 2.6.12, mounted without `nolock` or `local_lock`). With `local_lock` it
holds between the processes of one machine only. Where a file system refuses to
lock, a warning says so, and the run is not protected.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from typing import IO

from absl import logging

NAME = '.lock'
# The descriptor of a lock that the parent took for this process.
INHERITED = 'PRSGD_JAX_LOCK'
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class LockError(ValueError):
  """The directory cannot be had; the message says why, and who has it."""


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> Iterator[None]:
  """Has a directory for this process until the block ends.

  Args:
    directory: made if it is missing.

  Raises:
    LockError: if another process has it, or it cannot be written.
  """
  lock = _inherited(directory) or take(directory)
  if lock is None:
    raise LockError(
      f'{directory} is in use by {holder(directory)}; wait until that ends, '
      'or pass another --workdir'
    )
  with lock:
    yield


def take(directory: pathlib.Path) -> IO[str] | None:
  """Locks a directory until the file that is returned is closed.

  Args:
    directory: made if it is missing.

  Returns:
    The open file, None if another process has the lock.

  Raises:
    LockError: if the directory cannot be written.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    lock = open(directory / NAME, 'a+')  # noqa: SIM115
  except OSError as error:
    raise LockError(
      f'{directory} cannot be written ({error.strerror or error}); pass '
      'another --workdir'
    ) from error
  return lock if _lock(lock) else None


def hand_over(lock: IO[str]) -> dict[str, str]:
  """Returns the environment by which a child finds the lock.

  The child must be started with the descriptor of the lock (`pass_fds`). It has
  the lock from its first moment, also while it has not called `hold` yet, and
  keeps it when this process ends.
  """
  return {INHERITED: str(lock.fileno())}


def holder(directory: pathlib.Path) -> str:
  """Returns the name of the process that took the lock last, for a message."""
  try:
    host, pid = (directory / NAME).read_text().split()
  except (OSError, ValueError):  # it is about to write its name
    return 'another process'
  return f'process {pid} on {host}'


def _inherited(directory: pathlib.Path) -> IO[str] | None:
  """The lock that the parent took for this process, if it is of this place."""
  try:
    descriptor = int(os.environ[INHERITED])
    same = os.path.samestat(os.fstat(descriptor), os.stat(directory / NAME))
  except (KeyError, ValueError, OSError):
    return None
  if not same:
    return None
  del os.environ[INHERITED]
  os.set_inheritable(descriptor, False)
  lock = os.fdopen(descriptor, 'a+')
  # Ours already; on NFS, where locks are not inherited, it is taken now.
  return lock if _lock(lock) else None


def _lock(lock: IO[str]) -> bool:
  """Locks an open file and writes who did; closes it if another has it."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in _UNSUPPORTED:
      lock.close()
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        return False
      raise
    logging.warning(
      '%s cannot be locked (%s); start no other process in its directory',
      lock.name,
      error.strerror,
    )
  with contextlib.suppress(OSError):  # a full disk is for others to report
    lock.truncate(0)
    lock.write(f'{socket.gethostname()} {os.getpid()}\n')
    lock.flush()
  return True

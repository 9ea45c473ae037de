"""Lock a directory of runs, so that one process at a time writes to it.

The lock is the operating system's `flock` on the file `.lock` in the directory.
It is released when the process ends in any way. The file itself remains; it
only names the last holder of the lock.

On NFS, the lock works between machines if the server supports it (Linux since
2.6.12, mounted without `nolock` or `local_lock`). With `local_lock` it works
only between processes of one machine. If a file system does not support locks,
a warning is printed and the run is not protected.
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
# Environment variable: descriptor of a lock the parent took for this process.
INHERITED = 'PRSGD_JAX_LOCK'
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class LockError(ValueError):
  """A directory cannot be locked; the message names the reason and holder."""


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> Iterator[None]:
  """Lock a directory for this process until the block ends.

  Args:
    directory: directory to lock; created if it is missing.

  Raises:
    LockError: if another process holds the lock, or the directory cannot be
      written.
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
  """Lock a directory until the returned file is closed.

  Args:
    directory: directory to lock; created if it is missing.

  Returns:
    The open lock file; None if another process holds the lock.

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
  """Return the environment variable that passes the lock to a child.

  Start the child with the descriptor of the lock in `pass_fds`. The child holds
  the lock from its start, before it calls `hold`, and keeps it when this
  process ends.

  Args:
    lock: file that `take` returned.
  """
  return {INHERITED: str(lock.fileno())}


def holder(directory: pathlib.Path) -> str:
  """Return the last holder of the lock, for a message."""
  try:
    host, pid = (directory / NAME).read_text().split()
  except (OSError, ValueError):  # because it may not be written yet
    return 'another process'
  return f'process {pid} on {host}'


def _inherited(directory: pathlib.Path) -> IO[str] | None:
  """Return the lock the parent took for this directory, None if it did not."""
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
  # Locked again, because a child does not inherit locks on NFS.
  return lock if _lock(lock) else None


def _lock(lock: IO[str]) -> bool:
  """Lock an open file and write the holder; close it if it is locked."""
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
  with contextlib.suppress(OSError):  # because the run reports a full disk
    lock.truncate(0)
    lock.write(f'{socket.gethostname()} {os.getpid()}\n')
    lock.flush()
  return True

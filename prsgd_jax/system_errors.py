"""Reasons for which the operating system refused to write or read a file.

Libraries report a failed write in different ways: as an `OSError`, as an error
raised from one, or as text that contains the system's number or words. `reason`
and `error_number` read all of them.
"""

from collections.abc import Iterator
import errno
import os
import re

# Errors of a failed write, whose words are searched for in messages.
_NUMBERS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EIO,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.EFBIG,
  errno.EMFILE,
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EEXIST,
  errno.ENAMETOOLONG,
)
_LONGEST = 200


def error_number(error: BaseException) -> int | None:
  """Return the number of the system error that caused an exception.

  Args:
    error: the exception as caught, with its causes.

  Returns:
    A number of `errno`, or None if no system error was involved.

  Example:

    >>> error_number(OSError(errno.ENOSPC, 'full')) == errno.ENOSPC
    True
    >>> error_number(RuntimeError('write failed: No space left on device')) == (
    ...   errno.ENOSPC
    ... )
    True
    >>> error_number(RuntimeError('shapes differ')) is None
    True
  """
  for one in _chain(error):
    if isinstance(one, OSError) and one.errno is not None:
      return one.errno
  for one in _chain(error):
    # tensorstore's format: "... [os_error_code='28']".
    if found := re.search(r"os_error_code='(\d+)'", str(one)):
      return int(found[1])
    for number in _NUMBERS:
      if os.strerror(number) in str(one):
        return number
  return None


def reason(error: BaseException) -> str:
  """Return one short line: the system's words, or the start of the message.

  Args:
    error: the exception as caught, with its causes.

  Example:

    >>> reason(RuntimeError('close: No space left on device; at byte 4096'))
    'No space left on device'
    >>> reason(RuntimeError('disk\\nquota'))
    'disk quota'
  """
  number = error_number(error)
  if number is not None:
    return os.strerror(number)
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= _LONGEST else text[:_LONGEST] + '...'


def _chain(error: BaseException) -> Iterator[BaseException]:
  """Yield the exception and its causes, latest first."""
  seen: set[int] = set()
  one: BaseException | None = error
  while one is not None and id(one) not in seen:
    seen.add(id(one))
    yield one
    one = one.__cause__ or one.__context__

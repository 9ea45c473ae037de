"""What the operating system said when it refused, whoever passes it on.

Libraries report a failed write in their own ways: as an `OSError`, as another
error raised from one, or as a text with the number or the words of the system
in it. `reason` and `error_number` read all of these.
"""

from collections.abc import Iterator
import errno
import os
import re

# Looked for in texts: what a write fails with.
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
  """The number of the system's error that is behind an error.

  Args:
    error: as caught, with its causes.

  Returns:
    One of `errno`, or None if the system refused nothing.

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
    # As tensorstore has it: "... [os_error_code='28']".
    if found := re.search(r"os_error_code='(\d+)'", str(one)):
      return int(found[1])
    for number in _NUMBERS:
      if os.strerror(number) in str(one):
        return number
  return None


def reason(error: BaseException) -> str:
  """One short line: the system's words, or the start of the error's own.

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
  """The error and what it was raised from, the latest first."""
  seen: set[int] = set()
  one: BaseException | None = error
  while one is not None and id(one) not in seen:
    seen.add(id(one))
    yield one
    one = one.__cause__ or one.__context__

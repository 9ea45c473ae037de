"""Names of directories, made from labels that may be of any length."""

import hashlib
import pathlib

# A file name has at most 255 bytes, some file systems allow 143. A time before
# it, a seed and '.partial' behind it must fit too.
MOST_BYTES = 100


def shorten(name: str) -> str:
  """Returns a name that fits a directory: itself, or its start and a hash.

  Args:
    name: any text; the names of two texts differ.

  Example:
    >>> shorten('pr_sgd-period4')
    'pr_sgd-period4'
    >>> shorten('at-' + '+'.join(map(str, range(200))))[-25:]
    '1+22+23+24+25+26+27+28+29'
  """
  safe = name.replace('/', '_').replace('\0', '_')
  if safe == name and len(name.encode()) <= MOST_BYTES:
    return name
  digest = hashlib.sha256(name.encode()).hexdigest()[:8]
  start = safe.encode()[: MOST_BYTES - 9].decode(errors='ignore')
  return f'{start}-{digest}'


def make_directory(root: pathlib.Path, name: str) -> pathlib.Path:
  """Makes a new directory, with a number behind the name if it is taken.

  Two processes never get the same one, because making it is one system call.

  Args:
    root: where; made if it is missing.
    name: of the directory.

  Raises:
    ValueError: if it cannot be made.
  """
  number = 1
  while True:
    path = root / (name if number == 1 else f'{name}-{number}')
    try:
      path.mkdir(parents=True)
      return path
    except FileExistsError:
      number += 1
    except OSError as error:
      raise ValueError(
        f'{path} cannot be made ({error.strerror}); pass --workdir'
      ) from error

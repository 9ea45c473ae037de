"""Make names of directories from labels of any length."""

import hashlib
import pathlib

# Below 143, the limit of some file systems, because a time, a seed and
# '.partial' are added to the name.
MOST_BYTES = 100


def shorten(name: str) -> str:
  """Return a name for a directory: the text, or its start and a hash.

  Args:
    name: any text. Different texts get different names.

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
  """Create a new directory, with a number after the name if it exists.

  Two processes never get one directory, because its creation is atomic.

  Args:
    root: parent directory; created if it is missing.
    name: name of the directory.

  Returns:
    The path of the new directory.

  Raises:
    ValueError: if it cannot be created.
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
        f'{path} cannot be created ({error.strerror}); pass --workdir'
      ) from error

"""Messages to the user on stderr."""

import contextlib
import os
import sys

# Text before the messages of a process other than process 0.
_where = ''


def only_errors(process: int) -> None:
  """Print nothing but errors from now on, after the number of the process.

  Process 0 prints what all processes would print. The descriptor of stdout is
  closed too, because JAX's runtime prints to it.

  Args:
    process: index of this process, > 0.
  """
  from absl import logging

  global _where
  _where = f'process {process}: '
  sys.stdout.flush()
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.close(nowhere)
  logging.set_verbosity(logging.ERROR)


def warn(message: object) -> None:
  """Print a message as one line on stderr, after the program's name."""
  # Imported here, because a program may end before its slow imports.
  import tqdm

  # By tqdm, because it erases a progress bar and redraws it below.
  line = _named(' '.join(str(message).split()))
  tqdm.tqdm.write(line, file=sys.stderr)
  sys.stderr.flush()


def end_line(message: str) -> None:
  """Print the last line of a process that a thread ends immediately.

  It is unbuffered, because another thread may hold the buffer of the stream.
  """
  with contextlib.suppress(OSError):
    os.write(2, f'{_named(message)}\n'.encode(errors='replace'))


def _named(line: str) -> str:
  return f'{os.path.basename(sys.argv[0])}: {_where}{line}'

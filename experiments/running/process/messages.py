"""Messages to the user on stderr."""

import contextlib
import os
import sys

# Starts of the messages that every process prints, because each has its own.
_OWN = ('error: ', 'warning: ')
# Text before the messages of a process other than process 0.
_where = ''


def only_errors(process: int) -> None:
  """Print only errors and warnings from now on, after the process's number.

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
  """Print a message as one line on stderr, after the program's name.

  Args:
    message: message; after `only_errors`, it is printed only if it starts with
      'error: ' or 'warning: '.
  """
  # Imported here, because a program may end before its slow imports.
  import tqdm

  line = ' '.join(str(message).split())
  if _where and not line.startswith(_OWN):
    return
  # By tqdm, because it erases a progress bar and redraws it below.
  tqdm.tqdm.write(_named(line), file=sys.stderr)
  sys.stderr.flush()


def end_line(message: str) -> None:
  """Print the last line of a process that a thread ends immediately.

  It is unbuffered, because another thread may hold the buffer of the stream.
  """
  with contextlib.suppress(OSError):
    os.write(2, f'{_named(message)}\n'.encode(errors='replace'))


def _named(line: str) -> str:
  return f'{os.path.basename(sys.argv[0])}: {_where}{line}'

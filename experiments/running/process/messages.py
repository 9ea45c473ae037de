"""Lines for people, on stderr."""

import os
import sys

import tqdm


def warn(message: object) -> None:
  """Prints one line on stderr, with the program's name."""
  program = os.path.basename(sys.argv[0])
  line = ' '.join(str(message).split())
  # A progress bar is taken away for it, and drawn again below.
  tqdm.tqdm.write(f'{program}: {line}', file=sys.stderr)
  sys.stderr.flush()

"""Messages to the user on stderr."""

import os
import sys

import tqdm


def warn(message: object) -> None:
  """Print a message as one line on stderr, after the program's name."""
  program = os.path.basename(sys.argv[0])
  line = ' '.join(str(message).split())
  # By tqdm, because it erases a progress bar and redraws it below.
  tqdm.tqdm.write(f'{program}: {line}', file=sys.stderr)
  sys.stderr.flush()

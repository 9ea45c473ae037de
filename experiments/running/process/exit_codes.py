"""Exit codes of the programs.

A scheduler should requeue a run that ends with one of `REQUEUE`: its newest
checkpoint is complete, and `--resume` continues from it.

This module imports only the standard library, because programs read it before
their slow imports.
"""

import signal

DONE = 0
ERROR = 1
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
LOST = 76
STALLED = 77
INTERRUPTED = 130  # as in shells: 128 plus the number of SIGINT

REQUEUE = (STOPPED, LOST, STALLED)

MEANINGS = {
  DONE: 'The run finished.',
  ERROR: 'An error, printed as one line.',
  STOPPED: 'A signal of a scheduler ended the run, which is saved; requeue it.',
  LOST: 'Another process of the run was lost; requeue it.',
  STALLED: 'No step ended for --stall_seconds; requeue it.',
  INTERRUPTED: 'Ctrl-C ended the run, which is saved.',
}


def after_signal(number: int) -> int:
  """Return the exit code after a signal.

  Args:
    number: number of the signal.

  Example:
    >>> after_signal(signal.SIGTERM), after_signal(signal.SIGINT)
    (75, 130)
  """
  return INTERRUPTED if number == signal.SIGINT else STOPPED


def lines() -> list[str]:
  """Return a line of help for each code, with the code in front.

  Example:
    >>> lines()[0]
    '  0    The run finished.'
  """
  return [f'  {code:<4} {meaning}' for code, meaning in MEANINGS.items()]

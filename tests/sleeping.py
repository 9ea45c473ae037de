"""A logger for `faults.py` whose first record takes forever."""

import time

from experiments.running.logs import loggers


def sleeping(run):
  del run
  return loggers.Logger(lambda record: time.sleep(10**6))

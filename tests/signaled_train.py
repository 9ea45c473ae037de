"""train.py that sends itself a signal when it enters a phase; for faults.py.

  python tests/signaled_train.py --flags ...

The variable PRSGD_JAX_FAULT is PHASE:SIGNAL:SECONDS: the name of a phase, the
number of a signal, and the time from the start of the phase to the signal.
"""

import os
import pathlib
import sys

if __name__ == '__main__':
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import signals

if __name__ == '__main__':
  signals.watch()

import threading

from experiments import train
from experiments.running.execution import phases
from experiments.running.flags import cli

# After some steps, so that there is something to save.
_STEP = 80


def main():
  name, number, seconds = os.environ['PRSGD_JAX_FAULT'].split(':')
  begin, enter = phases.Phases.__init__, phases.Phases.enter
  sent = []

  def signal_soon(phase, step):
    due = step >= _STEP or name in (phases.START, phases.COMPILE)
    if phase == name and due and not sent:
      sent.append(phase)
      target = os.kill, (os.getpid(), int(number))
      threading.Timer(float(seconds), *target).start()

  def signaled_begin(self, step, *clock):
    begin(self, step, *clock)
    signal_soon(self.name, step)

  def signaled_enter(self, phase, step):
    enter(self, phase, step)
    signal_soon(phase, step)

  phases.Phases.__init__ = signaled_begin
  phases.Phases.enter = signaled_enter
  train.main()


if __name__ == '__main__':
  sys.argv[0] = 'train.py'
  cli.run(main)

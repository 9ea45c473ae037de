"""Tests of `running/process/signals.py`, in processes without JAX."""

import signal
import subprocess
import sys

from absl.testing import absltest, parameterized

from experiments.running.process import signals

# Works until a signal asks it to end; `busy` stays in one call of C meanwhile.
PROGRAM = """
import sys, time
sys.argv[0] = 'train.py'
from experiments.running.process import signals
signals.watch()
kind = sys.argv[1]

class Slow:
  def __del__(self, print=print, sleep=time.sleep):
    print('ending', flush=True)
    sleep(0.3)

if kind == 'ending':
  slow = Slow()  # until the interpreter ends
with signals.exit_when_stopped('python train.py --resume'):
  if kind == 'idle':
    print('ready', flush=True)
    time.sleep(60)
  if kind == 'busy':
    import ctypes
    print('ready', flush=True)
    while True:
      ctypes.CDLL(None).sleep(60)  # as a compilation, without the GIL
  with signals.deferred(lambda: print('children', file=sys.stderr, flush=True)):
    print('ready', flush=True)
    while signals.requested() is None:
      time.sleep(0.01)
    print('asked', flush=True)
    if kind == 'slow':
      time.sleep(60)
    raise signals.Stopped('saved step 7', signals.requested())
"""
ALL = ('SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'SIGINT')
RESUME = 'resume with: python train.py --resume\n'


class SignalsTest(parameterized.TestCase):
  def start(self, kind, ignored=''):
    prefix = ['sh', '-c', f'trap "" {ignored}; exec "$@"', 'sh']
    process = subprocess.Popen(
      [*(prefix if ignored else []), sys.executable, '-c', PROGRAM, kind],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    self.assertEqual(process.stdout.readline(), 'ready\n')
    return process

  def send(self, process, name):
    process.send_signal(getattr(signal, name))

  def ended(self, process):
    _, err = process.communicate(timeout=60)
    return process.returncode, err

  @parameterized.parameters(*ALL)
  def test_work_is_saved_and_said(self, name):
    process = self.start('quick')
    self.send(process, name)
    code = 130 if name == 'SIGINT' else 75
    line = f'train.py: {name}: saved step 7; {RESUME}'
    self.assertEqual(self.ended(process), (code, line))

  @parameterized.parameters(*ALL)
  def test_ends_at_once_where_nothing_waits_to_be_saved(self, name):
    process = self.start('idle')
    self.send(process, name)
    code = 130 if name == 'SIGINT' else 75
    line = f'train.py: {name}: nothing was lost; {RESUME}'
    self.assertEqual(self.ended(process), (code, line))

  def test_ends_at_once_in_the_middle_of_a_call_of_c(self):
    process = self.start('busy')
    self.send(process, 'SIGTERM')
    line = f'train.py: SIGTERM: nothing was lost; {RESUME}'
    self.assertEqual(self.ended(process), (75, line))

  def test_second_signal_ends_at_once(self):
    process = self.start('slow')
    self.send(process, 'SIGTERM')
    self.assertEqual(process.stdout.readline(), 'asked\n')
    self.send(process, 'SIGINT')
    line = 'children\ntrain.py: ended immediately by a second signal\n'
    self.assertEqual(self.ended(process), (130, line))

  @parameterized.parameters('SIGTERM', 'SIGUSR1', 'SIGINT')
  def test_signal_while_the_interpreter_ends_does_not_take_the_code(self, name):
    process = self.start('ending')
    self.send(process, 'SIGUSR1')
    self.assertEqual(process.stdout.readline(), 'asked\n')
    self.assertEqual(process.stdout.readline(), 'ending\n')
    self.send(process, name)
    line = f'train.py: SIGUSR1: saved step 7; {RESUME}'
    self.assertEqual(self.ended(process), (75, line))

  def test_warnings_count_as_one_with_the_signal_after_them(self):
    process = self.start('slow')
    self.send(process, 'SIGUSR1')
    self.assertEqual(process.stdout.readline(), 'asked\n')
    for name in ('SIGXCPU', 'SIGXCPU', 'SIGUSR1', 'SIGTERM'):
      self.send(process, name)
    with self.assertRaises(subprocess.TimeoutExpired):
      process.wait(timeout=0.3)
    self.send(process, 'SIGHUP')
    self.assertEqual(self.ended(process)[0], 75)

  def test_what_the_starter_ignores_is_ignored(self):
    process = self.start('quick', ignored='HUP')
    self.send(process, 'SIGHUP')
    with self.assertRaises(subprocess.TimeoutExpired):
      process.wait(timeout=0.3)
    self.send(process, 'SIGTERM')
    self.assertRegex(self.ended(process)[1], '^train.py: SIGTERM: saved')

  @parameterized.parameters('<&- 2>&-', '>&- 2>&-', '2>&-')
  def test_lines_on_a_closed_stderr_are_no_signals(self, redirection):
    # The pipe of the signals must not be what a library prints to.
    program = (
      'import os, time; from experiments.running.process import signals; '
      'signals.watch(); '
      'os.write(2, b"one line\\n"); time.sleep(0.2)'
    )
    script = f'"$0" -c "$1" {redirection}'
    done = subprocess.run(
      ['bash', '-c', script, sys.executable, program], check=False
    )
    self.assertEqual(done.returncode, 0)

  def test_without_a_watch_nothing_is_requested(self):
    self.assertIsNone(signals.requested())
    self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)


if __name__ == '__main__':
  absltest.main()

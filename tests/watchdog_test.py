"""Tests of `experiments/running/process/watchdog.py`."""

import subprocess
import sys
import threading
import time
import types

from absl.testing import absltest

from experiments.running.process import exit_codes, watchdog

# The main thread stays in one call of C, as in a collective.
STALLED = """
import ctypes, sys, types
sys.argv[0] = 'train.py'
from experiments.running.process import watchdog
run = types.SimpleNamespace(name='train', step=7, count=0)
with watchdog.watching(run, 0.2):
  ctypes.CDLL(None).sleep(60)
"""


class WatchdogTest(absltest.TestCase):
  def watched(self, stall_seconds, **announced):
    """A run that is watched, and the codes with which it would end."""
    run = types.SimpleNamespace(step=7, count=0, **announced)
    codes, ended = [], threading.Event()

    def end(code):
      codes.append(code)
      ended.set()

    self.enterContext(watchdog.watching(run, stall_seconds, end=end))
    return run, codes, ended

  def test_stalled_process_prints_its_stacks_and_one_line(self):
    done = subprocess.run(
      [sys.executable, '-c', STALLED],
      capture_output=True,
      text=True,
      timeout=60,
    )
    self.assertEqual(done.returncode, exit_codes.STALLED)
    self.assertRegex(done.stderr, r'File "<string>", line 7 in <module>')
    self.assertRegex(
      done.stderr.splitlines()[-1],
      r'^train.py: error: stalled: no progress for 0 s in phase train after '
      'step 7; the stacks are above; resume with --resume$',
    )

  def test_run_that_announces_is_not_stalled(self):
    run, codes, _ = self.watched(0.1, name='train')
    for _ in range(30):
      run.count += 1
      time.sleep(0.01)
    self.assertEqual(codes, [])

  def test_other_phases_may_take_longer(self):
    _, codes, ended = self.watched(0.1, name='evaluate')
    self.assertFalse(ended.wait(0.5))
    self.assertTrue(ended.wait(60))
    self.assertEqual(codes, [exit_codes.STALLED])

  def test_zero_turns_it_off(self):
    before = threading.active_count()
    self.watched(0, name='train')
    self.assertEqual(threading.active_count(), before)

  def test_limit_must_be_a_number_of_seconds(self):
    for wrong in (-1.0, float('inf'), float('nan')):
      with self.assertRaisesRegex(ValueError, '--stall_seconds must be >= 0'):
        watchdog.limit(wrong, 1)


if __name__ == '__main__':
  absltest.main()

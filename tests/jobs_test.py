"""Tests of `experiments/running/process/jobs.py`, with real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.running.process import jobs, locks, signals


class JobsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.ended = []
    self.most = 0

  def job(self, name, script):
    command = ['sh', '-c', script]
    log = self.root / 'logs' / name
    return jobs.Job(name, lambda: command, log, self.root / name)

  def run_all(self, *listed, at_once=1, gpus=()):
    def on_wait(running):
      self.most = max(self.most, len(running))

    jobs.run_all(
      listed,
      at_once=at_once,
      gpus=gpus,
      on_end=lambda job, code: self.ended.append((job.name, code)),
      on_wait=on_wait,
    )

  def test_one_at_a_time_in_order_and_to_the_end(self):
    self.run_all(
      self.job('a', 'echo out; echo err >&2; exit 3'),
      self.job('b', 'true'),
      self.job('c', 'true'),
    )
    self.assertEqual(self.ended, [('a', 3), ('b', 0), ('c', 0)])
    self.assertEqual(self.most, 1)
    self.assertEqual((self.root / 'logs' / 'a').read_text(), 'out\nerr\n')

  def test_several_at_once_have_a_gpu_each(self):
    # Each waits until the other is there too.
    script = (
      f'cd {self.root}; echo $CUDA_VISIBLE_DEVICES; touch here$CUDA_VISIBLE_'
      'DEVICES; while ! [ -e here4 -a -e here7 ]; do sleep 0.01; done'
    )
    names = ('a', 'b')
    listed = [self.job(name, script) for name in names]
    self.run_all(*listed, at_once=2, gpus=['4', '7'])
    self.assertCountEqual(self.ended, [('a', 0), ('b', 0)])
    seen = [(self.root / 'logs' / name).read_text() for name in names]
    self.assertEqual(seen, ['4\n', '7\n'])

  @parameterized.parameters(
    (0, 1, ['0', '1'], {}),
    (1, 2, [], {}),
    (1, 2, ['3', '5'], {'CUDA_VISIBLE_DEVICES': '5'}),
    (2, 4, ['3', '5'], {
      'CUDA_VISIBLE_DEVICES': '3', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.450'
    }),
  )  # fmt: skip
  def test_environment_of_a_slot(self, slot, at_once, gpus, expected):
    self.assertEqual(jobs.environment(slot, at_once, gpus), expected)

  def test_gpus_are_those_that_the_environment_shows(self):
    found = jobs.visible_gpus({'CUDA_VISIBLE_DEVICES': '2,GPU-ab'})
    self.assertEqual(found, ['2', 'GPU-ab'])
    self.assertEqual(jobs.visible_gpus({'CUDA_VISIBLE_DEVICES': ''}), [])

  def test_waits_for_a_job_that_another_started(self):
    log = self.root / 'first'
    lock = locks.take(self.root / 'a')
    before = subprocess.Popen(
      ['sh', '-c', f'sleep 0.5; echo first >> {log}'], pass_fds=[lock.fileno()]
    )
    lock.close()
    self.run_all(self.job('a', f'cat {log}; echo second'))
    before.wait()
    found = (self.root / 'logs' / 'a').read_text()
    self.assertEqual(found, 'first\nsecond\n')
    self.assertEqual(self.ended, [('a', 0)])

  def test_a_job_holds_its_directory_until_it_ends(self):
    program = (
      'import pathlib; from experiments.running.process import locks\n'
      f'with locks.hold(pathlib.Path({str(self.root / "a")!r})): print("held")'
    )
    command = [sys.executable, '-c', program]
    log = self.root / 'logs' / 'a'
    self.run_all(jobs.Job('a', lambda: command, log, self.root / 'a'))
    self.assertEqual((self.root / 'logs' / 'a').read_text(), 'held\n')
    self.assertIsNotNone(locks.take(self.root / 'a'))

  def test_a_killed_starter_leaves_the_job_its_lock(self):
    program = (
      'from experiments.running.process import jobs; import pathlib\n'
      f'root = pathlib.Path({str(self.root)!r}); log = root / "logs" / "a"\n'
      'command = ["sh", "-c", "echo began; sleep 1; echo ended"]\n'
      'jobs.run_all([jobs.Job("a", lambda: command, log, root / "a")], '
      'at_once=1, gpus=[], on_end=print, on_wait=lambda running: None)\n'
    )
    starter = subprocess.Popen([sys.executable, '-c', program])
    log = self.root / 'logs' / 'a'
    while not log.exists() or 'began' not in log.read_text():
      self.assertIsNone(starter.poll())
      time.sleep(0.01)
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    self.run_all(self.job('a', 'echo again'))
    self.assertEqual(log.read_text(), 'began\nended\nagain\n')

  def test_an_interrupt_ends_those_that_run(self):
    def interrupt(running):
      raise KeyboardInterrupt

    begun = time.monotonic()
    with self.assertRaises(KeyboardInterrupt):
      jobs.run_all(
        [self.job('a', 'exec sleep 60')],
        at_once=1,
        gpus=[],
        on_end=lambda job, code: None,
        on_wait=interrupt,
      )
    self.assertLess(time.monotonic() - begun, 30)

  def test_a_signal_is_passed_on_and_starts_no_more(self):
    def signaled(running):
      if (self.root / 'trapped').exists():
        self.requested.return_value = signal.SIGTERM

    self.requested = self.enterContext(
      mock.patch.object(signals, 'requested', return_value=None)
    )
    script = (
      f'trap "echo saved; exit 75" USR1; touch {self.root / "trapped"}; '
      'while true; do sleep 0.02; done'
    )
    with self.assertRaisesRegex(signals.Stopped, '2 .*not finish') as caught:
      jobs.run_all(
        [self.job('a', script), self.job('b', 'true')],
        at_once=1,
        gpus=[],
        on_end=lambda job, code: self.ended.append((job.name, code)),
        on_wait=signaled,
      )
    self.assertEqual(caught.exception.number, signal.SIGTERM)
    self.assertEqual((self.root / 'logs' / 'a').read_text(), 'saved\n')
    self.assertEqual(self.ended, [])
    self.assertFalse((self.root / 'logs' / 'b').exists())


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/running/process/locks.py`, with real processes."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest

from experiments.running.process import locks

HOLDS = (
  'import pathlib, sys, time\n'
  'from experiments.running.process import locks\n'
  'with locks.hold(pathlib.Path(sys.argv[1])):\n'
  '  print("held", flush=True); time.sleep(60)\n'
)


class LocksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(root) / 'runs' / 'a'

  def other(self):
    """Another process that has the lock."""
    process = subprocess.Popen(
      [sys.executable, '-c', HOLDS, self.directory], stdout=subprocess.PIPE
    )
    self.addCleanup(process.stdout.close)
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    self.assertEqual(process.stdout.readline(), b'held\n')
    return process

  def test_second_process_is_refused_by_name_until_the_first_is_killed(self):
    first = self.other()
    with self.assertRaises(locks.LockError) as caught:
      self.enterContext(locks.hold(self.directory))
    self.assertEqual(
      str(caught.exception),
      f'{self.directory} is in use by process {first.pid} on '
      f'{socket.gethostname()}; wait until that ends, or pass another '
      '--workdir',
    )
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with locks.hold(self.directory):
      self.assertIn(str(os.getpid()), locks.holder(self.directory))

  def test_is_free_after_the_block_also_after_an_error(self):
    with self.assertRaises(KeyError), locks.hold(self.directory):
      raise KeyError
    with locks.hold(self.directory):
      pass

  def test_holds_within_one_process_too(self):
    with locks.hold(self.directory), self.assertRaises(locks.LockError):
      self.enterContext(locks.hold(self.directory))

  def test_other_directories_are_free(self):
    with locks.hold(self.directory), locks.hold(self.directory / 'b'):
      pass

  def test_lock_of_another_directory_is_not_taken_for_this_one(self):
    lock = self.enterContext(locks.take(self.directory))
    with (
      mock.patch.dict(os.environ, locks.hand_over(lock)),
      locks.hold(self.directory / 'b'),
    ):
      self.assertIsNone(locks.take(self.directory / 'b'))

  def test_damaged_environment_is_no_lock(self):
    for text in ('', 'x', '987654'):
      with (
        mock.patch.dict(os.environ, {locks.INHERITED: text}),
        locks.hold(self.directory),
      ):
        pass

  def test_directory_that_cannot_be_made_is_one_line(self):
    file = self.directory.parents[1] / 'file'
    file.touch()
    with self.assertRaisesRegex(
      locks.LockError, r'file/a cannot be written \(Not a directory\)'
    ):
      self.enterContext(locks.hold(file / 'a'))

  def test_pipe_in_place_of_the_lock_is_one_line(self):
    self.directory.mkdir(parents=True)
    os.mkfifo(self.directory / locks.NAME)
    with self.assertRaisesRegex(
      locks.LockError, r'a cannot be written \(.* not seekable.*\); pass'
    ):
      self.enterContext(locks.hold(self.directory))

  def test_file_system_without_locks_is_said(self):
    refusal = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    with (
      mock.patch.object(fcntl, 'flock', side_effect=refusal),
      self.assertLogs('absl', 'WARNING') as logs,
      locks.hold(self.directory),
    ):
      pass
    self.assertRegex(logs.output[0], 'cannot be locked .*; start no other')


if __name__ == '__main__':
  absltest.main()

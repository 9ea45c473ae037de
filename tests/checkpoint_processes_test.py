"""Checkpoints of two processes that share a directory."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np

from prsgd_jax.engine import checkpoint_files, checkpoints
from tests import checkpoint_processes as two

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 240  # on a busy machine


def free_port():
  with socket.socket() as listening:
    listening.bind(('localhost', 0))
    return listening.getsockname()[1]


class CheckpointProcessesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    cls.root = pathlib.Path(temporary.name)
    cls.trainer, cls.data = two.make_trainer(), two.make_data()
    state = two.first_state(cls.trainer)
    for name, steps in (('of_one', 4), ('another', 0)):
      # Both hold step 4; only the first is of the data.
      state, _ = cls.trainer.run(state, cls.data, steps)
      cls.trainer.save(cls.root / name, state, {**two.DESCRIPTION})
    cls.saved = two.on_host(cls.trainer, state)
    record = cls.root / 'another' / '4' / 'record.json'
    content = json.loads(record.read_text())
    files, content = content.pop('files'), {**content, 'notes': {'other': 1}}
    del content['sha256']
    checkpoint_files.write_record(record.parent, content, files)
    port = free_port()
    processes = [
      subprocess.Popen(
        [
          sys.executable, '-m', 'tests.checkpoint_processes', str(port),
          str(process), str(cls.root),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for process in range(two.PROCESSES)
    ]  # fmt: skip
    first, second = processes
    try:
      output = second.communicate(timeout=SECONDS)[0]
    finally:
      # JAX would end it, too, but only after its heartbeat limit.
      first.kill()
      second.kill()
    cls.output = first.communicate()[0], output
    cls.killed = second.returncode

  def arrays(self, name, process):
    found = np.load(self.root / f'{name}{process}.npz')
    return [found[key] for key in found.files]

  def said(self, process):
    path = self.root / f'said{process}.json'
    self.assertTrue(path.exists(), self.output[process])
    return json.loads(path.read_text())

  def assert_equal(self, ones, others):
    self.assertEqual(len(ones), len(others))
    for one, other in zip(ones, others, strict=True):
      np.testing.assert_array_equal(one, other)

  def test_of_one_process_is_restored_on_two(self):
    for process in range(two.PROCESSES):
      self.said(process)
      self.assert_equal(self.arrays('restored', process), self.saved)

  def test_of_two_is_restored_on_two_and_on_one(self):
    saved = self.arrays('saved', 0)
    self.assert_equal(self.arrays('saved', 1), saved)
    for process in range(two.PROCESSES):
      self.assert_equal(self.arrays('again', process), saved)
    like = two.first_state(self.trainer)
    directory = self.root / 'of_two'
    state = self.trainer.restore(directory, like, two.DESCRIPTION)
    self.assertEqual(state.step, 6)
    self.assert_equal(two.on_host(self.trainer, state), saved)
    parts = sorted(p.name for p in (directory / '6').iterdir() if p.is_dir())
    self.assertEqual(parts, ['state-0-of-2', 'state-1-of-2'])

  def test_error_of_one_process_is_the_error_of_both(self):
    ones, others = self.said(0), self.said(1)
    full = f'{self.root}/of_two/8 cannot be written (No space left on device)'
    self.assertEqual(ones['full0'], full)
    self.assertEqual(others['full0'], f'process 0: {full}')
    self.assertEqual(ones['full1'], f'process 1: {full}')
    self.assertEqual(others['full1'], full)

  def test_directory_that_is_not_shared_is_one_line(self):
    for process in range(two.PROCESSES):
      said = self.said(process)['not shared']
      self.assertRegex(
        said, 'own1/8 cannot be written .process 1 does not see the files of '
        'process 0; put the directory on a file system that all processes share'
      )  # fmt: skip
      self.assertFalse(any((self.root / f'own{process}').glob('*')))

  def test_process_with_another_file_says_so(self):
    for process in range(two.PROCESSES):
      said = self.said(process)
      self.assertRegex(
        said['another'], 'another/4 is another file for process 0'
      )
      self.assertRegex(said['missing'], 'no whole checkpoint in .*only0/0$')
      self.assertRegex(said['twice'], 'of_two/6 is there already')

  def test_killed_process_leaves_whole_checkpoints(self):
    self.assertEqual(self.killed, -9, self.output)
    directory = self.root / 'of_two'
    self.assertEqual(checkpoints.steps(directory), [6])
    checkpoint_files.read_record(directory / '6')
    copy = self.root / 'copy'
    shutil.copytree(directory, copy)
    checkpoints.prune(copy, 1)
    self.assertEqual([p.name for p in copy.iterdir()], ['6'])


if __name__ == '__main__':
  absltest.main()

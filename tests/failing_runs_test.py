"""Runs of `train.py` on a failing disk, and the files they leave."""

import os
import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized

from experiments import compare, train
from experiments.running.records import records
from tests import binaries, failing_disk

SMALL = (
  '--num_replicas=2', '--num_devices=1', '--batch_size=4', '--log_every=2',
  '--eval_every=4', '--checkpoint_every=4', '--noprogress',
)  # fmt: skip
RUN = ('--algorithm=pr_sgd', '--period=2', *SMALL)
# Call, part of the path, what the line names.
FATAL = (
  ('open', 'metrics.jsonl', 'metrics.jsonl', 0),
  ('mkdir', 'checkpoints', 'checkpoints/4', 0),
  ('fsync', '.8.partial/state', 'checkpoints/8', 4),
  ('replace', 'summary.json', 'summary.json', 8),
)


class FailingRunsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(binaries.compiled_once())
    made = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.made = pathlib.Path(made) / 'run'
    outcome = binaries.call(
      train, *RUN, '--num_steps=8', f'--workdir={cls.made}'
    )
    assert outcome.code == 0, outcome.err

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def copy_whole(self, workdir):
    """Copy the run that nothing disturbed."""
    shutil.copytree(self.made, self.root / workdir)

  def train(self, *args, workdir='run', steps=8):
    return binaries.call(
      train, *RUN, f'--num_steps={steps}', *args,
      f'--workdir={self.root / workdir}',
    )  # fmt: skip

  def history(self, workdir='run'):
    return [
      {k: v for k, v in record.items() if k != 'seconds'}
      for record in records.read_records(self.root / workdir)
    ]

  def assert_one_line(self, outcome, named, why, newest):
    left = (
      f'the checkpoint of step {newest} is complete'
      if newest
      else 'the run has no checkpoint yet'
    )
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err,
      f'^train.py: error: {self.root}/run/{named} cannot be written '
      rf'\({why}\); {left}; [a-z ]* and repeat the command with '
      f'--workdir={self.root}/run --resume\n$',
    )

  def test_every_file(self):
    self.copy_whole('whole')
    for call, part, named, newest in FATAL:
      with self.subTest(call=call, part=part):
        shutil.rmtree(self.root / 'run', ignore_errors=True)
        with failing_disk.refuse(call, part):
          outcome = self.train()
        self.assert_one_line(outcome, named, 'Input/output error', newest)
        self.assertEqual(list(self.root.glob('run/checkpoints/.*')), [])
        outcome = self.train('--resume')
        self.assertEqual((outcome.code, outcome.err), (0, ''))
        self.assertEqual(self.history(), self.history('whole'))

  def test_checkpoints_that_are_gone(self):
    self.copy_whole('run')
    whole = self.history()
    shutil.rmtree(self.root / 'run' / records.CHECKPOINTS)
    outcome = self.train('--resume')
    self.assertEqual((outcome.code, outcome.err), (0, ''))  # it is done
    self.assertFalse((self.root / 'run' / records.CHECKPOINTS).exists())
    outcome = self.train('--resume', steps=10)
    self.assertRegex(
      outcome.err, 'checkpoints are gone; the run starts again from step 0$'
    )
    self.assertEqual((outcome.code, self.history()[:4]), (0, whole))

  def test_what_tensorstore_writes(self):
    self.copy_whole('whole')
    self.assertEqual(self.train(steps=4).code, 0)
    with failing_disk.limit(20_000):  # the parameters are larger
      outcome = self.train('--resume')
    self.assert_one_line(outcome, 'checkpoints/8', 'File too large', 4)
    outcome = self.train('--resume')
    self.assertEqual((outcome.code, outcome.err), (0, ''))
    self.assertEqual(self.history(), self.history('whole'))

  def test_tensorboard_may_fail(self):
    self.copy_whole('whole')
    with failing_disk.refuse('mkdir', 'tensorboard'):
      outcome = self.train()
    self.assertEqual(outcome.code, 0)
    self.assertRegex(
      outcome.err, '^train.py: warning: TensorBoard.*dropped.*\n$'
    )
    self.assertEqual(self.history(), self.history('whole'))

  def test_comparison_is_resumed_by_the_same_command(self):
    args = ('--run=ssgd', *SMALL, '--num_steps=4', f'--workdir={self.root}')
    with failing_disk.refuse('open', 'record.json'):
      outcome = binaries.call(compare, *args)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err,
      '^compare.py: error: .*checkpoints/4 cannot be written .*; the run has '
      'no checkpoint yet; fix that and repeat the command\n$',
    )
    with failing_disk.refuse('replace', 'comparison.md'):
      outcome = binaries.call(compare, *args)
    self.assertEqual(
      outcome.err,
      f'compare.py: error: {self.root}/comparison.md cannot be written '
      f'({os.strerror(5)})\n',
    )
    outcome = binaries.call(compare, *args)
    self.assertEqual((outcome.code, outcome.err), (0, ''))
    self.assertTrue((self.root / 'comparison.md').exists())

  def test_lines_of_a_batch_job(self):
    outcome = self.train('--progress')
    self.assertEqual(outcome.code, 0)
    lines = outcome.err.splitlines()
    self.assertLen(lines, 4)
    self.assertNotIn('\r', outcome.err)
    for line, record in zip(lines, self.history()):
      step, loss = record['step'], record['loss']
      self.assertIn(f'step {step}/8, epoch', line)
      self.assertIn(f'loss {loss:.4f}', line)
      tested = 'test_accuracy' in record
      self.assertEqual('test accuracy' in line, tested)

  def test_last_line_is_the_error(self):
    outcome = self.train('--progress', '--learning_rate=1e30')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, r'train.py: error: [^\n\r]*not finite[^\n]*\n$'
    )


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/compare.py`, as a user calls it."""

import os
import pathlib
import signal
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import matplotlib.image

from experiments import compare
from experiments.running.process import locks, signals
from tests import binaries

SMALL = (
  '--num_devices=2', '--batch_size=8', '--num_steps=20', '--log_every=10',
  '--eval_every=10', '--checkpoint_every=20', '--noprogress',
)  # fmt: skip


class CompareTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(binaries.compiled_once())

  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root) / 'comparison'

  def compare(self, *args):
    return binaries.call(compare, *SMALL, f'--workdir={self.workdir}', *args)

  def test_writes_a_table_and_a_figure_and_names_them(self):
    outcome = self.compare('--run=ssgd', '--run=pr_sgd,period=4')
    self.assertEqual(outcome.code, 0, outcome.err)
    table = (self.workdir / 'comparison.md').read_text()
    self.assertIn('328.5 KiB', outcome.out)
    placement = 'each with 8 replicas on 2 cpu devices (4 on each) by vmap\n'
    self.assertIn(placement, outcome.out)
    rows = [line.split('|')[1:-1] for line in table.splitlines()[2:]]
    # 20 and 5 rounds of 2 * 7/8 of 9610 parameters of 4 bytes.
    self.assertEqual([r[0].strip() for r in rows], ['ssgd', 'pr_sgd period=4'])
    self.assertEqual([int(r[5]) for r in rows], [20, 5])
    self.assertEqual([r[6].strip() for r in rows], ['1.3 MiB', '328.5 KiB'])
    figure = self.workdir / 'comparison.png'
    self.assertIn(str(figure), outcome.out)
    pixels = matplotlib.image.imread(figure)[..., :3]
    self.assertGreater(len({tuple(p) for p in pixels.reshape(-1, 3)}), 10)

  def test_runs_that_are_done_are_read(self):
    self.compare('--run=ssgd')
    before = (self.workdir / 'ssgd' / 'metrics.jsonl').read_bytes()
    outcome = self.compare('--run=ssgd', '--run=k_avg,period=2')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertIn('ssgd: already finished', outcome.out)
    after = (self.workdir / 'ssgd' / 'metrics.jsonl').read_bytes()
    self.assertEqual(before, after)
    self.assertIn('k_avg period=2', outcome.out)

  def test_other_settings_do_not_mix(self):
    self.compare('--run=ssgd')
    outcome = self.compare('--run=ssgd', '--seed=3')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, '--seed=0, this one has --seed=3;')

  def test_signaled_comparison_resumes_with_the_same_command(self):
    with mock.patch.object(signals, 'requested', return_value=signal.SIGINT):
      outcome = self.compare('--run=ssgd')
    self.assertEqual(outcome.code, 130)
    self.assertFalse((self.workdir / 'comparison.md').exists())
    outcome = self.compare('--run=ssgd')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertRegex(outcome.out, r'\nssgd +20 ')

  @parameterized.parameters('comparison', 'comparison/ssgd')
  def test_directory_in_use_is_one_line(self, name):
    with locks.hold(self.workdir.parent / name):
      outcome = self.compare('--run=ssgd')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'{name} is in use by process {os.getpid()}')
    self.assertEqual(outcome.err.count('\n'), 1)

  @parameterized.parameters(
    ('--run is missing; pass one', ()),
    ('unknown --algorithm=foo', ('--run=foo',)),
    ('--period does nothing for --algorithm=ssgd', ('--run=ssgd,period=4',)),
    ('expected option=value with an option of pr_sgd, one of period',
     ('--run=pr_sgd,perod=4',)),
    ('period.*invalid literal', ('--run=pr_sgd,period=x',)),
    ('period must be an integer >= 1, got 0', ('--run=pr_sgd,period=0',)),
    ('--period belongs to one run', ('--run=ssgd', '--period=4')),
    ('given twice', ('--run=ssgd', '--run=ssgd')),
  )  # fmt: skip
  def test_bad_input_is_one_line_with_the_way_out(self, pattern, args):
    outcome = self.compare(*args)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^compare.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)
    self.assertFalse(self.workdir.exists())


if __name__ == '__main__':
  absltest.main()

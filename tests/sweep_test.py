"""Tests of `experiments/sweep.py`, as a user calls it: real processes."""

import csv
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from experiments import sweep
from experiments.running.process import jobs
from experiments.running.records import records
from tests import binaries

SMALL = (
  '--num_devices=1', '--num_replicas=2', '--batch_size=8', '--num_steps=4',
  '--log_every=2', '--eval_every=2', '--checkpoint_every=2', '--noprogress',
)  # fmt: skip
GRID = ('--run=ssgd', '--grid=learning_rate=0.05,0.1,1e30', '--jobs=2')


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


class SweepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root) / 'sweep'
    # The processes have no fake devices and must find no accelerator either.
    environment = {'JAX_PLATFORMS': 'cpu'}
    self.enterContext(mock.patch.dict('os.environ', environment))

  def sweep(self, *args):
    return binaries.call(sweep, *SMALL, f'--workdir={self.workdir}', *args)

  def test_runs_a_grid_and_goes_on_where_it_was_cut(self):
    outcome = self.sweep(*GRID, '--best_by=learning_rate')
    self.assertEqual(outcome.code, 0, outcome.err)
    rows = read(self.workdir / 'sweep.csv')
    self.assertEqual(
      [(r['learning_rate'], r['status'], r['step']) for r in rows],
      [('0.05', 'done', '4'), ('0.1', 'done', '4'), ('1e30', 'diverged', '1')],
    )
    self.assertIn('not finite at step 1', rows[2]['failed'])
    self.assertIn('not finite at step 1', outcome.err)
    done = self.workdir / 'ssgd-learning_rate0.1'
    self.assertEqual(rows[1]['directory'], str(done))
    summary = records.read_summary(done)
    self.assertEqual(float(rows[1]['test_loss']), summary['test_loss'])
    # A row for each record, all but the one that diverged have two.
    long = read(self.workdir / 'records.csv')
    self.assertEqual(
      [(r['learning_rate'], r['step']) for r in long],
      [(rate, step) for rate in ('0.05', '0.1') for step in ('2', '4')],
    )
    self.check_best(outcome, [float(r['loss']) for r in rows[:2]])
    self.cut_and_go_on(done)

  def check_best(self, outcome, losses):
    best = json.loads((self.workdir / 'best.json').read_text())
    (method,) = best['methods']
    chosen = ('0.05', '0.1')[losses[0] > losses[1]]
    self.assertEqual(method['best'], {'learning_rate': chosen})
    self.assertEqual(best['grid'], ['learning_rate=0.05,0.1,1e30'])
    self.assertEqual(method['scores'][2]['diverged'], 1)
    self.assertIn(f'learning_rate={chosen}', outcome.out)

  def cut_and_go_on(self, done):
    """As if killed at step 2 of a run; the others are not touched."""
    history = records.read_records(done)
    (done / records.SUMMARY).unlink()
    last = done / records.CHECKPOINTS / '4'
    last.rename(self.workdir / 'gone')
    others = sorted((self.workdir / 'logs').iterdir())
    before = {p.name: p.stat().st_mtime_ns for p in others}
    outcome = self.sweep(*GRID)
    self.assertEqual(outcome.code, 0, outcome.err)
    after = {p.name: p.stat().st_mtime_ns for p in others}
    changed = [name for name in after if after[name] != before[name]]
    self.assertEqual(changed, ['ssgd-learning_rate0.1.log'])
    again = records.read_records(done)
    self.assertEqual(again[0], history[0])  # with its time: kept
    self.assertNotEqual(again[1], history[1])
    for record in (again[1], history[1]):
      del record['seconds']
    self.assertEqual(again[1], history[1])  # the same trajectory
    self.assertEqual(records.read_summary(done)['step'], 4)
    statuses = [r['status'] for r in read(self.workdir / 'sweep.csv')]
    self.assertEqual(statuses, ['done', 'done', 'diverged'])

  def test_a_run_that_breaks_does_not_stop_the_others(self):
    # In this process; that of a job is looked at above, and in `jobs_test`.
    self.enterContext(mock.patch.object(jobs, 'run_all', binaries.run_jobs))
    broken = self.workdir / 'ssgd-num_devices3'  # 2 replicas on 3 devices
    outcome = self.sweep('--run=ssgd', '--grid=num_devices=3,5')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, f'error: 2 of 2 runs did not finish, such as {broken}'
    )
    rows = read(self.workdir / 'sweep.csv')
    self.assertEqual([r['status'] for r in rows], ['failed', 'failed'])
    for row, devices in zip(rows, ('3', '5')):
      self.assertRegex(
        row['failed'], f'^exit code 1; train.py: error: .*{devices}'
      )

  @parameterized.parameters(
    ('--run is missing', ()),
    ("'sead' is not a setting of a run", ('--run=ssgd', '--grid=sead=0,1')),
    ('--jobs must be >= 0', ('--run=ssgd', '--jobs=-1')),
    ('--best_by=momentum is not an axis.*use one of batch_size',
     ('--run=ssgd', '--grid=batch_size=4,8', '--best_by=momentum')),
    ('--best_by=seed is not an axis.*add a --grid',
     ('--run=ssgd', '--grid=seed=0,1', '--best_by=seed')),
    ('period must be an integer >= 1, got 0',
     ('--run=pr_sgd', '--grid=period=2,0')),
    ('must be an integer >= 1', ('--run=ssgd', '--grid=num_steps=4,0')),
    ('multiple >= 1 of --log_every', ('--run=ssgd', '--grid=eval_every=2,3')),
  )  # fmt: skip
  def test_bad_input_is_one_line_before_any_run(self, pattern, args):
    outcome = self.sweep(*args)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^sweep.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)
    self.assertFalse(self.workdir.exists())

  def test_other_settings_do_not_mix(self):
    records.open_workdir(
      self.workdir / 'ssgd',
      {'algorithm': 'ssgd', 'options': {}, 'seed': 7}, {},
      label='ssgd', num_steps=4, resume=False,
    )  # fmt: skip
    outcome = self.sweep('--run=ssgd')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, 'holds a run with .* pass another --workdir')


if __name__ == '__main__':
  absltest.main()

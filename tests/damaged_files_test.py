"""Readers of the files of a run, on damaged files."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized

from experiments import compare, plot, report, sweep, train
from experiments.papers import results_page
from experiments.running.records import json_files, records
from experiments.tools import figures, report_methods, results
from tests import binaries, damages, written_runs

FILES = (
  records.CONFIG, records.METRICS, records.SUMMARY, records.FAILURE,
)  # fmt: skip
FAILURE = {'step': 7, 'failed': 'not finite'}
# Flags of the resumed runs, which differ from the defaults.
SMALL = (
  '--num_replicas=2', '--num_devices=1', '--batch_size=4', '--log_every=2',
  '--eval_every=4', '--checkpoint_every=4', '--noprogress',
)  # fmt: skip


class WrittenRunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = written_runs.write(
      self.root, 'run', losses=(0.8, 0.7, 0.6, 0.5)
    )

  def whole(self, name):
    """The path of a file, which is whole."""
    path = self.workdir / name
    if name == records.FAILURE:
      path.write_text(json.dumps(FAILURE) + '\n')
    return path

  def read(self):
    (run,) = figures.read_runs([self.workdir])
    return run

  def assert_refused(self, path, message=''):
    with self.assertRaisesRegex(json_files.DamagedFile, message) as caught:
      self.read()
    self.assertIn(str(path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))
    self.assertLess(len(str(caught.exception)), 400)

  @parameterized.parameters(*FILES)
  def test_every_damage_of_every_file_is_one_line(self, name):
    path = self.whole(name)
    self.read()  # because whole files must be read
    kept = path.read_bytes()
    for what, damage in damages.DAMAGES.items():
      with self.subTest(what):
        damage(path)
        self.assert_refused(path)
      damages.remove(path)
      path.write_bytes(kept)

  @parameterized.parameters(*FILES)
  def test_every_value_of_another_kind_is_one_line(self, name):
    path = self.whole(name)
    text = path.read_text()
    value = json.loads(text.split('\n')[0] if name == records.METRICS else text)
    unread = ('data', 'learning_rate', 'network')
    # Null stands for NaN. Earlier versions wrote no length; the evaluation of a
    # model of one's own may lack any of its measures.
    tested = ('test_loss', 'test_accuracy', 'consensus_distance')
    numbers = (*tested, *records.NUMBERS, 'cpus')
    allowed = {
      'without num_steps', *(f'without {n}' for n in tested),
      *(f"{n} is 'None'" for n in numbers),
    }  # fmt: skip
    refused = 0
    for what, changed in damages.changes(value):
      if any(f'description.{name}' in what for name in unread):
        continue
      path.write_text(json.dumps(changed) + '\n')
      with self.subTest(what):
        if what in allowed:
          self.read()
        else:
          self.assert_refused(path)
        refused += 1
    self.assertGreater(refused, 10)

  @parameterized.parameters(
    (7,), (None,), ([],), ({'links': 7},), ({'links': {'group': 7}},),
    ({'links': {'group': ['x', 1]}},), ({'speeds': 'x'},), ({'seed': 0.5},),
  )  # fmt: skip
  def test_network_of_another_form_is_one_line(self, network):
    path = self.workdir / records.CONFIG
    config = json.loads(path.read_text())
    config['description']['network'] = network
    path.write_text(json.dumps(config))
    self.assert_refused(path, 'description: network')

  @parameterized.parameters('-1', '1e3', '9223372036854775808', '1' * 4301)
  def test_a_step_is_a_count(self, step):
    path = self.workdir / records.METRICS
    text = path.read_text()
    path.write_text(text.replace('"step": 10,', f'"step": {step},'))
    self.assert_refused(path, 'line 1: (step: expected an integer|.*4300)')
    big = text.replace('"step": 40,', f'"step": {2**63 - 1},')
    path.write_text(big)
    self.assertEqual(self.read().history[-1]['step'], 2**63 - 1)

  @parameterized.parameters(
    ('{"step": 4}', r'line 2: it has no epoch, loss'),
    ('{"step": NaN}', 'line 2: .*has no epoch'),
    ('', 'line 2: Expecting value'),
    ('{"step": 10, "ep', 'line 2: Unterminated string'),
  )
  def test_damage_in_the_middle_names_the_line(self, line, message):
    path = self.workdir / records.METRICS
    lines = path.read_text().split('\n')
    path.write_text('\n'.join([lines[0], line, *lines[2:]]))
    self.assert_refused(path, message)

  def test_steps_that_do_not_increase_are_damage(self):
    path = self.workdir / records.METRICS
    lines = path.read_text().split('\n')
    path.write_text('\n'.join([lines[1], lines[0], *lines[2:]]))
    self.assert_refused(path, 'line 2: step 10 comes after 20')

  def test_a_line_that_is_there_twice_is_one_record(self):
    path = self.workdir / records.METRICS
    whole = records.read_records(self.workdir)
    lines = path.read_text().split('\n')
    path.write_text('\n'.join([lines[0], *lines]))
    self.assertEqual(records.read_records(self.workdir), whole)
    path.write_text('\n'.join([lines[0].replace('0.8', '0.9'), *lines]))
    self.assert_refused(path, 'line 2: step 10 comes after 10')

  @parameterized.parameters('{"step": 50, "ep', '\0\0\0', '{}')
  def test_a_last_line_without_its_end_is_left_out(self, end):
    path = self.workdir / records.METRICS
    whole = records.read_records(self.workdir)
    with open(path, 'a') as file:
      file.write(end)
    self.assertEqual(records.read_records(self.workdir), whole)
    self.assertEqual(records.read_last_record(self.workdir), whole[-1])
    with open(path, 'ab') as file:  # in the middle of a character
      file.write(b'\xe2\x82')
    self.assertEqual(records.read_records(self.workdir), whole)

  @parameterized.parameters(0, 1, 3, 40, 5000)
  def test_the_last_record_is_that_of_all(self, extra):
    path = self.workdir / records.METRICS
    last = records.read_records(self.workdir)[-1]
    with open(path, 'a') as file:
      for i in range(extra):
        file.write(json.dumps({**last, 'step': last['step'] + i + 1}) + '\n')
    found = records.read_last_record(self.workdir)
    self.assertEqual(found, records.read_records(self.workdir)[-1])
    self.assertEqual(found['step'], last['step'] + extra)

  def test_the_last_record_is_found_without_reading_the_others(self):
    path = self.workdir / records.METRICS
    last = path.read_text().split('\n')[-2]
    path.write_text('damaged\n' * 10**5 + last + '\n')
    with absltest.mock.patch.object(
      json_files, 'MAX_BYTES', 2**13
    ):  # less than the file has
      self.assertEqual(records.read_last_record(self.workdir)['step'], 40)
    with self.assertRaises(json_files.DamagedFile):
      records.read_records(self.workdir)

  def test_a_longer_last_record_than_a_piece(self):
    path = self.workdir / records.METRICS
    last = records.read_last_record(self.workdir)
    with open(path, 'a') as file:
      file.write(json.dumps({**last, 'step': 50, 'note': 'x' * 10**5}) + '\n')
    self.assertEqual(records.read_last_record(self.workdir)['step'], 50)

  def test_no_records_are_none(self):
    (self.workdir / records.METRICS).unlink()
    self.assertEqual(records.read_records(self.workdir), [])
    self.assertIsNone(records.read_last_record(self.workdir))

  @parameterized.parameters((plot, 'out.png'), (report, 'out.html'))
  def test_binaries_end_in_one_line(self, binary, output):
    path = self.workdir / records.SUMMARY
    args = (f'--output={self.root / output}', str(self.workdir))
    self.assertEqual(binaries.call(binary, *args).code, 0)
    path.write_text('{}')
    outcome = binaries.call(binary, *args)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, f'error: {path} is damaged \\(it has no label.*; restore it'
    )
    self.assertEqual(outcome.err.count('\n'), 1)

  def test_the_tables_of_a_report(self):
    args = (f'--output={self.root / "out.html"}', str(self.workdir))
    for name, text, message in (
      ('best.json', '{"by": 1}', 'it has no measure'),
      ('sweep.csv', 'a,b\n1,2,3\n', 'row 1'),
      ('sweep.csv', 'a,b\n1\n', 'row 1'),
      ('sweep.csv', 'a,b\n"1,2\n', 'unexpected end'),
      ('sweep.csv', 'a\n' + 'x' * 200_000 + '\n', 'field larger'),
    ):
      path = self.workdir / name
      path.write_text(text)
      outcome = binaries.call(report, *args)
      self.assertEqual(outcome.code, 1)
      self.assertRegex(outcome.err, f'{path} is damaged .*{message}')
      self.assertEqual(outcome.err.count('\n'), 1)
      path.unlink()


class FinishedTest(parameterized.TestCase):
  """A run is done if its summary is that of its last and planned step."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = written_runs.write(self.root, 'run', losses=(0.8, 0.7))
    self.config = json.loads((self.workdir / records.CONFIG).read_text())

  def done(self):
    (run,) = figures.read_runs([self.workdir])
    return run.done

  def open(self, num_steps):
    records.open_workdir(
      self.workdir, self.config['description'], {},
      label='ssgd', num_steps=num_steps, resume=True,
    )  # fmt: skip

  def test_of_its_planned_length(self):
    self.assertTrue(self.done())
    self.assertEqual(records.finished(self.workdir, 20)['step'], 20)
    self.assertIsNone(records.finished(self.workdir, 30))

  def test_not_while_it_is_extended(self):
    self.open(60)
    self.assertFalse(self.done())  # before its first record
    last = records.read_last_record(self.workdir)
    with open(self.workdir / records.METRICS, 'a') as file:
      file.write(json.dumps({**last, 'step': 30}) + '\n')
    self.assertFalse(self.done())
    del self.config['num_steps']  # as an earlier version wrote it
    (self.workdir / records.CONFIG).write_text(json.dumps(self.config))
    self.assertFalse(self.done())
    self.assertIsNone(records.finished(self.workdir, None))

  def test_of_an_earlier_version_by_its_records(self):
    del self.config['num_steps']
    (self.workdir / records.CONFIG).write_text(json.dumps(self.config))
    self.assertTrue(self.done())

  def test_not_without_its_records_or_after_a_failure(self):
    records.write_failure(self.workdir, FAILURE)
    self.assertFalse(self.done())
    records.write_failure(self.workdir, None)
    self.assertTrue(self.done())
    (self.workdir / records.METRICS).unlink()
    self.assertFalse(self.done())

  def test_its_last_record_is_in_no_mean_of_a_report(self):
    self.open(60)
    (row,) = report_methods.method_rows(figures.read_runs([self.workdir]))
    self.assertEqual((row['runs'], row['done']), (1, 0))
    self.assertNotIn('loss', row)


class ResumedRunTest(parameterized.TestCase):
  """train.py, compare.py and sweep.py on a run that is damaged."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(binaries.compiled_once())
    root = tempfile.TemporaryDirectory()
    cls.addClassCleanup(root.cleanup)
    cls.root = pathlib.Path(root.name)
    cls.kept = cls.root / 'kept'
    outcome = binaries.call(
      compare, *SMALL, '--run=ssgd', '--num_steps=4', f'--workdir={cls.kept}'
    )
    assert outcome.code == 0, outcome.err

  def setUp(self):
    super().setUp()
    self.workdir = self.root / 'again'
    shutil.copytree(self.kept, self.workdir)
    self.addCleanup(shutil.rmtree, self.workdir)

  def assert_refused(self, outcome, pattern):
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, pattern)
    self.assertEqual(outcome.err.count('\n'), 1)

  @parameterized.parameters(
    (records.CONFIG, 'an empty object', 'it has no label'),
    (records.SUMMARY, 'cut in the middle', 'is damaged'),
    (records.METRICS, 'a bit flipped', 'line 1'),
    (records.METRICS, 'a pipe', 'is not a regular file'),
    (records.SUMMARY, 'a directory', 'is a directory'),
    (records.FAILURE, 'a directory', '(cannot be removed|is a directory)'),
  )
  def test_is_one_line(self, name, what, message):
    path = self.workdir / 'ssgd' / name
    path.touch()
    damages.DAMAGES[what](path)
    run = self.workdir / 'ssgd'
    self.assert_refused(
      binaries.call(
        train, *SMALL, '--algorithm=ssgd', '--num_steps=8', '--resume',
        f'--workdir={run}',
      ),
      f'^train.py: error: {path} .*{message}',
    )  # fmt: skip
    self.assert_refused(
      binaries.call(
        compare, *SMALL, '--run=ssgd', '--num_steps=8',
        f'--workdir={self.workdir}',
      ),
      f'^compare.py: error: {path} .*{message}',
    )  # fmt: skip

  def test_records_of_a_run_that_is_done_are_one_line_in_compare(self):
    path = self.workdir / 'ssgd' / records.METRICS
    damages.DAMAGES['a bit flipped'](path)
    self.assert_refused(
      binaries.call(
        compare, *SMALL, '--run=ssgd', '--num_steps=4',
        f'--workdir={self.workdir}',
      ),
      f'^compare.py: error: {path} is damaged .*line 1',
    )  # fmt: skip

  def test_sweep_says_which_run_failed_and_why(self):
    point = absltest.mock.Mock(values={}, config=absltest.mock.Mock(options={}))
    trial = sweep.Trial(point, self.workdir / 'ssgd', 4)
    self.assertEqual(sweep.row(trial)['status'], 'done')
    path = self.workdir / 'ssgd' / records.SUMMARY
    damages.DAMAGES['an empty object'](path)
    row = sweep.row(trial)
    self.assertEqual(row['status'], 'failed')
    self.assertRegex(row['failed'], f'{path} is damaged .*no label')


class KeptResultsTest(absltest.TestCase):
  """The files that the tables of the results are made from."""

  def test_are_whole(self):
    found = results.read_results()
    self.assertGreater(found[results.EACH][0][0]['test_accuracy'], 0.5)

  def test_damage_is_one_line(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    path = root / 'digits_mlp-seed0.json'
    path.write_text('[{"label": "ssgd"}]')
    with absltest.mock.patch.object(results, 'RESULTS', root):
      outcome = binaries.call(results, '--notrain')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, rf'{path} is damaged \(\[0\]: it has no step')
    path.write_text('[' * 10**5)
    with self.assertRaisesRegex(json_files.DamagedFile, 'nested too deeply'):
      results_page.read(root)


if __name__ == '__main__':
  absltest.main()

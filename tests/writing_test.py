"""Tests of `running/records/writing.py`, and of its callers."""

import itertools
import json
import math
import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from experiments import sweep
from experiments.running.records import records, writing
from experiments.tools import figures
from prsgd_jax.engine import checkpoints
from tests import failing_disk, written_runs

# Name -> (the file, what writes it into a directory).
DESCRIPTION = {'algorithm': 'ssgd', 'options': {}, 'seed': 0}
WRITERS = {
  'text': ('a.md', lambda root: writing.write_text(root / 'a.md', 'new')),
  'summary': ('summary.json', lambda root: records.write_summary(root, {})),
  'failure': ('failure.json', lambda root: records.write_failure(root, {})),
  'table': (
    'sweep.csv',
    lambda root: sweep.write_csv(root / 'sweep.csv', [{'a': 1}]),
  ),
  'config': (
    'config.json',
    lambda root: records.open_workdir(
      root, DESCRIPTION, {}, label='x', num_steps=9, resume=True
    ),
  ),
}
OLD = writing.to_json({'label': 'x', 'description': DESCRIPTION, 'flags': {}})


class WholeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(*itertools.product(WRITERS, failing_disk.FAULTS))
  def test_failed_write_names_the_file_and_leaves_the_old_one(self, name, kind):
    file, write = WRITERS[name]
    path = self.root / file
    path.write_text(OLD)
    with (
      failing_disk.fault(kind, file) as why,
      self.assertRaises((OSError, ValueError)) as caught,
    ):
      write(self.root)
    message = str(caught.exception)
    # --workdir is what to change for a run that can't be begun.
    named = self.root if name == 'config' else path
    self.assertStartsWith(message, f'{named} cannot be written ({why})')
    self.assertEqual(path.read_text(), OLD)
    self.assertEqual([p.name for p in self.root.iterdir()], [file])

  @parameterized.parameters(*WRITERS)
  def test_good_disk_has_the_new_file(self, name):
    file, write = WRITERS[name]
    (self.root / file).write_text(OLD)
    write(self.root)
    self.assertNotEqual((self.root / file).read_text(), OLD)
    self.assertEqual([p.name for p in self.root.iterdir()], [file])

  def test_what_is_in_the_place_of_the_file_beside(self):
    path, other = self.root / 'a.md', self.root / 'other'
    staging = self.root / f'a.md{writing.PARTIAL}'
    os.mkfifo(staging)  # nobody reads it: to open it is to wait for ever
    writing.write_text(path, 'first')
    self.assertEqual(path.read_text(), 'first')
    staging.symlink_to(other)
    writing.write_text(path, 'second')
    self.assertEqual((path.read_text(), other.exists()), ('second', False))
    self.assertFalse(path.is_symlink())
    staging.mkdir()
    with self.assertRaisesRegex(
      writing.WriteError, r'a.md.partial cannot be written \(Is a directory\)'
    ):
      writing.write_text(path, 'third')
    self.assertEqual(path.read_text(), 'second')

  def test_device_and_link_stay_what_they_are(self):
    real, link = self.root / 'real', self.root / 'link'
    real.write_text('old')
    link.symlink_to(real)
    writing.write_text(link, 'new')
    self.assertTrue(link.is_symlink())
    self.assertEqual(real.read_text(), 'new')
    null = self.root / 'null'
    null.symlink_to('/dev/null')
    writing.write_text(null, 'new')
    self.assertTrue(pathlib.Path('/dev/null').is_char_device())
    with self.assertRaisesRegex(writing.WriteError, '/dev/full cannot be writ'):
      writing.write_text(pathlib.Path('/dev/full'), 'new')
    self.assertTrue(pathlib.Path('/dev/full').is_char_device())

  def test_directory_is_no_place_for_a_file(self):
    with self.assertRaisesRegex(writing.WriteError, 'Is a directory'):
      writing.write_text(self.root, 'new')

  @parameterized.parameters(*failing_disk.FAULTS)
  def test_figure(self, kind):
    written_runs.write(self.root, 'run', losses=(1.0, 0.5))
    runs = figures.read_runs([self.root / 'run'])
    path = self.root / 'a.png'
    with (
      failing_disk.fault(kind, 'a.png') as why,
      self.assertRaises(ValueError) as caught,
    ):
      figures.draw(runs, path)
    self.assertIn(f'{path} cannot be written ({why})', str(caught.exception))
    self.assertFalse(path.exists())
    figures.draw(runs, path)
    self.assertEqual(path.read_bytes()[:4], b'\x89PNG')

  def test_figure_without_an_ending_is_the_file_that_is_named(self):
    written_runs.write(self.root, 'run', losses=(1.0, 0.5))
    path = self.root / 'figure'
    figures.draw(figures.read_runs([self.root / 'run']), path)
    self.assertEqual(path.read_bytes()[:4], b'\x89PNG')


class JsonTest(absltest.TestCase):
  def test_what_is_no_number_is_null_and_back(self):
    value = {'a': [math.nan, 1.5], 'b': {'c': math.inf, 'd': 'NaN', 'e': 3}}
    text = writing.to_json(value, indent=None)
    self.assertEqual(
      text, '{"a": [null, 1.5], "b": {"c": null, "d": "NaN", "e": 3}}\n'
    )
    self.assertNotEqual(text, json.dumps(value) + '\n')  # which is no JSON
    read = writing.with_nan(json.loads(text))
    self.assertTrue(math.isnan(read['a'][0]) and math.isnan(read['b']['c']))
    self.assertEqual((read['a'][1], read['b']['d']), (1.5, 'NaN'))

  def test_records_and_summaries_are_read_as_numbers(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    record = {
      'step': 2, 'epoch': 0.1, 'loss': None, 'rounds': 1, 'bytes_sent': 4.0,
      'modeled_seconds': 0.1, 'seconds': 0.1,
    }  # fmt: skip
    (root / records.METRICS).write_text(json.dumps(record) + '\n')
    (record,) = records.read_records(root)
    self.assertTrue(math.isnan(record['loss']))
    texts = dict.fromkeys(('label', 'replicas', 'device', 'jax', 'commit'), 'x')
    summary = {**record, **texts, 'steps_per_second': None, 'cpus': 2}
    records.write_summary(root, summary)
    self.assertNotIn('NaN', (root / records.SUMMARY).read_text())
    found = records.read_summary(root)
    self.assertTrue(math.isnan(found['loss']))
    self.assertIsNone(found['steps_per_second'])


class ExplainStoppedTest(absltest.TestCase):
  def test_says_what_is_left_and_what_to_type(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    error = writing.WriteError(28, os.strerror(28), 'a/metrics.jsonl')
    self.assertEqual(
      writing.explain_stopped(error, root, '--resume'),
      'a/metrics.jsonl cannot be written (No space left on device); the run '
      'has no checkpoint yet; free some space and repeat the command with '
      '--resume',
    )
    (root / '40').mkdir()
    unwritten = checkpoints.SaveError('a/80 cannot be written (Input/output)')
    self.assertEqual(
      writing.explain_stopped(unwritten, root, ''),
      'a/80 cannot be written (Input/output); the checkpoint of step 40 is '
      'complete; fix that and repeat the command',
    )


if __name__ == '__main__':
  absltest.main()

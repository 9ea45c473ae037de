"""Tests of `experiments/running/records/records.py`."""

import pathlib
import subprocess
import tempfile
from unittest import mock

from absl.testing import absltest

from experiments.running.records import records
from tests import written_runs


class CommitTest(absltest.TestCase):
  """In a clone of its own, with one program and one result."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    here = self.root / 'experiments'
    here.mkdir()
    self.program, self.result = here / 'records.py', here / 'result.json'
    self.program.write_text('1\n')
    self.result.write_text('1\n')
    self.enterContext(mock.patch.object(records, '__file__', str(self.program)))

  def git(self, *args):
    who = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    subprocess.run(
      ['git', '-C', self.root, *who, *args], check=True, capture_output=True
    )

  def commit(self):
    self.git('init')
    self.git('add', '.')
    self.git('commit', '-m', 'x')

  def test_outside_of_a_clone(self):
    self.assertEqual(records.commit(), 'unknown')

  def test_results_do_not_count_as_edited(self):
    self.commit()
    clean = records.commit()
    self.assertRegex(clean, '^[0-9a-f]{7,}$')
    self.result.write_text('2\n')
    self.assertEqual(records.commit(), clean)

  def test_edited_and_new_programs_do(self):
    self.commit()
    clean = records.commit()
    new = self.root / 'new.py'
    new.write_text('1\n')
    self.assertEqual(records.commit(), f'{clean}-dirty')
    new.unlink()
    self.program.write_text('2\n')
    self.assertEqual(records.commit(), f'{clean}-dirty')


class OlderRunTest(absltest.TestCase):
  def test_british_names_of_version_0_1_are_read_as_those_of_now(self):
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    written_runs.write(workdir, 'run', label='d_psgd', losses=[1.0, 0.5])
    wanted = records.read_records(workdir / 'run')
    self.assertIn('modeled_seconds', wanted[0])
    for name in (records.METRICS, records.CONFIG):
      file = workdir / 'run' / name
      text = file.read_text().replace('modeled_seconds', 'modelled_seconds')
      text = text.replace('d_psgd', 'random_neighbour of a neighbourhood')
      text = text.replace('"neighbor"', '"neighbour"')  # codespell:ignore
      file.write_text(text)
    self.assertEqual(records.read_records(workdir / 'run'), wanted)
    config = records.read_config(workdir / 'run')
    self.assertEqual(config['label'], 'random_neighbor of a neighbourhood')


if __name__ == '__main__':
  absltest.main()

"""Tests of `prsgd_jax.programs`: console commands for the programs."""

import configparser
import pathlib
import runpy
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest

from prsgd_jax import programs

ROOT = pathlib.Path(__file__).parents[1]


def commands():
  """What setup.cfg declares: command -> function of `programs`."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  lines = config['options.entry_points']['console_scripts'].split('\n')
  return dict(line.split(' = ') for line in lines if line)


class ProgramsTest(absltest.TestCase):
  def test_every_command_runs_the_program_of_its_name(self):
    for command, target in commands().items():
      module, _, name = target.partition(':')
      self.assertEqual(module, 'prsgd_jax.programs')
      self.assertEqual(command, 'prsgd-' + name.replace('_', '-'))
      with (
        mock.patch.object(runpy, 'run_module') as run,
        mock.patch.object(sys, 'path', sys.path[:]),
      ):
        getattr(programs, name)()
      self.assertEqual(run.call_args.args, (f'experiments.{name}',))
      self.assertTrue((ROOT / 'experiments' / f'{name}.py').exists())

  def test_a_checkout_is_found_beside_the_package(self):
    self.assertEqual(programs.directory(), ROOT)

  def test_a_wheel_has_the_programs_inside_the_package(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    package = pathlib.Path(directory).resolve()
    experiments = package / '_programs' / 'experiments'
    experiments.mkdir(parents=True)
    (experiments / 'train.py').touch()
    here = str(package / 'programs.py')
    with mock.patch.object(programs, '__file__', here):
      self.assertEqual(programs.directory(), package / '_programs')

  def test_a_users_own_experiments_do_not_hide_the_programs(self):
    path = ['/mine', str(ROOT), '/other']
    with mock.patch.object(sys, 'path', path):
      programs.add_to_path()
      self.assertEqual(sys.path, [str(ROOT), '/mine', '/other'])
    mine = types.ModuleType('experiments')
    mine.__path__ = ['/mine/experiments']
    with (
      mock.patch.dict(sys.modules, experiments=mine),
      self.assertRaisesRegex(ImportError, 'already, from /mine/experiments; '),
    ):
      programs.add_to_path()

  def test_neither_is_one_line(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    here = str(pathlib.Path(directory) / 'programs.py')
    with (
      mock.patch.object(programs, '__file__', here),
      self.assertRaisesRegex(FileNotFoundError, 'install prsgd_jax again'),
    ):
      programs.directory()


if __name__ == '__main__':
  absltest.main()

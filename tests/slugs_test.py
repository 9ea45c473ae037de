"""Tests of `experiments/running/records/slugs.py`."""

import concurrent.futures
import pathlib
import tempfile

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments.running.flags import grids, run_specs
from experiments.running.records import slugs

LONG = '+'.join(map(str, range(1, 151)))


class ShortenTest(parameterized.TestCase):
  @parameterized.parameters('', 'a', 'pr_sgd-period4', 'x' * 100, '\u00e9' * 50)
  def test_short_names_stay(self, name):
    self.assertEqual(slugs.shorten(name), name)

  @parameterized.parameters('x' * 101, '\u00e9' * 51, LONG, '\u20ac' * 400)
  def test_long_ones_are_cut_and_differ(self, name):
    short = slugs.shorten(name)
    self.assertLessEqual(len(short.encode()), slugs.MOST_BYTES)
    self.assertRegex(short, '-[0-9a-f]{8}$')
    self.assertTrue(name.startswith(short[:-9]))
    self.assertNotEqual(short, slugs.shorten(name + 'x'))
    self.assertEqual(short, slugs.shorten(name))

  def test_name_is_one_component_of_a_path(self):
    short = slugs.shorten('text_file/a/b')
    self.assertNotIn('/', short)
    self.assertNotEqual(short, slugs.shorten('text_file_a/b'))

  def test_runs_and_points_of_a_grid_have_short_names(self):
    self.enterContext(flagsaver.flagsaver())
    for flag in flags.FLAGS:
      flags.FLAGS[flag].present = 0
    flags.FLAGS(['compare.py'])
    run = f'pr_sgd_time_varying,epoch_lengths={LONG}'
    (run_config,) = run_specs.parse_runs([run])
    self.assertLessEqual(len(run_config.slug()), 100)
    self.assertIn(LONG, run_config.label())
    found = grids.points([run], ['seed=0,1'], flags.FLAGS)
    names = {point.slug() for point in found}
    self.assertLen(names, 2)
    self.assertLessEqual(max(map(len, names)), 100)


class MakeDirectoryTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(root) / 'runs'

  def test_each_gets_its_own_at_once(self):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      made = list(
        pool.map(lambda _: slugs.make_directory(self.root, 'a'), range(40))
      )
    self.assertLen({path.name for path in made}, 40)
    self.assertTrue(all(path.is_dir() for path in made))
    self.assertIn(self.root / 'a', made)
    self.assertIn(self.root / 'a-40', made)

  def test_place_that_cannot_be_is_one_line(self):
    self.root.touch()
    with self.assertRaisesRegex(ValueError, 'runs/a cannot be created'):
      slugs.make_directory(self.root, 'a')


if __name__ == '__main__':
  absltest.main()

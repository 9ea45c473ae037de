"""Tests of the targets of `experiments/reproduce`, one table of all."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import matplotlib.figure

from experiments.reproduce import __main__ as reproduce
from experiments.reproduce import results_page
from experiments.reproduce.target import Setting
from prsgd_jax.datasets import DatasetError
from tests import binaries

TARGETS = reproduce.all_targets()
FULL = [name for name, target in TARGETS.items() if 'full' in target.scales]
KEPT = sorted(reproduce.RESULTS.glob('*.json'))


class TargetTest(parameterized.TestCase):
  @parameterized.parameters(*TARGETS)
  def test_is_named_as_its_module_and_says_where_it_stands(self, name):
    target = TARGETS[name]
    self.assertEqual(target.name, name)
    self.assertTrue(target.title)
    self.assertTrue(target.paper)
    self.assertTrue(target.scales)
    self.assertLessEqual(set(target.scales), {'cpu', 'full'})

  @parameterized.parameters(*FULL)
  def test_full_setting_starts_and_is_drawn(self, name):
    with tempfile.TemporaryDirectory() as root:
      setting = Setting('test', binaries.digits_dir(), pathlib.Path(root))
      try:
        outcome = TARGETS[name].measure(setting)
      except DatasetError as error:
        self.skipTest(str(error))
    data = json.loads(json.dumps(outcome.data))
    TARGETS[name].draw(data, matplotlib.figure.Figure())
    self.assertNotEmpty(outcome.claims)


class KeptTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not KEPT:
      self.skipTest('no outcome is kept: python -m experiments.reproduce')

  def test_figures_are_drawn_of_the_files_alone(self):
    for path in KEPT:
      with self.subTest(path.name), tempfile.TemporaryDirectory() as root:
        kept = json.loads(path.read_text())
        drawn = pathlib.Path(root) / 'figure.png'
        reproduce.draw(TARGETS[kept['name']], kept['data'], drawn)
        self.assertGreater(drawn.stat().st_size, 5000)

  def test_what_did_not_reproduce_says_what_was_tried(self):
    for path in KEPT:
      for claim in json.loads(path.read_text())['claims']:
        with self.subTest(f'{path.name}: {claim["says"]}'):
          self.assertIn(claim['reproduced'], ('yes', 'partly', 'no'))
          self.assertTrue(claim['measured'])
          if claim['reproduced'] != 'yes':
            self.assertTrue(claim['tried'])

  def test_page_has_all_of_them(self):
    page = results_page.format_page(
      results_page.read(reproduce.RESULTS), pathlib.Path('results/reproduce')
    )
    for path in KEPT:
      self.assertIn(f'results/reproduce/{path.stem}.png', page)


if __name__ == '__main__':
  absltest.main()

"""The README: its code runs, its table and its commands are true."""

import contextlib
import inspect
import io
import os
import pathlib
import re
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import algorithm_flags, readme, results
import prsgd_jax as pr
from tests import binaries

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
PROGRAMS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


class ReadmeTest(parameterized.TestCase):
  def run_program(self, index):
    names = {}
    directory = mock.patch.dict(
      os.environ, {'TFDS_DATA_DIR': binaries.digits_dir()}
    )
    out = io.StringIO()
    with directory, contextlib.redirect_stdout(out):
      exec(compile(PROGRAMS[index], f'README program {index}', 'exec'), names)
    return names, out.getvalue()

  def test_there_are_five_programs(self):
    self.assertLen(PROGRAMS, 5)

  def test_library_example_trains(self):
    names, out = self.run_program(0)
    losses = [float(x) for x in re.findall(r'loss (\S+)', out)]
    self.assertLen(losses, 10)
    self.assertLess(losses[-1], 0.05)
    test = pr.load_dataset('digits', binaries.digits_dir()).test
    logits = names['Net']().apply({'params': names['params']}, test['image'])
    accuracy = (np.argmax(logits, 1) == test['label']).mean()
    self.assertGreater(accuracy, 0.95)
    self.assertLess(PROGRAMS[0].strip().count('\n'), 35)

  def test_iterator_example_finds_the_slope(self):
    _, out = self.run_program(1)
    self.assertLess(float(out), 1e-3)

  def test_own_loop_example_finds_the_mean(self):
    names, out = self.run_program(2)
    self.assertAlmostEqual(float(out), (names['N'] - 1) / 2, places=4)

  def test_own_algorithm_example_is_a_chain(self):
    names, _ = self.run_program(3)
    self.assertIsInstance(names['algorithm'], pr.ReplicaTransformation)

  def test_own_stage_example_holds_the_replicas_together(self):
    names, _ = self.run_program(4)
    means = names['x'].mean(axis=1)
    self.assertAlmostEqual(float(means.mean()), 3.5, places=3)
    spread = means.max() - means.min()  # 7 without the exchange
    self.assertBetween(spread, 3.0, 6.0)
    self.assertTrue((np.diff(means) > 0).all())
    definition = PROGRAMS[4].partition('target =')[0].partition('def sparta')[2]
    lines = [line for line in definition.splitlines() if line.strip()]
    self.assertLessEqual(len(lines), 10)

  def test_table_of_algorithms_is_that_of_the_code(self):
    self.assertEqual(readme.with_table(TEXT), TEXT)
    for name in algorithm_flags.ALGORITHMS:
      self.assertIn(f'`{name}(tx', TEXT)

  def test_table_of_results_is_that_of_the_files(self):
    text = (ROOT / 'experiments' / 'README.md').read_text()
    self.assertEqual(results.with_table(text, results.read_results()), text)

  def test_files_that_are_named_exist(self):
    links = re.findall(r'\]\(([^)#:]+)\)', TEXT)
    flagfiles = re.findall(r'--flagfile=(\S+)', TEXT)
    self.assertNotEmpty(links)
    for name in (*links, *flagfiles):
      self.assertTrue((ROOT / name).exists(), name)

  def test_make_targets_that_are_named_exist(self):
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'^make (\w+)', TEXT, re.MULTILINE):
      self.assertRegex(makefile, rf'(?m)^{target}:')

  def test_everything_public_has_a_docstring(self):
    for name in pr.__all__:
      thing = getattr(pr, name)
      if inspect.isfunction(thing) or inspect.isclass(thing):
        self.assertTrue(inspect.getdoc(thing), name)


if __name__ == '__main__':
  absltest.main()

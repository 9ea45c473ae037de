"""The README: its code runs, its table and its commands are true."""

import contextlib
import inspect
import io
import os
import pathlib
import re
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments.running.flags import algorithm_flags
from experiments.running.logs import loggers
from experiments.tools import readme, results
import prsgd_jax as pr
from tests import binaries

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
PROGRAMS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


class ReadmeTest(parameterized.TestCase):
  def run_program(self, index, names=None):
    names = {} if names is None else names
    directory = mock.patch.dict(
      os.environ, {'TFDS_DATA_DIR': binaries.digits_dir()}
    )
    out = io.StringIO()
    with directory, contextlib.redirect_stdout(out):
      exec(compile(PROGRAMS[index], f'README program {index}', 'exec'), names)
    return names, out.getvalue()

  def test_there_are_nine_programs(self):
    self.assertLen(PROGRAMS, 9)

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
    self.save_and_resume(names)

  def save_and_resume(self, names):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(contextlib.chdir(directory))
    names, out = self.run_program(1, names)
    accuracy, rounds, sent = map(float, out.split())
    self.assertGreater(accuracy, 0.95)
    # 65 * 64 + 65 * 10 numbers of 4 bytes, in a ring of 8, every 4 steps.
    self.assertEqual(rounds, 550 // 4)
    self.assertEqual(sent, 137 * 2 * 7 / 8 * 4 * (65 * 64 + 65 * 10))
    self.assertEqual(int(names['state'].step[0]), 550)
    self.assertLess(PROGRAMS[1].strip().count('\n'), 25)

  def test_run_of_objects_writes_what_train_does(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(contextlib.chdir(directory))
    _, out = self.run_program(2)
    loss, sent = map(float, out.split())
    self.assertLess(loss, 1e-3)
    self.assertEqual(sent, 25 * 2 * 7 / 8 * 3 * 4)
    self.assertTrue(pathlib.Path('line.png').exists())
    self.assertTrue(pathlib.Path('runs/line/summary.json').exists())

  def test_iterator_example_finds_the_slope(self):
    _, out = self.run_program(3)
    self.assertLess(float(out), 1e-3)

  def test_own_loop_example_finds_the_mean(self):
    names, out = self.run_program(4)
    self.assertAlmostEqual(float(out), (names['N'] - 1) / 2, places=4)

  def test_slowmo_is_that_of_the_library(self):
    names, _ = self.run_program(5)
    ours = pr.slowmo(
      names['tx'], learning_rate=0.1, period=12, slow_momentum=0.7
    )
    x, wanted = (
      pr.testing.check_laws(algorithm).x
      for algorithm in (names['local_sgd_with_slowmo'], ours)
    )
    np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-12)

  @parameterized.parameters('push_sum_with_slowmo', 'in_codes')
  def test_products_of_slowmo_obey_the_laws(self, name):
    names, _ = self.run_program(5)
    report = pr.testing.check_laws(names[name])
    np.testing.assert_array_equal(report.x[12], [report.x[12, 0]] * 8)

  def test_a_new_algorithm_takes_twenty_lines(self):
    _, out = self.run_program(6)
    error, rounds, sent = map(float, out.split())
    self.assertLess(error, 1e-12)
    # Six numbers in float64, all-reduced in 6 of 24 steps.
    self.assertEqual((rounds, sent), (6, 6 * 2 * 7 / 8 * 48))
    lines = PROGRAMS[6].partition('def soft_averaging')[2].splitlines()
    self.assertLessEqual(len([x for x in lines if x.strip(' )')]), 24)
    self.assertNotRegex(PROGRAMS[6], r'prsgd_jax\.\w|\b_\w')

  def test_logger_sends_the_records(self):
    wandb = mock.Mock()
    sys.modules['wandb'] = wandb
    self.addCleanup(sys.modules.pop, 'wandb')
    names, _ = self.run_program(7)
    run = loggers.Run(pathlib.Path('runs/a'), 'a', {'lr': 0.1}, 0, 9)
    logger = names['wandb_logger'](run)
    logger.write({'step': 4, 'loss': 0.5})
    logger.close()
    session = wandb.init.return_value
    session.log.assert_called_once_with({'step': 4, 'loss': 0.5}, step=4)
    session.finish.assert_called_once_with()

  def test_model_of_nnx_is_trained(self):
    _, out = self.run_program(8)
    self.assertGreater(float(out), 0.93)

  def test_table_of_algorithms_is_that_of_the_code(self):
    self.assertEqual(readme.with_table(TEXT), TEXT)
    for name in algorithm_flags.ALGORITHMS:
      self.assertIn(f'| [`{name}`](docs/algorithms/{name}.md) |', TEXT)

  @parameterized.parameters(
    # Three authors or more, two, and a paper that is not on arXiv.
    ('qsgd', '[Alistarh et al. 2017](https://arxiv.org/abs/1610.02132)'),
    ('hier_avg', '[Zhou and Cong 2019](https://arxiv.org/abs/1903.05133)'),
    ('bmuf', 'Chen and Huo 2016'),
    ('local_sgd', '[Zhou and Cong 2018](https://arxiv.org/abs/1708.01012)'),
  )
  def test_paper_is_the_first_reference(self, name, paper):
    self.assertEqual(readme.paper(name), paper)

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

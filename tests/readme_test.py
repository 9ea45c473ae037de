"""The README: its code runs, its table and its commands are true."""

import ast
import contextlib
import inspect
import io
import itertools
import os
import pathlib
import re
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.running.flags import algorithm_flags
from experiments.tools import readme, results
import prsgd_jax as pr
from tests import binaries, docs_test

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
PAGES = sorted(
  str(page.relative_to(ROOT))
  for page in (
    *ROOT.glob('*.md'),
    *ROOT.glob('experiments/*.md'),
    *ROOT.glob('docs/*.md'),
    *ROOT.glob('docs/*/*.md'),
  )
)
PROGRAMS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


class ReadmeTest(parameterized.TestCase):
  def test_quick_start_trains(self):
    names, out = {}, io.StringIO()
    directory = mock.patch.dict(os.environ, TFDS_DATA_DIR=binaries.digits_dir())
    with directory, contextlib.redirect_stdout(out):
      for program in PROGRAMS[:2]:
        exec(compile(program, 'a program of the README', 'exec'), names)
    accuracy, sent = map(float, out.getvalue().split())
    self.assertGreater(accuracy, 0.95)
    # 200 steps are 50 averages of an MLP's parameters in a ring of 8.
    self.assertEqual(sent, 50 * 2 * 7 / 8 * 4 * (65 * 128 + 129 * 10))
    self.assertEqual(names['metrics']['loss'].shape, (200, 8))

  def test_first_training_takes_four_statements(self):
    train = ast.parse(PROGRAMS[1].partition('\nprint')[0])
    self.assertLen(train.body, 4)
    self.assertLess(PROGRAMS[1].count('\n'), 15)

  def test_every_program_is_on_a_page_whose_programs_are_run(self):
    pages = ''.join(itertools.chain(*docs_test.PROGRAMS.values()))
    self.assertLen(PROGRAMS, 4)
    for program in PROGRAMS:
      self.assertIn(program, pages)

  def test_a_new_algorithm_takes_few_lines_and_public_names(self):
    program = PROGRAMS[3]
    lines = program.partition('def soft_averaging')[2].splitlines()
    self.assertLessEqual(len([x for x in lines if x.strip(' )')]), 24)
    self.assertNotRegex(program, r'prsgd_jax\.\w|\b_\w')

  def test_it_can_be_read_in_a_minute(self):
    self.assertLess(TEXT.count('\n'), 250)

  def test_tables_are_those_of_the_code_and_of_the_results(self):
    self.assertEqual(readme.with_tables(TEXT), TEXT)
    for name in algorithm_flags.ALGORITHMS:
      self.assertIn(f'[`{name}`](docs/algorithms/{name}.md)', TEXT)

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

  def test_files_that_are_linked_exist(self):
    links = re.findall(r'\]\(([^)#:]+)\)', TEXT)
    self.assertNotEmpty(links)
    for name in links:
      self.assertTrue((ROOT / name).exists(), name)

  @parameterized.parameters(*PAGES)
  def test_files_that_are_named_exist(self, page):
    named = re.findall(
      r'(?<![\w/.])(?:docs|experiments|prsgd_jax|tests)/[\w/]+\.\w+',
      (ROOT / page).read_text(),
    )
    for name in named:
      self.assertTrue((ROOT / name).exists(), name)

  @parameterized.parameters(*PAGES)
  def test_make_targets_that_are_named_exist(self, page):
    makefile = (ROOT / 'Makefile').read_text()
    named = re.findall(
      r'(?m)(?:^|`)make (\w+)(?=[` \n])', (ROOT / page).read_text()
    )
    for target in named:
      self.assertRegex(makefile, rf'(?m)^{target}:')

  def test_everything_public_has_a_docstring(self):
    for name in pr.__all__:
      thing = getattr(pr, name)
      if inspect.isfunction(thing) or inspect.isclass(thing):
        self.assertTrue(inspect.getdoc(thing), name)


if __name__ == '__main__':
  absltest.main()

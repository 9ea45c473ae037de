"""Tests of `experiments/running/process/exit_codes.py`: one table for all."""

import pathlib
import re

from absl.testing import absltest

from experiments import compare, costs, train
from experiments.running.process import exit_codes
from tests import binaries

DOCS = pathlib.Path(__file__).parents[1] / 'docs'


class ExitCodesTest(absltest.TestCase):
  def test_help_lists_the_codes_of_a_program_that_trains(self):
    for binary in (train, compare):
      page = binaries.call(binary, '--help').out
      _, _, listed = page.partition('Exit codes:\n')
      self.assertEqual(listed.splitlines(), exit_codes.lines())
    self.assertFalse('Exit codes:' in binaries.call(costs, '--help').out)

  def test_documentation_lists_the_same_codes(self):
    page = (DOCS / 'command_line.md').read_text()
    _, _, rest = page.partition('## Exit codes')
    table = rest.partition('\n## ')[0]
    listed = [int(code) for code in re.findall(r'(?m)^\| (\d+) \|', table)]
    self.assertEqual(listed, list(exit_codes.MEANINGS))
    for code in exit_codes.REQUEUE:
      self.assertRegex(table, rf'(?m)^\| {code} \|.*requeue')
      self.assertIn('requeue', exit_codes.MEANINGS[code])


if __name__ == '__main__':
  absltest.main()

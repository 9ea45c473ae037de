"""Every binary, started from the shell by itself."""

import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

from experiments.running.flags import cli

BINARIES = ('train', 'compare', 'prepare_data', 'benchmark', 'tools/results')


class BinaryTest(parameterized.TestCase):
  @parameterized.parameters(*BINARIES)
  def test_help_says_what_it_is_for(self, name):
    script = pathlib.Path(cli.__file__).parents[2] / f'{name}.py'
    done = subprocess.run(
      [sys.executable, script, '--help'],
      capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    self.assertNotIn('Traceback', done.stderr)
    first_line = script.read_text().split('\n')[0].lstrip('r').strip('"')
    self.assertIn(first_line, done.stdout)
    self.assertIn('--data_dir', done.stdout)


if __name__ == '__main__':
  absltest.main()

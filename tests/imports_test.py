"""What `import prsgd_jax` brings along."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]
_TIMEOUT = 60  # seconds, for a process that hangs

# Imported by the functions that use them, because each costs 0.1 s or more.
LAZY = (
  'matplotlib',
  'networkx',
  'orbax',
  'pooch',
  'scipy',
  'tensorflow_datasets',
)


class ImportTest(absltest.TestCase):
  def test_leaves_slow_packages_to_the_functions_that_use_them(self):
    code = (
      'import sys, prsgd_jax; from prsgd_jax.data import datasets;'
      'print(*{name.split(".")[0] for name in sys.modules})'
    )
    done = subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      timeout=_TIMEOUT,
      check=True,
    )
    imported = done.stdout.split()
    self.assertIn('prsgd_jax', imported)
    self.assertEmpty(sorted({*LAZY} & {*imported}))


if __name__ == '__main__':
  absltest.main()

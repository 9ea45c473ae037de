"""What `import prsgd_jax` and train.py import, and the first data set."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]
_TIMEOUT = 60  # seconds, for a process that hangs

# Imported by the functions that use them, because each costs 0.1 s or more.
LAZY = (
  'grain',
  'matplotlib',
  'networkx',
  'orbax',
  'pandas',
  'pooch',
  'scipy',
  'tensorboardX',
  'tensorflow_datasets',
)


CODE = """
import sys
import experiments.train
import prsgd_jax.engine.checkpoints
from prsgd_jax.data.datasets import load_dataset

print(*{name.split('.')[0] for name in sys.modules})
load_dataset('digits', sys.argv[1])
assert 'tensorflow' not in sys.modules
"""


class ImportTest(absltest.TestCase):
  def test_leaves_slow_packages_to_the_functions_that_use_them(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    # A tensorflow whose import does not pass unnoticed.
    (root / 'tensorflow.py').write_text('raise SystemExit("tensorflow!")')
    path = os.pathsep.join(map(str, (root, _ROOT)))
    done = subprocess.run(
      [sys.executable, '-c', CODE, str(root / 'data')],
      env={**os.environ, 'PYTHONPATH': path},
      capture_output=True,
      text=True,
      timeout=_TIMEOUT,
      check=False,
    )
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    self.assertEqual(done.stdout.count('\n'), 1)  # nothing but our line
    imported = done.stdout.split()
    self.assertIn('prsgd_jax', imported)
    self.assertEmpty(sorted({*LAZY} & {*imported}))


if __name__ == '__main__':
  absltest.main()

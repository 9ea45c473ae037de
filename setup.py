"""Put the programs into the wheel, where their name hides nobody's.

A wheel has `experiments/` in `prsgd_jax/_programs/experiments`, because a
top-level package of that name would hide a user's own folder.
`prsgd_jax.programs` finds it there and in a checkout.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = ('*.py', '*.flags', '*.j2', '*.sbatch', '*.sh', '*.yaml')


class BuildWithPrograms(build_py):
  """Copy `experiments/` without its results and notebooks."""

  def run(self) -> None:
    super().run()
    if self.editable_mode:
      return
    root = pathlib.Path(__file__).parent
    target = pathlib.Path(self.build_lib, 'prsgd_jax', '_programs')
    for pattern in PATTERNS:
      for file in (root / 'experiments').rglob(pattern):
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


setup(cmdclass={'build_py': BuildWithPrograms})

"""The programs of `experiments/` as console commands: `prsgd-train` and others.

They run from a checkout or from a wheel, which has them in `_programs`, because
a top-level package `experiments` would hide a user's own.
"""

from collections.abc import Callable
import pathlib
import runpy
import sys


def directory() -> pathlib.Path:
  """Return the directory that has `experiments/`.

  Raises:
    FileNotFoundError: if neither the installation nor a checkout has it.

  Example:
    >>> (directory() / 'experiments' / 'train.py').exists()
    True
  """
  package = pathlib.Path(__file__).resolve().parent
  for root in (package / '_programs', package.parent):
    if (root / 'experiments' / 'train.py').exists():
      return root
  raise FileNotFoundError(
    f'expected experiments/ in {package / "_programs"} or beside {package}; '
    'install prsgd_jax again, from a wheel or by pip install -e'
  )


def add_to_path() -> None:
  """Make `import experiments` find the programs of this installation.

  For a program of your own that uses them, such as
  `experiments.running.execution.objects`.

  Raises:
    FileNotFoundError: as `directory` does.
    ImportError: if another package `experiments` is imported already.
  """
  root = str(directory())
  places = list(getattr(sys.modules.get('experiments'), '__path__', []))
  if places and str(pathlib.Path(root, 'experiments')) not in places:
    raise ImportError(
      f'another package experiments is imported already, from {places[0]}; '
      'call prsgd_jax.programs.add_to_path() before'
    )
  # First, because a folder of the user may have a package of this name.
  sys.path[:] = [root, *(place for place in sys.path if place != root)]


def _program(name: str) -> Callable[[], None]:
  def main() -> None:
    add_to_path()
    runpy.run_module(f'experiments.{name}', run_name='__main__', alter_sys=True)

  return main


train = _program('train')
compare = _program('compare')
sweep = _program('sweep')
plot = _program('plot')
report = _program('report')
costs = _program('costs')
launch = _program('launch')
prepare_data = _program('prepare_data')

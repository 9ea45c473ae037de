"""What the pages take from the rest of the project.

The notebooks are shown with the outputs that are stored in them, and the table
of the benchmark is made of the file that the benchmark wrote. Both are put
where Sphinx finds them before it reads its sources, and are not kept twice in
the repository.
"""

import json
import pathlib
from typing import Any

from sphinx.application import Sphinx

LOOPS = {
  'engine': 'engine',
  'scanned_by_hand': 'scanned by hand',
  'stepped_by_hand': 'stepped by hand',
}
MIB = 2**20


def benchmark(measured: dict[str, Any]) -> str:
  """Return the table of a file of `experiments/benchmark.py`, in Markdown.

  Args:
    measured: the contents of the file.
  """
  speeds = [f'{loop}, steps/s' for loop in LOOPS.values()]
  head = ['case', *speeds, 'ratio', 'first step, s', 'memory, MiB']
  rows = [head, ['---', *['---:'] * (len(head) - 1)]]
  for name, case in measured['cases'].items():
    speeds = [_number(case['steps_per_second'][loop]) for loop in LOOPS]
    seconds = [f'{case["seconds_to_first_step"][loop]:.1f}' for loop in LOOPS]
    memory = [f'{case["bytes_per_device"][loop] / MIB:.1f}' for loop in LOOPS]
    ratio = f'{case["ratio"]:.3f}'
    rows.append(
      [f'`{name}`', *speeds, ratio, ' / '.join(seconds), ' / '.join(memory)]
    )
  machine = measured['machine']
  words = (
    f'{machine["cpus"]} {machine["processor"]} {machine["device"]} cores, '
    f'JAX {machine["jax"]}, Python {machine["python"]}, '
    f'commit {machine["commit"]}.'
  )
  table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
  return f'{table}\n\nMachine: {words}\n'


def _number(speed: float) -> str:
  return f'{speed:.1f}' if speed < 10 else f'{speed:.0f}'


def copy(docs: pathlib.Path) -> None:
  """Copy the notebooks, and write the table of the benchmark.

  Args:
    docs: the directory of the pages, inside the project.
  """
  experiments = docs.parent / 'experiments'
  notebooks, generated = docs / 'notebooks', docs / '_generated'
  notebooks.mkdir(exist_ok=True)
  generated.mkdir(exist_ok=True)
  for path in sorted((experiments / 'notebooks').glob('*.ipynb')):
    _update(notebooks / path.name, path.read_text())
  measured = json.loads(
    (experiments / 'results' / 'benchmark_cpu.json').read_text()
  )
  _update(generated / 'benchmark.md', benchmark(measured))


def _update(path: pathlib.Path, text: str) -> None:
  """Write a file if its text differs: else its page is not built again."""
  if not path.exists() or path.read_text() != text:
    path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
  """Copy at once: Sphinx has not looked for its sources yet."""
  copy(pathlib.Path(app.srcdir))
  return {'version': '1', 'parallel_read_safe': True}

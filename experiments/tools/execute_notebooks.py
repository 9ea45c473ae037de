"""Run the notebooks and write their outputs into them.

  python experiments/tools/execute_notebooks.py [NOTEBOOK ...]

By default it runs all notebooks in `experiments/notebooks`. Each runs in its
own kernel and in its own directory. A notebook that fails is not changed.

Outputs are written without times, versions and warnings, so that equal outputs
give equal files. Warnings are printed on stderr. A digest of the code is also
written, from which a test detects outdated outputs.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import hashlib

import nbclient
from nbclient.exceptions import CellTimeoutError
import nbformat

from experiments.running.flags import cli
from experiments.running.process import messages
from experiments.running.records import writing

NOTEBOOKS = pathlib.Path(__file__).parents[1] / 'notebooks'
# Kernel metadata, as written by Colab and Jupyter.
METADATA = {
  'kernelspec': {
    'display_name': 'Python 3',
    'language': 'python',
    'name': 'python3',
  },
  'language_info': {'name': 'python'},
}
CELL_SECONDS = 600


def main(*paths: str) -> None:
  for path in map(pathlib.Path, paths or sorted(NOTEBOOKS.glob('*.ipynb'))):
    print(f'== {path.name}', flush=True)
    with cli.one_line_errors(OSError, nbformat.reader.NotJSONError):
      notebook = nbformat.read(path, as_version=4)
    # An error of a cell keeps its traceback, because it is in the notebook.
    with cli.one_line_errors(CellTimeoutError):
      warnings = execute(notebook, path.parent)
    if warnings:
      messages.warn(f'{path.name}: {warnings}')
    writing.write_text(path, nbformat.writes(notebook) + '\n')


def execute(notebook: nbformat.NotebookNode, directory: pathlib.Path) -> str:
  """Run all cells in order and store their stdout and figures.

  Args:
    notebook: notebook to run; its cells are changed.
    directory: working directory of the kernel.

  Returns:
    The text that the cells wrote to stderr.

  Raises:
    nbclient.exceptions.CellExecutionError: if a cell fails.
    nbclient.exceptions.CellTimeoutError: if a cell does not end in time.
  """
  client = nbclient.NotebookClient(
    notebook,
    timeout=CELL_SECONDS,
    kernel_name=METADATA['kernelspec']['name'],
    record_timing=False,
    coalesce_streams=True,
    extra_arguments=['--log-level=ERROR'],
    resources={'metadata': {'path': str(directory)}},
  )
  client.execute()
  warnings = []
  for cell in notebook.cells:
    cell.metadata.clear()
    if cell.cell_type == 'code':
      warnings += [o.text for o in cell.outputs if o.get('name') == 'stderr']
      cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
  digest = {'prsgd_jax': {'code': code_digest(notebook)}}
  notebook.metadata = nbformat.from_dict({**METADATA, **digest})
  return ''.join(warnings)


def code_digest(notebook: nbformat.NotebookNode) -> str:
  """Return a digest of the code cells, in order."""
  code = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
  return hashlib.sha256('\0'.join(code).encode()).hexdigest()


if __name__ == '__main__':
  cli.run(main)

"""The notebooks: well-formed, tidy, and with the outputs of their own code."""

import ast
import configparser
import copy
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest, parameterized
from IPython.core.inputtransformer2 import TransformerManager
import nbformat

from experiments.tools import execute_notebooks

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted(execute_notebooks.NOTEBOOKS.glob('*.ipynb'))
MAX_BYTES = 400_000
# Paths of a machine; the notebooks name relative paths only.
MACHINE_PATH = re.compile(
  r'(?<![\w.:/])/(?:content|home|Users|root|tmp|work|opt|usr|var|mnt)\b'
)
# Import names of distributions that are called otherwise.
DISTRIBUTIONS = {'orbax': 'orbax-checkpoint'}


def read(path):
  return nbformat.read(path, as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def texts(notebook):
  """Return all text: sources and printed outputs."""
  for cell in notebook.cells:
    yield cell.source
    for output in cell.get('outputs', []):
      yield output.get('text', '')
      yield str(output.get('data', {}).get('text/plain', ''))


def imported(notebook):
  """The packages that the code imports."""
  names = set()
  for cell in code_cells(notebook):
    plain = TransformerManager().transform_cell(cell.source)
    for node in ast.walk(ast.parse(plain)):
      if isinstance(node, ast.Import):
        names |= {alias.name.partition('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add((node.module or '').partition('.')[0])
  return names


def declared():
  """The distributions that the package and its notebooks require."""
  return extra('install_requires', 'options') | extra('notebooks')


def extra(name, section='options.extras_require'):
  """The distributions of a list in setup.cfg, without versions."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  lines = config[section][name].splitlines()
  return {re.split(r'[<>=!;\[ ]', line)[0] for line in lines if line.strip()}


def problems(notebook):
  """What a reader or another machine would stumble on, in words."""
  found = []
  try:
    nbformat.validate(notebook)
  except nbformat.ValidationError as error:
    found.append(f'not a notebook: {error.message}')
  kernel = notebook.metadata.get('kernelspec', {}).get('name')
  if kernel != 'python3':
    found.append(f'the kernel {kernel}, which others do not have')
  code = code_cells(notebook)
  counts = [cell.execution_count for cell in code]
  if counts != list(range(1, len(code) + 1)):
    found.append(f'cells were run in the order {counts}')
  outputs = [output for cell in code for output in cell.outputs]
  if any(
    o.output_type == 'error' or o.get('name') == 'stderr' for o in outputs
  ):
    found.append('an error or a warning among the outputs')
  if not any('image/png' in o.get('data', {}) for o in outputs):
    found.append('no picture')
  digest = notebook.metadata.get('prsgd_jax', {}).get('code')
  if digest != execute_notebooks.code_digest(notebook):
    found.append('outputs of other code')
  found += [
    f'the path {match.group()}'
    for text in texts(notebook)
    for match in MACHINE_PATH.finditer(text)
  ]
  size = len(nbformat.writes(notebook))
  if size > MAX_BYTES:
    found.append(f'{size} bytes, more than {MAX_BYTES}')
  needed = imported(notebook) - sys.stdlib_module_names - {'prsgd_jax'}
  found += [
    f'the import {name}, which is no declared dependency'
    for name in sorted(needed)
    if DISTRIBUTIONS.get(name, name) not in declared()
  ]
  return found


def _spoil_kernel(notebook):
  notebook.metadata.kernelspec.name = 'my-env'


def _spoil_order(notebook):
  code_cells(notebook)[1].execution_count = 7


def _spoil_code(notebook):
  code_cells(notebook)[-1].source += '\nprint(1)'


def _spoil_output(notebook):
  code_cells(notebook)[0].outputs.append(
    nbformat.v4.new_output('stream', name='stderr', text='Warning')
  )


def _spoil_pictures(notebook):
  for cell in code_cells(notebook):
    cell.outputs = []


def _spoil_path(notebook):
  notebook.cells[0].source += '\nIn /home/someone/data.'


def _spoil_import(notebook):
  code_cells(notebook)[1].source += '\nimport torch'


def _spoil_size(notebook):
  notebook.cells[0].source += ' ' * MAX_BYTES


def _spoil_cell(notebook):
  notebook.cells[0].cell_type = 'prose'


class NotebooksTest(parameterized.TestCase):
  def test_there_are_four(self):
    self.assertLen(PATHS, 4)

  @parameterized.parameters(*PATHS)
  def test_has_no_problems(self, path):
    self.assertEqual(problems(read(path)), [])

  @parameterized.parameters(*PATHS)
  def test_is_written_as_the_script_writes_it(self, path):
    self.assertEqual(path.read_text(), nbformat.writes(read(path)) + '\n')

  @parameterized.parameters(*PATHS)
  def test_installs_first_and_takes_the_devices_there_are(self, path):
    first, second = code_cells(read(path))[:2]
    self.assertIn("if find_spec('prsgd_jax') is None:\n", first.source)
    self.assertIn('  %pip install --quiet {SOURCE} ', first.source)
    extras = first.source.partition("EXTRAS = '")[2].partition("'")[0]
    needed = (extra('data') | extra('graphs')) - {'grain'}  # none streams data
    self.assertLessEqual(needed, {*extras.split()})
    self.assertIn('import prsgd_jax as pr\n', second.source)
    code = '\n'.join(cell.source for cell in code_cells(read(path)))
    self.assertRegex(code, r'pr\.trainer\((?s:.+?)num_replicas=\w+')
    self.assertNotIn('num_devices=', code)

  @parameterized.parameters(*PATHS)
  def test_is_named_in_the_readme(self, path):
    link = f'({path.relative_to(ROOT).as_posix()})'
    self.assertIn(link, (ROOT / 'README.md').read_text())

  @parameterized.parameters(['check'], ['format', '--check'])
  def test_ruff_is_content(self, *command):
    done = subprocess.run(
      [sys.executable, '-m', 'ruff', *command, execute_notebooks.NOTEBOOKS],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

  @parameterized.parameters(
    (_spoil_kernel, 'the kernel my-env'),
    (_spoil_order, 'cells were run in the order'),
    (_spoil_code, 'outputs of other code'),
    (_spoil_output, 'a warning'),
    (_spoil_pictures, 'no picture'),
    (_spoil_path, 'the path /home'),
    (_spoil_import, 'the import torch'),
    (_spoil_size, 'more than 400000'),
    (_spoil_cell, 'not a notebook'),
  )
  def test_problems_are_found(self, spoil, expected):
    spoilt = copy.deepcopy(read(PATHS[0]))
    spoil(spoilt)
    self.assertIn(expected, '\n'.join(problems(spoilt)))


if __name__ == '__main__':
  absltest.main()

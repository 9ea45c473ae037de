"""Running notebooks: the outputs that are written, and the ones omitted."""

import contextlib
import io
import pathlib
import tempfile

from absl.testing import absltest
from nbclient.exceptions import CellExecutionError
import nbformat

from experiments.tools import execute_notebooks

SPEAKS = "import sys\nprint(6 * 7)\nprint('careful', file=sys.stderr)"


def write(path, *code):
  """A notebook as an editor leaves it: with a kernel and outputs of its own."""
  notebook = nbformat.v4.new_notebook(
    cells=[
      nbformat.v4.new_code_cell(source, id=f'cell-{i}')
      for i, source in enumerate(code)
    ]
  )
  notebook.cells[0].metadata['collapsed'] = True
  notebook.cells[0].execution_count = 12
  notebook.metadata['language_info'] = {'name': 'python', 'version': '2.7'}
  nbformat.write(notebook, path)


class ExecuteNotebooksTest(absltest.TestCase):
  def new_path(self):
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    return pathlib.Path(directory.name) / 'one.ipynb'

  def test_keeps_what_the_code_says_and_nothing_else(self):
    path = self.new_path()
    write(path, SPEAKS, 'import os\nos.path.exists("one.ipynb")')
    warned = io.StringIO()
    with contextlib.redirect_stderr(warned):
      execute_notebooks.main(str(path))
    self.assertIn('one.ipynb: careful', warned.getvalue())
    notebook = nbformat.read(path, as_version=4)
    first, second = notebook.cells
    self.assertEqual([o.text for o in first.outputs], ['42\n'])
    self.assertEqual(second.outputs[0].data['text/plain'], 'True')
    self.assertEqual([first.execution_count, second.execution_count], [1, 2])
    self.assertEqual([first.metadata, second.metadata], [{}, {}])
    digest = {'code': execute_notebooks.code_digest(notebook)}
    self.assertEqual(
      notebook.metadata, {**execute_notebooks.METADATA, 'prsgd_jax': digest}
    )

  def test_one_that_fails_is_left_as_it_was(self):
    path = self.new_path()
    write(path, SPEAKS, '1 / 0')
    before = path.read_text()
    with self.assertRaisesRegex(CellExecutionError, 'ZeroDivisionError'):
      execute_notebooks.main(str(path))
    self.assertEqual(path.read_text(), before)

  def test_what_is_no_notebook_is_one_line(self):
    path = self.new_path()
    path.write_text('hello')
    said = io.StringIO()
    with contextlib.redirect_stderr(said), self.assertRaises(SystemExit):
      execute_notebooks.main(str(path))
    self.assertEqual(said.getvalue().count('\n'), 1)
    self.assertIn('error', said.getvalue())

  def test_digest_is_of_the_code_alone(self):
    def digest(*sources):
      cells = [nbformat.v4.new_code_cell(source) for source in sources]
      return execute_notebooks.code_digest(
        nbformat.v4.new_notebook(cells=cells)
      )

    self.assertEqual(digest('a = 1', 'b = 2'), digest('a = 1', 'b = 2'))
    self.assertNotEqual(digest('a = 1', 'b = 2'), digest('b = 2', 'a = 1'))
    self.assertNotEqual(digest('a = 1', 'b = 2'), digest('a = 1b = 2'))

  def test_digest_leaves_out_prose_and_outputs(self):
    code = nbformat.v4.new_code_cell('a = 1')
    prose = nbformat.v4.new_markdown_cell('b = 2')
    notebook = nbformat.v4.new_notebook(cells=[code])
    before = execute_notebooks.code_digest(notebook)
    notebook.cells.append(prose)
    code.outputs.append(nbformat.v4.new_output('stream', text='1'))
    self.assertEqual(execute_notebooks.code_digest(notebook), before)


if __name__ == '__main__':
  absltest.main()

"""Imports go one way between the rooms of the library and of experiments."""

import ast
import pathlib

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = (
  'system_errors', 'versions', 'tree_types', 'names', 'base', 'checks',
  'schedules', 'tracing', 'ledger', 'mixing', 'optimizers', 'stages',
  'faults', 'algorithms', 'data', 'models', 'engine', 'science', 'testing',
  'programs',
)  # fmt: skip
RUNNING = ('process', 'records', 'flags', 'logs', 'execution')


def imports(file):
  """The modules that a file imports, in full."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def rooms_imported(package):
  """(file, its room, a room that it imports), by the parts of a package."""
  root = ROOT / package.replace('.', '/')
  for file in root.rglob('*.py'):
    room = file.relative_to(root).parts[0].removesuffix('.py')
    for name in imports(file):
      if name.startswith(f'{package}.'):
        yield file.name, room, name[len(package) + 1 :].partition('.')[0]


class RoomsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('prsgd_jax', LIBRARY), ('experiments.running', RUNNING)
  )
  def test_imports_go_one_way(self, package, order):
    seen = set()
    for file, room, other in rooms_imported(package):
      if room in ('__init__', '__main__'):
        continue
      seen |= {room}
      self.assertIn(room, order)
      with self.subTest(file=file, imports=other):
        self.assertLessEqual(order.index(other), order.index(room))
    self.assertEqual(seen - {*order}, set())

  def test_the_library_needs_no_experiments_and_no_tests(self):
    for file in (ROOT / 'prsgd_jax').rglob('*.py'):
      roots = {name.partition('.')[0] for name in imports(file)}
      self.assertFalse(roots & {'experiments', 'tests'}, file)

  def test_a_program_is_imported_by_programs_and_tools_only(self):
    programs = {p.stem for p in (ROOT / 'experiments').glob('[!_]*.py')}
    for room in ('running', 'papers'):
      for file in (ROOT / 'experiments' / room).rglob('*.py'):
        found = {
          name.split('.')[1]
          for name in imports(file)
          if name.startswith('experiments.')
        }
        self.assertEmpty(found & programs, file)


if __name__ == '__main__':
  absltest.main()

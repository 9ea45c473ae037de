"""Tests of `experiments/tools/tables.py`, the one writer of tables."""

import csv
import doctest
import math
import pathlib
import re

from absl.testing import absltest

from experiments.tools import tables
from experiments.tools.tables import Column
import prsgd_jax as pr

ROWS = [{'label': 'a|b', 'loss': 0.25, 'step': 3}, {'label': 'x', 'step': 200}]
COLUMNS = (
  Column('label', 'method'),
  Column('loss', show='{:.3f}'.format, is_number=True),
  Column('step', is_number=True),
)


class TablesTest(absltest.TestCase):
  def test_examples(self):
    self.assertEqual(doctest.testmod(tables).failed, 0)

  def test_a_bar_ends_no_cell_of_markdown(self):
    _, rule, first, second = tables.markdown(ROWS, COLUMNS).splitlines()
    self.assertEqual(rule, '|---|---:|---:|')
    self.assertEqual(first, r'| a\|b | 0.250 | 3 |')
    self.assertEqual(second, '| x |  | 200 |')

  def test_columns_are_aligned_for_a_terminal(self):
    text = tables.aligned(ROWS, COLUMNS)
    self.assertNotIn('|---', text)
    _, rule, first, second = text.splitlines()
    ends = [match.end() for match in re.finditer('-+', rule)]
    self.assertEqual(ends[-1], len(first))
    self.assertEqual(first[: ends[1]].split(), ['a|b', '0.250'])
    self.assertEqual(len(second), len(first))  # numbers end at the right

  def test_a_terminal_gets_narrow_columns(self):
    rows = [{'label': 'word ' * 20, 'loss': 0.25}]
    titled = Column('loss', 'a long title', show=str, is_number=True)
    text = tables.aligned(rows, (COLUMNS[0], titled, COLUMNS[2]))
    self.assertNotIn('step', text)  # no row has it
    self.assertLess(max(map(len, text.splitlines())), 56)
    self.assertEqual(text.split().count('word'), 20)
    self.assertRegex(text, r'(?m) a$')  # of the heading, on three lines

  def test_a_table_without_rows_has_its_head(self):
    text = tables.markdown([], COLUMNS)
    self.assertIn('method', text)
    self.assertIn('|---|---:|---:|', text)

  def test_csv_is_read_back(self):
    rows = [{'long': 'x,"y', 'step': 2**60}, {'loss': 0.1 + 0.2, 'on': True}]
    rows.append({'loss': math.nan, 'decided': [{'bytes': 1}], 'on': None})
    text = tables.csv(rows, last=['long', 'never'])
    found = list(csv.DictReader(text.splitlines()))
    self.assertEqual(list(found[0]), ['step', 'loss', 'on', 'decided', 'long'])
    self.assertEqual((found[0]['long'], found[0]['step']), ('x,"y', str(2**60)))
    self.assertEqual(float(found[1]['loss']), 0.1 + 0.2)
    self.assertEqual((found[1]['on'], found[1]['step']), ('True', ''))
    self.assertEqual((found[2]['loss'], found[2]['on']), ('nan', ''))
    self.assertEqual(found[2]['decided'], '[{"bytes": 1}]')

  def test_groups_keep_their_order_and_missing_values(self):
    rows = [{'by': 'z', 'x': 1}, {'by': 'a'}, {'by': 'z', 'x': 2}]
    groups = [(key, len(same)) for key, same in tables.over_seeds(rows, ['by'])]
    self.assertEqual(groups, [(('z',), 2), (('a',), 1)])

  def test_a_seed_without_a_number_leaves_no_mean(self):
    show = '{:.1f}'.format
    self.assertEqual(tables.spread([1, math.nan], show), 'nan (1.0 to 1.0)')

  def test_nobody_else_writes_markdown_tables(self):
    here = pathlib.Path(tables.__file__)
    for path in here.parent.rglob('*.py'):
      if path != here:
        self.assertNotRegex(path.read_text(), r'\|---:?\|', path)

  def test_the_library_needs_none_of_it(self):
    for path in pathlib.Path(pr.__file__).parent.rglob('*.py'):
      used = r'(?m)^ *(import|from) (pandas|tabulate|jinja2)'
      self.assertNotRegex(path.read_text(), used, path)


if __name__ == '__main__':
  absltest.main()

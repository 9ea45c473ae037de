"""The pages of the algorithms: complete, and true to the code."""

import ast
import inspect
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from experiments.running.flags import algorithm_flags
from experiments.tools import docs_algorithms, docs_costs, docs_figures
import prsgd_jax as pr
from prsgd_jax import algorithms

PAGES = docs_algorithms.PAGES
ROOT = pathlib.Path(pr.__file__).parents[1]
DATA = docs_algorithms.read_data()
SECTIONS = ('When to use it', 'When not to', 'Update rule', 'The code', 'Cost',
            'Run it', 'Reference', 'Relatives')  # fmt: skip
# Papers that are not on arXiv.
ELSEWHERE = ('bmuf', 'one_shot_averaging', 'sparta')
# Bytes of an SVG that a page loads at once.
MOST_BYTES = 25_000


def read(name):
  return (PAGES / f'{name}.md').read_text()


def includes(text):
  """Return (file, object, first line) of the sources that a page shows."""
  return re.findall(
    r'```{literalinclude} (\S+)\n:language: python\n:pyobject: (\w+)\n'
    r':start-at: (.+)\n:dedent: 2\n```',
    text,
  )


def body(path, function):
  """Return (docstring, source behind it) of a function in a file."""
  source = path.read_text()
  (node,) = [
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef) and node.name == function
  ]
  lines = source.splitlines()
  statements = node.body[1:]
  return (
    ast.get_docstring(node) or '',
    '\n'.join(lines[statements[0].lineno - 1 : node.end_lineno]),
  )


class PagesTest(parameterized.TestCase):
  def test_every_algorithm_has_a_page_and_no_other(self):
    found = {path.stem for path in PAGES.glob('*.md')}
    self.assertEqual(found, {'index', *algorithms.__all__})
    self.assertEqual(set(DATA['costs']), set(algorithms.__all__))

  @parameterized.parameters(*algorithms.__all__)
  def test_page_has_what_a_page_needs(self, name):
    text = read(name)
    self.assertEqual(tuple(re.findall('(?m)^## (.+)$', text)), SECTIONS)
    self.assertRegex(text, rf'^# .+ \(`{name}`\)\n\n.+\.\n\n')
    self.assertRegex(text, r'\n\$\$\n[^$]+\n\$\$\n')
    if name not in ELSEWHERE:
      self.assertRegex(text, r'\(https://arxiv.org/abs/\d{4}\.\d{4,5}\)')
    relatives = text.partition('## Relatives')[2]
    self.assertRegex(relatives, r'- \[`\w+`\]\(\w+\.md\): ')
    for shown, linked in re.findall(r'\[`(\w+)`\]\((\w+)\.md\)', text):
      self.assertEqual(shown, linked)
      self.assertIn(linked, algorithms.__all__)

  @parameterized.parameters(*algorithms.__all__)
  def test_page_runs_the_preset_of_its_algorithm(self, name):
    (flagfile,) = re.findall(r'--flagfile=(\S+)', read(name))
    self.assertEqual(
      flagfile.split('/')[-1], f'{docs_costs.preset(name)}.flags'
    )
    preset = (ROOT / flagfile).read_text()
    self.assertIn(f'--algorithm={algorithm_flags.find(name)}\n', preset)

  @parameterized.parameters(*algorithms.__all__)
  def test_page_shows_its_own_source(self, name):
    function = getattr(algorithms, name)
    shown = includes(read(name))
    self.assertLen(shown, read(name).count('{literalinclude}'))
    paths = [(PAGES / file).resolve() for file, _, _ in shown]
    self.assertEqual(str(paths[0]), inspect.getsourcefile(function))
    self.assertEqual(shown[0][1], function.__name__)
    for path, (_, of, start) in zip(paths, shown):
      doc, code = body(path, of)
      self.assertIn(start, code)
      self.assertNotIn(start, doc)  # it would begin there

  @parameterized.parameters(*algorithms.__all__)
  def test_costs_are_those_of_the_ledger(self, name):
    kept = docs_costs.from_json(DATA['costs'][name])
    self.assertEqual(docs_costs.messages(name), kept)

  def test_costs_by_hand(self):
    # Of 4 MB: a ring all-reduce over 8 sends 2 * 7 / 8, a ring to 2 neighbors.
    costs = {n: docs_costs.from_json(c) for n, c in DATA['costs'].items()}
    self.assertEqual(costs['ssgd'], [('all', 7e6, 600)])
    self.assertEqual(costs['d_psgd'], [('neighbors', 8e6, 600)])
    # Groups of four: 2 * 3 / 4, every 2 of 600 steps; all every 8.
    self.assertEqual(costs['hier_avg'], [('group', 6e6, 300), ('all', 7e6, 75)])
    self.assertEqual(costs['tail_averaging'], [])
    self.assertIsNone(costs['dynamic_averaging'][1].rounds)

  @parameterized.parameters(*algorithms.__all__)
  def test_generated_parts_are_those_of_the_data(self, name):
    text = read(name)
    self.assertEqual(docs_algorithms.with_blocks(name, text, DATA), text)

  def test_index_is_that_of_the_data(self):
    text = read('index')
    self.assertEqual(docs_algorithms.with_index(text, DATA), text)

  def test_page_without_marks_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'needs the lines <!-- figure: beg'):
      docs_algorithms.with_blocks('ssgd', 'no marks', DATA)


class FiguresTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.__all__)
  def test_figure_is_small_and_labeled(self, name):
    svg = (PAGES / 'figures' / f'{name}.svg').read_text()
    self.assertLess(len(svg.encode()), MOST_BYTES)
    legend = docs_figures.wrapped(name).split('\n')
    for word in ('step', 'replica', 'training loss', *legend):
      self.assertIn(f'>{word}</text>', svg)

  def lines(self, mixing, steps=(0,)):
    fires = np.isin(np.arange(max(steps) + 1), steps)
    sent = pr.mixing.traffic(mixing, 4.0, 8, np.arange(len(fires)))
    return docs_figures.lines_of(sent._replace(fires=fires), 8)

  def test_mean_is_one_bar_beside_its_step(self):
    bars = self.lines(pr.mixing.mean(), steps=(3, 7))
    self.assertEqual([x for x, _ in bars], [(4.5, 4.5), (8.5, 8.5)])
    self.assertEqual({y for _, y in bars}, {(-0.2, 7.2)})

  def test_groups_have_a_bar_each(self):
    bars = self.lines(pr.mixing.group_mean(4))
    self.assertEqual([y for _, y in bars], [(-0.2, 3.2), (3.8, 7.2)])

  def test_ring_has_a_line_from_each_sender_to_its_neighbors(self):
    lines = self.lines(pr.graphs.ring())
    want = {(i, (i + d) % 8) for i in range(8) for d in (-1, 1)}
    self.assertEqual({y for _, y in lines}, want)
    self.assertLen(lines, 16)

  def test_graph_whose_matrices_take_turns_does_so(self):
    lines = self.lines(pr.graphs.one_peer_exponential(), steps=(0, 1, 2, 3))
    by_step = [
      {
        (receiver - sender) % 8
        for x, (sender, receiver) in lines
        if x[0] // 1 == t
      }
      for t in (1, 2, 3, 4)
    ]
    self.assertEqual(by_step[0], by_step[3])
    self.assertLen({tuple(d) for d in by_step}, 3)

  def test_late_messages_are_known(self):
    entries = docs_costs.entries('eager_diloco', {'period': '4'}, 12)
    (sent,) = [e for e in entries if isinstance(e, pr.base.Traffic)]
    self.assertTrue(docs_figures.is_late(sent))
    self.assertLen(docs_figures.lines_of(sent, 8), 3)

  def test_data_dependent_rounds_have_no_lines(self):
    sent = pr.mixing.traffic(pr.mixing.mean(), 4.0, 8, np.arange(4))._replace(
      fires=None
    )
    self.assertEqual(docs_figures.lines_of(sent, 8), [])

  def test_file_is_the_same_each_time(self):
    entries = docs_costs.entries(
      'hier_avg', docs_costs.own_settings('hier_avg'), 12
    )
    run = docs_figures.Curve('hier_avg', [20, 40], [1.0, 1e-9])
    directory = self.enterContext(tempfile.TemporaryDirectory())
    texts = []
    for i in range(2):
      path = pathlib.Path(directory) / f'{i}.svg'
      docs_figures.draw(path, entries, 8, [run])
      texts.append(path.read_text())
    self.assertEqual(*texts)


if __name__ == '__main__':
  absltest.main()

"""The documentation site: its programs run, its names and links exist.

The site is built once, with warnings as errors, and then read and opened.
"""

import contextlib
import doctest
import functools
import html.parser
import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock
import urllib.parse

from absl.testing import absltest, parameterized
import numpy as np
from sphinx.util.inventory import InventoryFile

import prsgd_jax as pr
from tests import binaries, browser

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.md')) + sorted(DOCS.glob('concepts/*.md'))
# A part of the README between two marks.
INCLUDE = re.compile(
  r'```\{include\} (\S+)\n:start-after: "(.*)"\n:end-before: "(.*)"\n```\n'
)


def included(path):
  """The text of a page with the parts that it includes."""

  def part(match):
    name, begin, end = match.groups()
    text = (path.parent / name).read_text()
    return text.partition(begin)[2].partition(end)[0]

  return INCLUDE.sub(part, path.read_text())


# Every ```python block is run; those in ```{code-block} are shown only.
PROGRAMS = {
  str(path.relative_to(DOCS)): blocks
  for path in PAGES
  if path.name != 'index.md'  # which shows a part of the quick start
  if (blocks := re.findall(r'(?ms)^```python\n(.*?)^```', included(path)))
}
OPENED = (
  'index.html',
  'which_algorithm.html',
  'concepts/orders.html',
  'results.html',
  'algorithms/pr_sgd.html',
  'api/prsgd_jax.base.html',
  'notebooks/04_watch_replicas_drift.html',
)


class ProgramsTest(parameterized.TestCase):
  """The programs of a page, one after the other, with one set of names."""

  def run_page(self, page):
    self.enterContext(
      contextlib.chdir(self.enterContext(tempfile.TemporaryDirectory()))
    )
    self.enterContext(
      mock.patch.dict(os.environ, TFDS_DATA_DIR=binaries.digits_dir())
    )
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
      for i, program in enumerate(PROGRAMS[page]):
        exec(compile(program, f'{page}, program {i}', 'exec'), names)
    return names, out.getvalue()

  def test_quick_start_trains(self):
    names, out = self.run_page('quick_start.md')
    accuracy, sent, *_ = map(float, out.split())
    self.assertGreater(accuracy, 0.95)
    # 200 steps are 50 averages of an MLP's parameters in a ring of 8.
    expected = 50 * 2 * 7 / 8 * 4 * (65 * 128 + 129 * 10)
    self.assertEqual((sent, names['spent'].bytes_sent), (expected, expected))
    right = names['logits'].argmax(-1) == names['data'].test['label']
    self.assertAlmostEqual(right.mean(), accuracy, places=6)
    self.assertEqual(names['state'].step, 258)

  def test_orders_are_as_the_page_says(self):
    x = self.run_page('concepts/orders.md')[0]['x']
    np.testing.assert_array_equal(x['C'], [x['C'][0]] * 4)
    np.testing.assert_allclose(x['C'], x['synchronous'], rtol=1e-6)
    self.assertGreater(np.ptp(x['A']), 0.1)
    self.assertGreater(np.ptp(x['B']), 0.1)
    np.testing.assert_allclose(x['B'].mean(), x['C'][0], rtol=1e-6)
    self.assertGreater(abs(x['A'].mean() - x['C'][0]), 0.1)

  def test_large_data_is_read_as_the_page_says(self):
    names, out = self.run_page('large_data.md')
    loss, same, waited = out.split()
    self.assertLess(float(loss), 1)
    self.assertEqual(same, 'True')
    self.assertGreaterEqual(float(waited), 0)
    self.assertEqual(names['state'].step, 80)

  def test_ledger_counts_what_the_page_says(self):
    _, out = self.run_page('concepts/ledger.md')
    rounds, sent, seconds = map(float, out.split())
    self.assertEqual((rounds, sent), (3, 21e6))
    # 12 steps of the slow machine; 3 rounds of 14 messages and 7 MB.
    self.assertAlmostEqual(seconds, 12 * 0.1 + 3 * (14 * 0.02 + 7 / 12.5))

  def test_algorithms_of_ones_own_obey_the_laws(self):
    names, out = self.run_page('write_your_own.md')
    error, sent = map(float, out.split())
    self.assertLess(error, 1e-12)
    # Six numbers in float64, all-reduced in 6 of 24 steps.
    self.assertEqual(sent, 6 * 2 * 7 / 8 * 48)
    ours = pr.slowmo(
      names['tx'], learning_rate=0.1, period=12, slow_momentum=0.7
    )
    x, wanted = (
      pr.testing.check_laws(algorithm).x
      for algorithm in (names['local_sgd_with_slowmo'], ours)
    )
    np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-12)
    for name in ('push_sum_with_slowmo', 'in_codes'):
      report = pr.testing.check_laws(names[name])
      np.testing.assert_array_equal(report.x[12], [report.x[12, 0]] * 8)

  def test_number_of_replicas_changes_as_the_page_says(self):
    names, out = self.run_page('change_replicas.md')
    self.assertEqual(out, '20 (10, 4)\n')
    self.assertEqual(names['stages'][1].names.resized, {'params', 'v'})

  def test_failures_lose_what_the_page_says(self):
    _, out = self.run_page('failures_in_simulation.md')
    found = "NonFinite(what='gradient', step=30, replicas=(5,))"
    self.assertEqual(out.splitlines(), ['40 25', found, '1 True'])

  def test_recipes_run(self):
    wandb = mock.Mock()
    self.enterContext(mock.patch.dict(sys.modules, wandb=wandb))
    names, out = self.run_page('recipes.md')
    accuracy, loss, sent, mean = map(float, out.split())
    self.assertGreater(accuracy, 0.9)
    self.assertLess(loss, 1e-3)
    self.assertEqual(sent, 25 * 2 * 7 / 8 * 3 * 4)
    self.assertAlmostEqual(mean, (names['N'] - 1) / 2, places=4)
    run = mock.Mock(workdir=pathlib.Path('runs/a'), flags={'lr': 0.1})
    names['wandb_logger'](run).write({'step': 4, 'loss': 0.5})
    wandb.init.return_value.log.assert_called_once_with(
      {'step': 4, 'loss': 0.5}, step=4
    )

  @parameterized.parameters(
    'command_line.md',
    'concepts/momentum_and_statistics.md',
    'concepts/replicas_and_devices.md',
    'install.md',
  )
  def test_page_runs(self, page):
    self.run_page(page)

  def test_every_page_with_programs_is_run(self):
    text = pathlib.Path(__file__).read_text().partition('class SiteTest')[0]
    for page in PROGRAMS:
      self.assertIn(f"'{page}'", text)

  @parameterized.parameters('docstrings', 'mathml', 'signatures')
  def test_examples_of_the_extensions_are_true(self, name):
    directory = str(DOCS / '_extensions')
    self.enterContext(mock.patch.object(sys, 'path', [directory, *sys.path]))
    self.assertEqual(doctest.testmod(__import__(name)).failed, 0)


@functools.cache
def site():
  """The directory of the site, built without a warning."""
  directory = tempfile.TemporaryDirectory()
  site.directory = directory  # removed when the session ends
  outcome = subprocess.run(
    [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html',
     '-d', f'{directory.name}/doctrees', str(DOCS), f'{directory.name}/html'],
    capture_output=True, text=True, cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  return pathlib.Path(directory.name, 'html'), outcome


def public_names():
  """(namespace, name) of all that is public, and the thing."""
  found = []
  modules = [('prsgd_jax', pr)]
  while modules:
    namespace, module = modules.pop()
    own = [
      name
      for name, thing in vars(module).items()
      if inspect.isroutine(thing) or inspect.isclass(thing)
      if thing.__module__ == module.__name__ and name[0] != '_'
    ]
    for name in getattr(module, '__all__', own):
      thing = getattr(module, name)
      if inspect.ismodule(thing):
        modules.append((f'{namespace}.{name}', thing))
      else:
        found.append((namespace, name, thing))
  return found


class Page(html.parser.HTMLParser):
  """The links, the anchors and the loaded files of a page."""

  def __init__(self, path):
    super().__init__()
    self.links, self.anchors, self.loaded = set(), set(), set()
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.anchors |= {values.get('id'), values.get('name')}
    if tag == 'a' and values.get('href'):
      self.links.add(values['href'])
    if tag in ('img', 'script', 'iframe') and values.get('src'):
      self.loaded.add(values['src'])
    if tag == 'link' and values.get('rel') in ('stylesheet', 'icon'):
      self.loaded.add(values['href'])


class SiteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.html, outcome = site()
    self.assertEqual(outcome.returncode, 0, outcome.stderr)
    self.assertEqual(outcome.stderr, '')

  def test_every_public_name_has_an_entry(self):
    inventory = InventoryFile.loads(
      (self.html / 'objects.inv').read_bytes(), uri=''
    )
    entries = {
      name
      for kind, named in inventory.data.items()
      for name in named
      if kind.startswith('py:')
    }
    names = public_names()
    self.assertGreater(len(names), 200)
    flat = {
      id(thing): name for space, name, thing in names if space == 'prsgd_jax'
    }
    for namespace, name, thing in names:
      if id(thing) in flat:
        namespace, name = 'prsgd_jax', flat[id(thing)]
      self.assertIn(f'{namespace}.{name}', entries)

  def test_every_internal_link_leads_somewhere(self):
    pages = {
      path: Page(path)
      for path in self.html.rglob('*.html')
      if '_static' not in path.parts
    }
    self.assertGreater(len(pages), 90)
    for path, page in pages.items():
      for link in page.links | page.loaded:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme:
          self.assertNotIn(link, page.loaded, f'{path} loads from a host')
          continue
        target = path
        if parts.path:
          target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
        self.assertTrue(target.exists(), f'{path.name}: {link}')
        if parts.fragment and target in pages:
          anchor = urllib.parse.unquote(parts.fragment)
          self.assertIn(anchor, pages[target].anchors, f'{path.name}: {link}')

  @parameterized.parameters(1400, 400)
  def test_pages_open_in_a_browser(self, width):
    if missing := browser.why_missing():
      self.skipTest(missing)
    driver = browser.chromium()
    driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {'width': width, 'height': 900, 'deviceScaleFactor': 1,
       'mobile': width < 500},
    )  # fmt: skip
    driver.get_log('browser')
    for name in OPENED:
      driver.get((self.html / name).as_uri())
      errors = [x for x in driver.get_log('browser') if x['level'] == 'SEVERE']
      self.assertEqual(errors, [], name)
      widest, empty, fetched = driver.execute_script(
        'return [document.documentElement.scrollWidth,'
        ' [...document.images].filter(x => !x.naturalWidth).map(x => x.src),'
        ' performance.getEntriesByType("resource").map(x => x.name)'
        '  .filter(x => x.startsWith("http"))]'
      )
      self.assertLessEqual(widest, width, name)
      self.assertEqual((empty, fetched), ([], []), name)


if __name__ == '__main__':
  absltest.main()

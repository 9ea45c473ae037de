"""Tests of `experiments/report.py`, as a user calls it and in a browser.

The browser is Chromium, by selenium (`make browser`); where there is none these
are skipped.
"""

import base64
import functools
import hashlib
import html.parser
import json
import math
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from PIL import Image

from experiments import report, sweep
from experiments.running.records import units
from experiments.tools import (
  figures,
  report_methods,
  report_page,
  report_runs,
)
from experiments.tools.report_page import Chip
from experiments.tools.tables import Column
from tests import binaries, browser, written_runs

AT_MOST_ONE = {
  'kind': 'compare', 'left': 'loss', 'relation': '<=', 'right': 1.0,
}  # fmt: skip
REPRODUCTION = {
  'name': 't99', 'title': 'Loss <flat> in I', 'paper': 'Yu 2019, figure 1',
  'scale': 'cpu', 'seconds': 12.5, 'machine': {'cpus': 2, 'device': 'cpu'},
  'commit': 'abc', 'seeds': [0, 1], 'data': {'curve': [0.125] * 9},
  'claims': [
    {'text': 'flat', 'source': 'ours', 'rule': {'yes': AT_MOST_ONE},
     'measured': {'loss': {'unit': 'a & b', 'cases': {
       '': {'value': 0.1, 'seeds': [0.05, 0.15]}}}}},
    {'text': 'faster', 'source': 'ours', 'rule': {'yes': AT_MOST_ONE},
     'measured': {'loss': {'cases': {'': 2.0}}}, 'note': 'I = 4'},
  ],
}  # fmt: skip


class PageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.output = self.root / 'report.html'

  def report(self, *args):
    return binaries.call(report, f'--output={self.output}', *args)

  def write_sweep(self):
    """A sweep of two methods, as its files have it; one run diverged."""
    path = self.root / 'sweep'
    write = written_runs.write
    write(path, 'a', seed=0, losses=(0.9, 0.8))
    write(path, 'b', seed=1, losses=(0.7, 0.6))
    write(path, 'c', label='k_avg period=2', losses=(12.0, 10.5))
    write(path, 'd', label='k_avg period=4', failed='not finite')
    statuses = ('done', 'done', 'done', 'diverged')
    sweep.write_csv(
      path / 'sweep.csv',
      [
        {'label': name, 'status': status, 'directory': str(path / name)}
        for name, status in zip('abcd', statuses)
      ],
    )
    (path / 'best.json').write_text(
      json.dumps(
        {
          'by': ['learning_rate'],
          'measure': 'loss',
          'grid': ['learning_rate=0.1,0.2'],
          'methods': sweep.tuning.choose(
            [{'label': 'ssgd', 'learning_rate': rate, 'status': 'done',
              'loss': float(rate)} for rate in ('0.1', '0.2')],
            by=['learning_rate'], over=[], measure='loss',
          ),
        }
      )
    )  # fmt: skip
    return path

  def write_reproduction(self, **changes):
    directory = self.root / 'reproduce'
    directory.mkdir(exist_ok=True)
    path = directory / 't99-cpu.json'
    path.write_text(json.dumps(REPRODUCTION | changes))
    Image.new('RGB', (300, 200)).save(path.with_suffix('.png'))
    return directory


class ReportTest(PageTest):
  def test_page_of_a_sweep_holds_all_in_one_file(self):
    path = self.write_sweep()
    outcome = self.report(str(path))
    self.assertEqual(outcome.code, 0, outcome.err)
    text = self.output.read_text()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    self.assertStartsWith(base64.b64decode(data), b'\x89PNG')
    self.assertNotRegex(text, r'(src|href)="(?!data:|#)')
    self.assertNotIn('http:', text)
    self.assertNotIn('https:', text)
    self.assertIn('data-value="0.7"', text)  # mean of the last losses of a, b
    self.assertIn('<small>0.6 to 0.8</small>', text)
    self.assertIn('--grid=learning_rate=0.1,0.2', text)
    self.assertIn('<span class="chip no">1 of 1 diverged</span>', text)
    # The directory is in the heading, and where a row is pointed at.
    self.assertEqual(text.count(f'>{path}<'), 1)
    self.assertIn(f'title="{path / "a"}"', text)
    self.assertRegex(text, '2 cpu cores(.|\n)*0.10.1(.|\n)*abc')

  def test_methods_have_the_spread_over_seeds(self):
    runs = figures.read_runs(figures.find_runs([self.write_sweep()]))
    rows = {row['method']: row for row in report_methods.method_rows(runs)}
    ssgd = rows['ssgd']
    self.assertEqual((ssgd['runs'], ssgd['done'], ssgd['diverged']), (2, 2, 0))
    self.assertAlmostEqual(ssgd['loss'].mean, 0.7)
    self.assertEqual((ssgd['loss'].low, ssgd['loss'].high), (0.6, 0.8))
    self.assertEqual(ssgd['rounds'].mean, 20)
    diverged = rows['k_avg period=4']
    self.assertEqual((diverged['done'], diverged['diverged']), (0, 1))
    self.assertNotIn('loss', diverged)

  def test_a_method_of_which_a_seed_diverged_is_not_the_best(self):
    path = self.root / 'runs'
    write = functools.partial(written_runs.write, path)
    for name, loss in (('slow', 0.4), ('steady', 0.3), ('wild', 0.1)):
      write(f'{name}0', label=name, losses=(0.9, loss))
    for name in ('slow', 'steady'):
      write(f'{name}1', label=name, seed=1, losses=(0.9, 0.3))
    write('wild1', label='wild', seed=1, failed='not finite')
    runs = figures.read_runs(figures.find_runs([path]))
    table = report_methods.table(runs, None)
    loss = [column.name for column in table.columns].index('loss')
    marked = [row[0].text for row in table.rows if row[loss].is_best]
    self.assertEqual(marked, ['steady'])

  def test_what_a_target_costs_is_read_from_the_records(self):
    path = self.root / 'runs'
    losses_of = {'a': (0.9, 0.5, 0.4, 0.2), 'b': (0.9, 0.8, 0.7, 0.4)}
    for name, losses in losses_of.items():
      written_runs.write(path, name, label=name, losses=losses, own=name)
    written_runs.write(path, 'c', label='c', failed='not finite')
    runs = figures.read_runs(figures.find_runs([path]))
    target = report_methods.target_of(runs)
    # The test loss is in every second record: a reached 0.2, b 0.4.
    self.assertEqual(target, ('test_loss', 0.4))
    a, b, c = report_methods.method_rows(runs, target)
    self.assertEqual(a['bytes_to_target'].mean, 40 * 2**20)
    self.assertEqual(b['seconds_to_target'].mean, 20.0)
    self.assertNotIn('bytes_to_target', c)
    harder = report_methods.method_rows(runs, target._replace(value=0.3))
    self.assertIn('bytes_to_target', harder[0])
    self.assertNotIn('bytes_to_target', harder[1])

  def test_the_figure_of_a_tuned_sweep_has_the_best_runs(self):
    path = self.root / 'tuned'
    rows = []
    for name, rate in (('a', 0.1), ('b', 0.2)):
      written_runs.write(path, name, losses=(0.9, rate), learning_rate=rate)
      rows.append(
        {'label': 'ssgd', 'learning_rate': str(rate), 'status': 'done',
         'loss': rate, 'directory': str(path / name)}
      )  # fmt: skip
    sweep.write_csv(path / 'sweep.csv', rows)
    chosen = sweep.tuning.choose(
      rows, by=['learning_rate'], over=[], measure='loss'
    )
    best = {'by': ['learning_rate'], 'measure': 'loss', 'grid': []}
    (path / 'best.json').write_text(json.dumps({**best, 'methods': chosen}))
    with mock.patch.object(figures, 'draw', wraps=figures.draw) as draw:
      made = report_runs.section(path, ['step'], ['loss'], 'none')
    (drawn,) = draw.call_args[0][0]
    self.assertEqual(drawn.history[-1]['loss'], 0.1)
    caption = made.figures[0].caption
    self.assertIn('its best learning_rate', caption)
    self.assertIn('Training loss of replicas [nats] against step', caption)
    methods, _, listed = made.tables
    self.assertLen(methods.rows, 2)
    self.assertLen(listed.rows, 2)

  def test_page_of_reproductions(self):
    directory = self.write_reproduction()
    where = f'--reproductions_dir={directory}'
    outcome = self.report('--reproductions', where)
    self.assertEqual(outcome.code, 0, outcome.err)
    text = self.output.read_text()
    self.assertIn('Loss &lt;flat&gt; in I', text)
    self.assertIn('a &amp; b', text)
    self.assertRegex(text, '>0.10*<small>0.050* to 0.150*</small>')
    self.assertIn('yes if loss ≤ 1; otherwise no', text)
    self.assertIn('<span class="chip no">not reproduced</span>', text)
    self.assertIn('<article class="claim no">', text)
    self.assertIn('<span class="chip yes">1 reproduced</span>', text)
    self.assertIn('2 cpu cores', text)
    self.assertIn('12.5 s', text)
    self.assertIn('href="#t99-cpu"', text)
    self.assertIn('id="t99-cpu"', text)
    self.assertNotIn('0.125', text)  # the data of the figure

  @parameterized.parameters(
    ('requires directories of runs', ()),
    ('nothing holds no run', ('nothing',)),
    ('there is no reproduction in', ('--reproductions',)),
    ('unknown --y=foo', ('sweep', '--y=foo')),
  )
  def test_bad_input_is_one_line(self, message, args):
    self.write_sweep()
    placed = [a if a[0] == '-' else str(self.root / a) for a in args]
    outcome = self.report(f'--reproductions_dir={self.root / "no"}', *placed)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^report.py: error: .*{message}')
    self.assertEqual(outcome.err.count('\n'), 1)
    self.assertFalse(self.output.exists())

  @parameterized.parameters(
    ("the rule needs 'loss', which is not measured", {
      'claims': [
        {'text': 'a', 'source': 'b', 'measured': {},
         'rule': {'yes': AT_MOST_ONE}}
      ]
    }),
    ('title: expected text, got null', {'title': None}),
    (r'claims\[0\]: it has no source, rule, measured',
     {'claims': [{'text': ''}]}),
  )  # fmt: skip
  def test_a_file_of_another_form_is_refused(self, message, changes):
    directory = self.write_reproduction(**changes)
    where = f'--reproductions_dir={directory}'
    outcome = self.report('--reproductions', where)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, message)


# Text that is markup where a page does not escape it.
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>$\\x&amp;"


def hostile(value):
  """A value with that text in the place of each string, and in each name."""
  if isinstance(value, dict):
    return {**value, HOSTILE: HOSTILE} | {
      k: hostile(v) for k, v in value.items()
    }
  if isinstance(value, list):
    return [hostile(v) for v in value]
  return HOSTILE if isinstance(value, str) else value


class _Elements(html.parser.HTMLParser):
  """The elements of a page, with the names of their attributes."""

  def __init__(self, text):
    super().__init__()
    self.found, self.values, self.scripts = set(), [], []
    self.tag = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.add((tag, *sorted(name for name, _ in attrs)))
    self.values += [value for _, value in attrs]
    self.tag = tag

  def handle_data(self, data):
    if self.tag in ('script', 'style') and data.strip():
      self.scripts.append(data)
    self.tag = None


class HostileTextTest(PageTest):
  """Text of the files is text on the page, whatever it is."""

  def elements(self, *args):
    outcome = self.report(*args)
    self.assertEqual(outcome.code, 0, outcome.err)
    return _Elements(self.output.read_text())

  def assert_text(self, plain, found):
    self.assertLessEqual(found.found, plain.found)
    self.assertEqual(found.scripts, plain.scripts)
    self.assertLen(found.scripts, 2)  # the style and the script
    self.assertTrue(any(HOSTILE in value for value in found.values))

  def test_in_every_field_of_a_sweep(self):
    path = self.write_sweep()
    plain = self.elements(str(path))
    config = path / 'a' / 'config.json'
    kept = json.loads(config.read_text())
    made = hostile(kept)
    # Its form is checked: text in a number's place is damage.
    made['description']['network'] = kept['description']['network']
    config.write_text(json.dumps(made))
    best = path / 'best.json'
    best.write_text(json.dumps(hostile(json.loads(best.read_text()))))
    sweep.write_csv(path / 'sweep.csv', [{HOSTILE: HOSTILE, 'label': '_'}])
    moved = self.root / HOSTILE.replace('/', '')
    path.rename(moved)
    self.assert_text(plain, self.elements(str(moved)))

  def test_in_every_field_of_a_reproduction(self):
    directory = self.write_reproduction()
    args = ('--reproductions', f'--reproductions_dir={directory}')
    (path,) = directory.glob('*.json')
    one = json.loads(path.read_text())
    one['rows'] = [{'a': 'b'}]
    path.write_text(json.dumps(one))
    plain = self.elements(*args)
    changed = hostile(one)
    for claim in changed['claims']:
      # The form is checked, so only its texts can be hostile.
      claim['measured'] = {
        HOSTILE: {'unit': HOSTILE, 'cases': {'': 1.0}},
        'b': {'unit': HOSTILE, 'cases': {HOSTILE: 2.0}},
      }
      claim['rule'] = {'yes': {**AT_MOST_ONE, 'left': HOSTILE}}
    path.write_text(json.dumps(changed))
    for file in directory.iterdir():
      file.rename(directory / f'{HOSTILE.replace("/", "")}{file.suffix}')
    self.assert_text(plain, self.elements(*args))

  def test_the_browser_takes_no_script_or_style_but_ours(self):
    found = self.elements(str(self.write_sweep()))
    (policy,) = [v for v in found.values if v and v.startswith('default-src')]
    for kind, text in zip(('style', 'script'), found.scripts, strict=True):
      digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
      self.assertIn(f"{kind}-src 'sha256-{digest.decode()}'", policy)
    self.assertStartsWith(policy, "default-src 'none'; img-src data:;")
    self.assertNotIn('unsafe', policy)
    self.assertFalse([e for e in found.found if 'style' in e[1:]])


class PageTableTest(absltest.TestCase):
  """Tables as values, before the template."""

  def test_what_all_rows_have_is_a_fact(self):
    rows = [{'a': 'x', 'b': 1, 'c': 2.0}, {'a': 'y', 'b': 1, 'c': 3.0}]
    rows.append({'a': 'z', 'b': None, 'd': ''})
    columns = [Column(name, f'the {name}') for name in 'abcd']
    different, facts = report_page.split_constant(rows, columns)
    self.assertEqual([column.name for column in different], ['a', 'c'])
    self.assertEqual(facts, [('the b', '1')])

  def test_cells_are_sorted_by_exact_values(self):
    rows = [{'x': 2.0**40 / 3}, {'x': math.nan}, {'x': Chip('no', '3 no', '3')}]
    shown = report_page.table(rows, [Column('x', show=units.size)])
    keys = [cell.key for (cell,) in shown.rows]
    self.assertEqual(keys, [repr(2.0**40 / 3), '', '3'])
    self.assertEqual(shown.rows[0][0].text, '341.3 GiB')


class BrowserTest(PageTest):
  """The page, opened; one browser for all, because starting it takes long."""

  def open(self, width=1400):
    if missing := browser.why_missing():
      self.skipTest(missing)
    driver = browser.chromium()
    driver.get_log('browser')  # forget what other pages said
    driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False},
    )
    driver.get(self.output.as_uri())
    return driver

  def test_opens_without_errors_and_with_its_images(self):
    directory = self.write_reproduction()
    where = f'--reproductions_dir={directory}'
    outcome = self.report('--reproductions', where, str(self.write_sweep()))
    self.assertEqual(outcome.code, 0, outcome.err)
    driver = self.open()
    self.assertEqual(driver.title, 'Reproductions')
    widths = driver.execute_script(
      'return [...document.images].map(image => image.naturalWidth)'
    )
    self.assertLen(widths, 2)
    self.assertGreater(min(widths), 100)
    fetched = driver.execute_script(
      'return performance.getEntriesByType("resource").map(e => e.name)'
      '.filter(name => !name.startsWith("data:"))'
    )
    self.assertEqual(fetched, [])
    self.assertEqual(driver.get_log('browser'), [])

  def test_a_click_sorts_numbers_and_words_with_the_empty_last(self):
    self.report(str(self.write_sweep()))
    driver = self.open()
    table, *_ = driver.find_elements('tag name', 'table')

    def click(name):
      (head,) = [
        h for h in table.find_elements('tag name', 'th') if h.text == name
      ]
      head.find_element('tag name', 'button').click()
      rows = table.find_elements('css selector', 'tbody tr')
      methods = [row.find_element('tag name', 'td').text for row in rows]
      return methods, head.get_attribute('aria-sort')

    two, four = 'k_avg period=2', 'k_avg period=4'
    # By number 0.7 < 10.5, which words would have the other way for "10.5".
    loss = 'training loss'
    self.assertEqual(click(loss), (['ssgd', two, four], 'ascending'))
    self.assertEqual(click(loss), ([two, 'ssgd', four], 'descending'))
    self.assertEqual(click('method'), ([two, four, 'ssgd'], 'ascending'))
    # The accuracy is empty where a method diverged: last in both orders.
    self.assertEqual(click('test accuracy')[0][-1], four)
    self.assertEqual(click('test accuracy')[0][-1], four)
    sorted_by = table.find_elements('css selector', '[aria-sort]')
    self.assertLen(sorted_by, 1)
    self.assertEqual(driver.get_log('browser'), [])

  def test_filters_leave_the_rows_and_claims_that_match(self):
    directory = self.write_reproduction()
    self.report('--reproductions', f'--reproductions_dir={directory}')
    driver = self.open()
    (box,) = driver.find_elements('css selector', '.filter')
    claims = driver.find_elements('css selector', '.claim')

    def shown():
      return [claim.is_displayed() for claim in claims]

    self.assertEqual(shown(), [True, True])
    box.find_element('css selector', '[value=yes]').click()
    self.assertEqual(shown(), [False, True])
    output = box.find_element('tag name', 'output')
    self.assertEqual(output.text, '1 of 2 shown')
    box.find_element('css selector', '[value=yes]').click()
    box.find_element('css selector', '[type=search]').send_keys('FLAT')
    self.assertEqual(shown(), [True, False])

  def test_a_phone_shows_the_page_without_scrolling_sideways(self):
    directory = self.write_reproduction()
    where = f'--reproductions_dir={directory}'
    self.report('--reproductions', where, str(self.write_sweep()))
    driver = self.open(width=400)
    width = driver.execute_script('return document.documentElement.scrollWidth')
    self.assertLessEqual(width, 400)
    for image in driver.find_elements('css selector', 'figure img'):
      self.assertGreater(image.size['width'], 600)  # in a box that scrolls


if __name__ == '__main__':
  absltest.main()

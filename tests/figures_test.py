"""Tests of `experiments/tools/figures.py`."""

import copy
import dataclasses
import json
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized
import matplotlib.image
import numpy as np

from experiments import compare
from experiments.running.flags import run_specs
from experiments.running.records import records
from experiments.tools import figure_files, figures, styles
from tests import looks, written_runs

HERE = pathlib.Path(__file__).parents[1]
KEPT = HERE / 'experiments' / 'results' / 'demo'
PICTURE = HERE / 'experiments' / 'results' / 'demo.png'


def styles_of(figure):
  """Label -> style of the lines of the first panel."""
  return {
    line.get_label(): styles.Style(
      line.get_color(), line.get_marker(), line.get_linestyle()
    )
    for line in figure.axes[0].lines
  }


class FiguresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, **options):
    return written_runs.write(self.root, name, **options)

  def read(self):
    return figures.read_runs(figures.find_runs([self.root]))

  def test_a_band_is_over_the_seeds_of_a_label(self):
    self.write('a', seed=0, losses=(0.8, 0.5))
    self.write('b', seed=1, losses=(0.4, 0.3))
    self.write('c', seed=0, label='k_avg period=2', losses=(1.0, 0.9))
    one, other = figures.curves(self.read(), 'step', 'loss')
    self.assertEqual((one.label, one.seeds), ('ssgd', 2))
    np.testing.assert_array_equal(one.x, [10, 20])
    np.testing.assert_allclose(one.y, [0.6, 0.4])
    np.testing.assert_allclose(one.low, [0.4, 0.3])
    np.testing.assert_allclose(one.high, [0.8, 0.5])
    self.assertEqual((other.label, other.seeds), ('k_avg period=2', 1))
    np.testing.assert_array_equal(other.low, other.high)
    deviation = figures.curves(self.read(), 'step', 'loss', 'std')[0]
    np.testing.assert_allclose(deviation.low, [0.4, 0.3])
    deviation = figures.curves(self.read(), 'step', 'loss', 'none')[0]
    np.testing.assert_array_equal(deviation.low, deviation.high)

  @parameterized.parameters(
    ('step', [20, 40]),
    ('epoch', [0.2, 0.4]),
    ('rounds', [20, 40]),
    ('bytes_sent', [20, 40]),  # MiB
    ('modeled_seconds', [10, 20]),
    ('seconds', [20, 40]),
  )
  def test_points_are_the_records_that_have_the_measure(self, x, expected):
    self.write('a', losses=(0.8, 0.6, 0.4, 0.2))
    (curve,) = figures.curves(self.read(), x, 'test_accuracy')
    np.testing.assert_allclose(curve.x, expected)
    np.testing.assert_allclose(curve.y, [40, 80])  # percent

  def test_settings_that_differ_are_in_the_label(self):
    links = {'links': {'global': [0.2, 1e9]}}
    self.write('a', losses=(0.8,))
    self.write('b', losses=(0.8,), learning_rate=0.2)
    self.write('c', losses=(0.8,), network=links, data='cd')
    labels = [c.label for c in figures.curves(self.read(), 'step', 'loss')]
    first, second = '0.1,1e+09', '0.2,1e+09'
    self.assertEqual(
      labels,
      [
        f'ssgd learning_rate={rate} network.links.global={link}'
        for rate, link in (('0.1', first), ('0.2', first), ('0.1', second))
      ],
    )

  def test_options_that_are_not_in_the_label_are_settings(self):
    # As `objects.run` writes them, with a label of the user's own.
    for seed, period in ((0, 4), (1, 4), (0, 8), (2, 8)):
      options, losses = {'period': period}, (period / 10,)
      name = f'{period}-{seed}'
      self.write(name, label='own', seed=seed, options=options, losses=losses)
    options = {'period': 4, 'sizes': '1,2'}
    label = 'k_avg period=4 sizes=1+2'
    self.write('flags', label=label, options=options, losses=(0.1,))
    found = figures.curves(self.read(), 'step', 'loss')
    self.assertEqual(
      {c.label: (c.seeds, c.y.tolist()) for c in found},
      {
        'own period=4': (2, [0.4]),
        'own period=8': (2, [0.8]),
        'k_avg period=4 sizes=1+2': (1, [0.1]),
      },
    )

  def test_a_run_that_is_there_twice_is_refused(self):
    self.write('a', losses=(0.8,))
    self.write('b', losses=(0.7,))
    with self.assertRaisesRegex(
      ValueError, "'ssgd' with seed 0 is given twice"
    ):
      figures.curves(self.read(), 'step', 'loss')

  def test_a_curve_ends_where_a_seed_diverged(self):
    self.write('a', seed=0, losses=(0.8, 0.6, 0.4))
    self.write('b', seed=1, losses=(0.7,), failed='not finite')
    (curve,) = figures.curves(self.read(), 'step', 'loss')
    np.testing.assert_array_equal(curve.x, [10])
    self.assertEqual((curve.seeds, curve.diverged), (2, 1))

  @parameterized.parameters(
    ("unknown --x=time; use one of step", ('time', 'loss', 'range')),
    ("unknown --y=error; use one of loss", ('step', 'error', 'range')),
    ("unknown --band=half; use one of range", ('step', 'loss', 'half')),
  )  # fmt: skip
  def test_unknown_names_are_refused(self, message, names):
    with self.assertRaisesRegex(ValueError, message):
      figures.curves([], *names)

  def test_a_directory_without_runs_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'holds no run'):
      figures.find_runs([self.root])

  def test_runs_are_found_once(self):
    below = self.write('a', losses=(0.8,))
    self.assertEqual(figures.find_runs([self.root, below]), [below])

  def test_every_number_that_was_recorded_can_be_shown(self):
    self.write('a', losses=(0.8, 0.6, 0.4, 0.2))
    (curve,) = figures.curves(self.read(), 'step', 'test_error')
    np.testing.assert_allclose(curve.y, [60, 20])  # percent
    path = self.root / 'a' / 'metrics.jsonl'
    added = '"bytes_by_tier": {"global": 7}, "mine": "text", "step"'
    path.write_text(path.read_text().replace('"step"', added))
    (curve,) = figures.curves(self.read(), 'seconds', 'bytes_by_tier.global')
    np.testing.assert_array_equal(curve.y, [7, 7, 7, 7])
    with self.assertRaisesRegex(
      ValueError, 'unknown --y=mine; use one of .*, bytes_by_tier.global'
    ):
      figures.curves(self.read(), 'step', 'mine')

  def test_curves_look_alike_in_every_figure(self):
    self.write('c', label='ssgd', losses=(0.8, 0.7))
    self.write('b', label='pr_sgd period=16', losses=(0.8, 0.6))
    self.write('a', label='pr_sgd period=4', losses=(0.8, 0.5))
    self.write('d', label='k_avg', losses=(0.8, 0.4))
    runs = self.read()
    found = [
      styles_of(figures.make(some, x=['step'], y=[y]))
      for some in (runs, runs[::-1], runs[:3])
      for y in ('loss', 'test_loss')
    ]
    for one in found[1:]:
      self.assertEqual(one, {k: found[0][k] for k in one})
    self.assertLen(set(found[0].values()), 4)
    self.assertEqual(found[0]['ssgd'], styles.method('ssgd'))
    self.assertEqual(found[0]['pr_sgd period=4'], styles.method('pr_sgd'))

  def test_nothing_sent_is_seen_and_the_scale_says_where_it_changes(self):
    path = self.write('a', losses=(0.8, 0.6, 0.4)) / 'metrics.jsonl'
    path.write_text(path.read_text().replace(str(10 * 2**20), '0'))
    figure = figures.make(self.read(), x=['bytes_sent'], y=['loss'])
    (axis,) = figure.axes
    self.assertEqual(axis.get_xscale(), 'symlog')
    self.assertRegex(axis.get_xlabel(), 'MiB.*\n.linear below 20')
    self.assertLess(axis.get_xlim()[0], 0)
    x = axis.lines[0].get_xdata()
    np.testing.assert_array_equal(x, [0, np.nan, 20, 30])
    self.assertEqual(looks.faults(figure), [])
    # Without a zero it is a plain logarithm.
    self.write('b', losses=(0.8, 0.6), label='k_avg')
    runs = [run for run in self.read() if run.label == 'k_avg']
    (axis,) = figures.make(runs, x=['bytes_sent'], y=['loss']).axes
    self.assertEqual(axis.get_xscale(), 'log')

  def test_scales_and_a_title_can_be_given(self):
    self.write('a', losses=(0.8, 0.6, 0.4))
    figure = figures.make(
      self.read(), y=['loss'], title='A', scales={'loss': 'linear'}
    )
    self.assertEqual(figure.axes[0].get_yscale(), 'linear')
    self.assertEqual(figure.get_suptitle(), 'A')
    with self.assertRaisesRegex(
      ValueError, '--log=rounds is not an axis of this figure; use one of step'
    ):
      figures.make(self.read(), scales={'rounds': 'log'})

  def test_standard_panels_have_no_faults(self):
    for seed in (0, 1):
      for i, period in enumerate((4, 16, 64)):
        losses = [0.9 / (k + 1 + i + seed / 3) for k in range(20)]
        name = f'{period}{seed}'
        label = f'pr_sgd period={period}'
        self.write(name, label=label, seed=seed, losses=losses)
    self.write('s', label='ssgd', losses=(0.8, 0.6), failed='not finite')
    for x, y in (
      (['bytes_sent'], list(figures.Y)),
      (list(figures.X), ['test_error']),
    ):
      figure = figures.make(self.read(), x=x, y=y, title='a title')
      self.assertEqual(looks.faults(figure), [])

  def test_draws_every_panel(self):
    self.write('a', seed=0, losses=(0.8, 0.5, 0.3, 0.2))
    self.write('b', seed=1, losses=(0.4, 0.3, 0.2, 0.1))
    self.write('c', label='k_avg', failed='not finite')
    path = self.root / 'new' / 'figure.png'
    small = self.root / 'small.png'
    figures.draw(self.read(), path, x=list(figures.X), y=['loss'])
    figures.draw(self.read(), small, x=['step'], y=['loss'])
    shapes = [matplotlib.image.imread(p).shape for p in (path, small)]
    self.assertEqual(shapes[0][1], 6 * shapes[1][1])  # columns of a width
    pixels = matplotlib.image.imread(path)[..., :3]
    self.assertGreater(np.ptp(pixels, axis=-1).max(), 0.5)  # not gray alone


class DemoTest(absltest.TestCase):
  """The README's figure is the one that `make demo` draws."""

  def setUp(self):
    super().setUp()
    values = copy.deepcopy(compare.FLAGS)
    preset = HERE / 'experiments' / 'presets' / 'demo.flags'
    values(['compare.py', f'--flagfile={preset}'])
    self.configs = run_specs.parse_runs(values['run'].value, values)
    makefile = (HERE / 'Makefile').read_text()
    self.seeds = re.findall(r'demo.flags --seed=(\d)', makefile)
    self.y = re.findall(r'plot.py \$\(RUNS\)/demo --y=(\S+)', makefile)

  def runs(self):
    return figures.read_runs(figures.find_runs([KEPT]))

  def test_kept_runs_are_those_of_the_command(self):
    dirs = {
      KEPT / f'seed{seed}' / one.slug(): dataclasses.replace(
        one, seed=int(seed)
      )
      for seed in self.seeds
      for one in self.configs
    }
    self.assertLen(dirs, 15)
    self.assertSameElements(KEPT.glob('*/*'), dirs)
    for kept, one in dirs.items():
      described = records.read_config(kept)['description']
      for name, value in dataclasses.asdict(one).items():
        if name in described:
          self.assertEqual(described[name], json.loads(json.dumps(value)), name)
      self.assertEqual(records.read_records(kept)[-1]['step'], one.num_steps)

  def test_picture_is_drawn_from_them_by_what_plot_calls(self):
    runs = self.runs()
    figure = figures.make(runs, y=self.y)
    self.assertEqual(
      figure_files.digest(figure), figure_files.read_digest(PICTURE)
    )
    self.assertEqual(looks.faults(figure), [])
    self.assertSameElements(
      styles_of(figure), [f'{one.label()} (3 seeds)' for one in self.configs]
    )
    # Of fewer runs it would be another.
    other = figures.make(runs[1:], y=self.y)
    self.assertNotEqual(
      figure_files.digest(other), figure_files.read_digest(PICTURE)
    )

  def test_readme_shows_it_and_says_what_is_in_it(self):
    readme = ' '.join((HERE / 'README.md').read_text().split())
    self.assertIn(f'({PICTURE.relative_to(HERE)})', readme)
    errors, sent = ({
      label: np.mean([run.history[-1][name] for run in same])
      for label, same in figures.group(self.runs()).items()
    } for name in ('test_accuracy', 'bytes_sent'))  # fmt: skip
    errors = {label: f'{1 - value:.1%}' for label, value in errors.items()}
    for words, label in (
      ('Synchronous SGD ends at a test error of {}.', 'ssgd'),
      ('every 16 steps ends at {}, with a sixteenth', 'pr_sgd period=16'),
      ('64 steps is too rare here ({})', 'pr_sgd period=64'),
      ('one average at the end fails ({})', 'one_shot_averaging'),
    ):
      self.assertIn(words.format(errors[label]), readme)
    self.assertEqual(sent['ssgd'] / sent['pr_sgd period=16'], 16)
    panel = figures.make(self.runs(), y=self.y).axes[0]
    self.assertEqual(panel.get_ylabel(), 'test error of averaged model [%]')
    self.assertIn("Errors are those of the replicas' average", readme)


if __name__ == '__main__':
  absltest.main()

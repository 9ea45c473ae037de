"""The measurement on several hosts, on one, and its comparison."""

import json
import pathlib
import tempfile

from absl.testing import absltest
import jax
import numpy as np

from experiments import hosts_report
from experiments.hosts import cases, comparing, measuring
from experiments.papers import t01_long, t01_long_resnet20, target
from experiments.tools import disturbances, figure_files
from prsgd_jax import models
from tests import looks

KEPT = pathlib.Path(hosts_report.__file__).parent / 'results' / 'hosts'
SSGD, EVERY_4 = cases.CASES[1], cases.CASES[2]
PARAMETER_BYTES = 4 * 301_066


def block(steps, seconds, size=0.0, error=None):
  found = {
    'steps': steps, 'seconds': seconds, 'bytes': size, 'packets': size // 1514,
    'loss': 1.0,
  }  # fmt: skip
  return found if error is None else {**found, 'test_accuracy': 1 - error / 100}


def measurement(megabits, times, others, errors=None):
  """All cases take `times` for blocks of 16 steps."""
  errors = [None] * (len(times) + 1) if errors is None else errors
  made = [
    block(16, t, 1514e4, error)
    for t, error in zip(times, errors[1:], strict=True)
  ]
  return {
    'machine': {
      'cpus': 2, 'processor': 'x86_64', 'jax': '0', 'python': '3', 'commit': 'c'
    },
    'date': '2026-01-01', 'hosts': 4, 'bits_per_second': megabits * 1e6,
    'latency': 1e-3, 'others': others,
    'first': {c.label: block(16, 99.0, 0, errors[0]) for c in cases.CASES},
    'blocks': {c.label: made for c in cases.CASES},
  }  # fmt: skip


class ComparingTest(absltest.TestCase):
  def test_disturbed_rounds_do_not_count(self):
    found = measurement(100, [1, 2, 9, 3], [0, 0.05, 0.5, 0.0])
    self.assertEqual(disturbances.undisturbed(found['others']), [0, 1, 3])
    self.assertFalse(disturbances.is_disturbed(found['others']))
    seconds = comparing.seconds_per_step(found, SSGD)
    np.testing.assert_allclose(seconds, np.array([2, 1.5, 2.5]) / 16)

  def test_disturbed_rounds_count_if_too_few_are_left(self):
    found = measurement(100, [1, 2, 9], [0, 0.05, 0.5])
    self.assertEqual(disturbances.undisturbed(found['others']), [0, 1, 2])
    self.assertTrue(disturbances.is_disturbed(found['others']))
    self.assertIn('up to 50% of the proc', hosts_report.table([found]))

  def test_history_has_the_median_for_what_was_not_measured(self):
    found = measurement(
      100, [1, 2, 9, 3], [0, 0, 0.5, 0], errors=[50, 40, 30, 20, 10]
    )
    steps, seconds, errors = zip(*comparing.history(found, SSGD), strict=True)
    self.assertEqual(steps, (16, 32, 48, 64, 80))
    np.testing.assert_allclose(seconds, [2, 3, 5, 7, 10])
    np.testing.assert_allclose(errors, [50, 40, 30, 20, 10])

  def test_the_model_by_hand(self):
    found = measurement(100, [1.6] * 3, [0] * 3)
    by_label = {row.case.label: row for row in comparing.rows([found])}
    # A ring of 4: 2 * 3 messages of a quarter, by 11.96 MB of payload a second.
    sent = 6 / 4 * PARAMETER_BYTES
    lasts = 6 * 1e-3 + sent / (12.5e6 * 1448 / 1514)
    ssgd, every_4 = by_label[SSGD.label], by_label[EVERY_4.label]
    self.assertAlmostEqual(ssgd.modeled_bytes, sent)
    self.assertAlmostEqual(ssgd.modeled_seconds, 0.1 + lasts)
    self.assertAlmostEqual(every_4.modeled_bytes, sent / 4)
    self.assertAlmostEqual(every_4.modeled_seconds, 0.1 + lasts / 4)
    self.assertAlmostEqual(ssgd.on_wire, 1514e4 / 16)
    self.assertAlmostEqual(ssgd.payload, 1448e4 / 16)

  def test_a_slow_link_takes_the_steps_of_another(self):
    slow = measurement(10, [16.0] * 3, [0] * 3)
    fast = measurement(100, [1.6] * 3, [0] * 3, errors=[9, 6, 5, 4])
    found = comparing.rows([slow, fast])
    self.assertEqual(found[1].to_target, (48, 48.0))
    fast_one = found[1 + len(cases.CASES)]
    np.testing.assert_allclose(fast_one.to_target, (48, 4.8))
    never = measurement(100, [1.6] * 3, [0] * 3, errors=[9, 6, 6, 6])
    self.assertIsNone(comparing.rows([never])[1].to_target)

  def test_files_are_read_by_rate_and_damaged_ones_named(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    with self.assertRaisesRegex(ValueError, 'hosts_benchmark.py makes them'):
      comparing.read(root)
    for megabits in (1000, 10):
      made = measurement(megabits, [1.6] * 3, [0] * 3)
      (root / f'{megabits}mbit.json').write_text(json.dumps(made))
    found = comparing.read(root)
    self.assertEqual([one['bits_per_second'] for one in found], [1e7, 1e9])
    (root / '10mbit.json').write_text('{"hosts": 4}')
    with self.assertRaisesRegex(ValueError, '10mbit.json is damaged'):
      comparing.read(root)

  def test_the_figure(self):
    drawn = hosts_report.draw(
      [
        measurement(10, [16.0] * 3, [0] * 3),
        measurement(100, [1.6] * 3, [0] * 3, errors=[9, 6, 5, 4]),
      ]
    )
    self.assertEqual(looks.faults(drawn), [])
    self.assertLen(drawn.axes[0].lines, len(cases.CASES) - 1)

  def test_kept_table_and_figure_are_those_of_the_files(self):
    if not list(KEPT.glob('*mbit.json')):
      self.skipTest('nothing was measured yet')
    measured = comparing.read(KEPT)
    text = (KEPT / 'table.md').read_text()
    self.assertEqual(text, hosts_report.table(measured))
    self.assertEqual(
      figure_files.digest(hosts_report.draw(measured)),
      figure_files.read_digest(KEPT / 'measured.png'),
    )


class MeasuringTest(absltest.TestCase):
  def test_model_has_the_size_that_it_says(self):
    leaves = jax.tree.leaves(cases.PERCEPTRON.shapes().params)
    self.assertEqual(4 * sum(x.size for x in leaves), PARAMETER_BYTES)

  def test_periods_divide_the_block(self):
    for case in cases.CASES:
      self.assertEqual(measuring.BLOCK % case.period, 0)
      self.assertEqual(comparing.MODELED % case.period, 0)
    self.assertLen({case.label for case in cases.CASES}, len(cases.CASES))

  def test_networks_of_the_headline_figure_have_their_sizes(self):
    setting = target.Setting('long', None, pathlib.Path())
    for study, workload, options, size in (
      (t01_long, cases.RESNET8, {'blocks_per_stage': '1'}, 75_290),
      (t01_long_resnet20, cases.RESNET20, {}, 269_722),
    ):
      piece = study.pieces(setting)[0]
      self.assertEqual(piece.config.model, 'resnet20')
      self.assertEqual(piece.config.model_options or {}, options)
      self.assertEqual(piece.config.batch_size, workload.batch_size)
      leaves = jax.tree.leaves(workload.shapes().params)
      self.assertEqual(sum(x.size for x in leaves), size)

  def test_images_are_enlarged(self):
    images = cases.RESNET8.enlarge(np.arange(64.0).reshape(1, 8, 8, 1))
    self.assertEqual(images.shape, (1, 16, 16, 3))
    self.assertEqual(images[0, 15, 14, 1], 63)

  def test_one_process_measures_itself(self):
    small = cases.PERCEPTRON._replace(
      model=models.MLP(10, hidden=(4,)), cases=cases.CASES[:2]
    )
    found = measuring.measure(small, 1e9, seconds=0.0, rounds=5)
    found = json.loads(json.dumps(found))
    self.assertEqual((found['hosts'], len(found['others'])), (1, 3))
    for case in cases.CASES[:2]:
      first, blocks = found['first'][case.label], found['blocks'][case.label]
      self.assertEqual([b['steps'] for b in (first, *blocks)], [16] * 4)
      self.assertGreater(min(b['seconds'] for b in blocks), 0)
      self.assertLess(blocks[-1]['loss'], first['loss'])
      self.assertBetween(blocks[-1]['test_accuracy'], 0, 1)
    # One replica that communicates with none trains as one that does not.
    one, other = (found['blocks'][c.label][-1] for c in cases.CASES[:2])
    self.assertEqual(one['loss'], other['loss'])


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/replicas_benchmark.py`."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import replicas_benchmark
from experiments.running.records import json_files
from experiments.tools import benchmark_cases, benchmark_patterns
from experiments.tools.benchmark_loops import Contestant, Turn
import prsgd_jax as pr
from prsgd_jax import models
from tests import binaries

KEPT = pathlib.Path(replicas_benchmark.__file__).parent / 'results/benchmark'
make_case = benchmark_patterns.make_case


def small(num_replicas, data_dir=None):
  case = make_case(num_replicas, data_dir or binaries.digits_dir())
  return case._replace(model=models.MLP(10, hidden=(4,)))


def measurement(seconds, others):
  """One turn is 4 * 1024 / N steps of N replicas, so 4096 of one replica."""
  return {
    'batch_size': 32, 'date': '2026-01-01', 'others': others,
    'machine': {
      'cpus': 2, 'processor': 'x', 'jax': '0', 'python': '3', 'commit': 'c',
    },
    'contestants': [
      {
        'pattern': 'random_pairs', 'replicas': n, 'steps': 4096 // n,
        'seconds': own, 'compile_seconds': n / 100, 'loss': 1.0,
      }
      for n, own in seconds.items()
    ],
  }  # fmt: skip


class PatternsTest(absltest.TestCase):
  def test_the_digits_fill_a_batch_of_all_replicas(self):
    case = make_case(128, binaries.digits_dir())
    images = case.data['image']
    self.assertGreaterEqual(len(images), 128 * 32)
    n = len(make_case(1, binaries.digits_dir()).data['image'])
    np.testing.assert_array_equal(images[:n], images[n : 2 * n])

  def test_every_pattern_communicates_in_every_step(self):
    shapes = pr.base.Replica(params={'w': np.zeros(9, np.float32)})
    for name, make in benchmark_patterns.PATTERNS.items():
      found = pr.ledger.account(make(), shapes, 16, 4)
      # Groups meet in every step, and all replicas in the last one.
      rounds = {'none': 0, 'groups': 5}.get(name, 4)
      self.assertEqual(found.rounds[-1], rounds, name)


class TablesTest(parameterized.TestCase):
  def test_growth_compares_the_rounds_that_count(self):
    found = measurement(
      {16: [1, 1, 1, 1], 64: [1, 2, 1, 1], 1024: [2, 2, 9, 4]}, [0, 0, 0.9, 0]
    )
    self.assertIsNone(benchmark_patterns.FORM(found))
    # The third round was disturbed. The other ratios are 2, 1 and 4.
    self.assertEqual(
      benchmark_patterns.growth(found, 'random_pairs'), (2.0, 1.5, 3.0)
    )
    text = benchmark_patterns.markdown(found)
    self.assertIn('3 of 4 rounds count', text)
    # 4096 steps of a replica take 1, 1 and 2 seconds.
    self.assertIn(
      '| random pairs | 3.91 | 15.6 | 500 | 2.00 (1.50 to 3.00) | '
      '0.2 s | 10.2 s |',
      text,
    )

  def test_without_both_sizes_there_is_no_growth(self):
    found = measurement({16: [1] * 3, 64: [1] * 3}, [0] * 3)
    self.assertIsNone(benchmark_patterns.growth(found, 'random_pairs'))
    self.assertNotIn('1024', benchmark_patterns.markdown(found))

  def test_kept_table_is_that_of_the_file(self):
    path = KEPT / 'replicas.json'
    measured = json_files.read(path, benchmark_patterns.FORM)
    text = path.with_suffix('.md').read_text()
    self.assertEqual(text, benchmark_patterns.markdown(measured))
    found = {(x['pattern'], x['replicas']) for x in measured['contestants']}
    sizes = (16, 64, 256, 1024)
    wanted = {(p, n) for p in benchmark_patterns.PATTERNS for n in sizes}
    self.assertEqual(found, wanted)


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for thing, name, stub in (
      (benchmark_patterns, 'make_case', small),
      (benchmark_cases, 'initial_loss', lambda case: 9.0),
    ):
      self.enterContext(mock.patch.object(thing, name, stub))
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def call(self, *args):
    return binaries.call(
      replicas_benchmark,
      '--patterns=ring',
      '--turns=3',
      f'--replicas_dir={self.root}',
      *args,
    )

  def test_measures_and_never_overwrites(self):
    outcome = self.call('--replica_counts=4,2')
    self.assertEqual((outcome.code, outcome.err), (0, ''))
    self.assertIn('compile N=2', ' '.join(outcome.out.split()))
    kept = (self.root / 'replicas.json').read_text()
    measured = json.loads(kept)
    self.assertIsNone(benchmark_patterns.FORM(measured))
    few, many = measured['contestants']
    # Turns have equally many steps times replicas.
    self.assertEqual((few['replicas'], few['steps']), (2, 8))
    self.assertEqual((many['replicas'], many['steps']), (4, 4))
    self.assertLen(few['seconds'], 3)
    self.assertGreater(min(few['seconds'] + many['seconds']), 0)
    self.assertIn('| ring |', (self.root / 'replicas.md').read_text())
    outcome = self.call('--replica_counts=2')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, 'replicas.json exists; remove it, or pass')
    self.assertEqual((self.root / 'replicas.json').read_text(), kept)

  def test_a_loss_that_does_not_fall_is_one_line(self):
    one = Contestant('ring', 'engine', 4, lambda steps: Turn(0.1, 9.5), dict)
    with mock.patch.object(benchmark_patterns, 'contestant', return_value=one):
      outcome = self.call('--replica_counts=2')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, 'ring with 2 replicas did not fall, from 9 ')
    self.assertEmpty(list(self.root.iterdir()))

  @parameterized.parameters(
    ('--patterns=ring,foo', "--patterns: unknown 'foo'; use none, mean"),
    ('--patterns=', '--patterns must name one of none, .* got none'),
    ('--replica_counts=16,x', "--replica_counts must be .*, got '16,x'"),
    ('--replica_counts=', "--replica_counts must be .*, got ''"),
    ('--turns=2', '--turns must be >= 3, got 2'),
  )
  def test_errors_are_one_line(self, flag, message):
    outcome = self.call(flag)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^replicas_benchmark.py: error: {message}')
    self.assertEqual(outcome.err.count('\n'), 1)

  def test_a_pattern_that_does_not_fit_is_one_line(self):
    outcome = self.call('--patterns=groups', '--replica_counts=4')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, '^replicas_benchmark.py: error: ')
    self.assertEqual(outcome.err.count('\n'), 1)


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/benchmark.py`."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

from experiments import benchmark
from experiments.tools import (
  benchmark_by_hand,
  benchmark_cases,
  benchmark_loops,
  benchmark_peers,
  benchmark_rounds,
  benchmark_tables,
  benchmark_worker,
  disturbances,
)
from experiments.tools.benchmark_loops import Contestant, Turn
from prsgd_jax import models
from tests import binaries

KEPT = pathlib.Path(benchmark.__file__).parent / 'results' / 'benchmark'
make_case = benchmark_cases.make_case


def small(name, data_dir=None, **changes):
  case = make_case(name, data_dir or binaries.digits_dir())
  short = {'dispatch': 8, 'checked': 16, 'block_seconds': 0.005}
  short['model'] = models.MLP(10, hidden=(16,))
  return case._replace(**short | changes)


def measurement(rates, others):
  """One block is 2 steps of 2 replicas with batches of 32: 128 images."""
  return {
    'case': 'mlp2', 'replicas': 2, 'batch_size': 32, 'period': 8,
    'machine': {
      'cpus': 2, 'processor': 'x', 'jax': '0', 'torch': '1', 'python': '3',
      'commit': 'c',
    },
    'date': '2026-01-01', 'others': others,
    'contestants': [
      {
        'label': label, 'kind': label.split()[0], 'steps': 2,
        'seconds': [128 / rate for rate in own], 'waited': 0.5, 'loss': 1.0,
        'first_seconds': 2.0, 'difference': 1e-7,
      }
      for label, own in rates.items()
    ],
  }  # fmt: skip


class ContestantsTest(absltest.TestCase):
  def test_all_do_equal_work(self):
    case = small('mlp8', num_replicas=4)
    written_out = case._replace(convolves=True)
    contestants = [
      benchmark_loops.engine(case, 1),
      benchmark_by_hand.by_hand(case, 2, scan=True),
      benchmark_by_hand.by_hand(written_out, 2, scan=False),
    ]
    found = benchmark_rounds.measure(case, contestants, seconds=0, rounds=9)
    self.assertLen(found['others'], benchmark_rounds.LEAST_ROUNDS)
    labels = [one['label'] for one in found['contestants']]
    self.assertEqual(
      labels,
      [
        'engine, 1 device', 'by hand, scanned, 2 devices',
        'by hand, stepped, 2 devices',
      ],
    )  # fmt: skip
    for one in found['contestants']:
      self.assertLess(one['difference'], 1e-6)
      self.assertGreater(min(one['seconds']), 0)
    self.assertIsNone(benchmark_tables.FORM(json.loads(json.dumps(found))))

  def test_losses_are_those_of_the_last_step(self):
    # 2 steps after an average, so that parameters of the replicas differ.
    case = small('mlp2', dispatch=2)
    engine = benchmark_loops.engine(case, 1)
    loop = benchmark_by_hand.by_hand(case, 2, scan=True)
    np.testing.assert_allclose(engine.run(10).loss, loop.run(10).loss, 1e-5)

  def test_rows_are_those_of_the_engine(self):
    case = small('mlp2')
    rows = benchmark_cases.rows(case)
    self.assertEqual(rows.shape, (benchmark_cases.TABLE, 2, 32))
    self.assertEqual(benchmark_cases.TABLE % benchmark_cases.PERIOD, 0)
    # An epoch shows every example once.
    n = len(case.data['label'])
    self.assertLen(set(rows.reshape(-1)[:n]), n)

  def test_streamed_and_resident_data_are_equal(self):
    case = small('mlp2_streamed')
    found = benchmark_rounds.measure(
      case, benchmark_loops.from_stream(case, 2), seconds=0, rounds=5
    )
    streamed, resident = found['contestants']
    self.assertEqual(streamed['difference'], resident['difference'])
    self.assertGreaterEqual(streamed['waited'], 0)
    (row, _) = benchmark_tables.rows(found)
    self.assertIn('%', row['waited'])


def fake(label, value, loss=1.0):
  return Contestant(
    label, 'hand', 1, lambda steps: Turn(0.001 * steps, loss),
    lambda: {'w': np.full(2, value)},
  )  # fmt: skip


class RoundsTest(absltest.TestCase):
  def measure(self, *contestants):
    with mock.patch.object(benchmark_cases, 'initial_loss', return_value=2.0):
      return benchmark_rounds.measure(
        small('mlp2'), contestants, seconds=0, rounds=5
      )

  def test_blocks_last_as_long_as_asked(self):
    found = self.measure(fake('a', 0.0), fake('b', 0.0))
    self.assertEqual([one['steps'] for one in found['contestants']], [5, 5])

  def test_other_work_is_refused(self):
    with self.assertRaisesRegex(
      ValueError, r'after 16 steps, parameters of b and of a differ by 0\.01'
    ):
      self.measure(fake('a', 0.0), fake('b', 0.01))
    with self.assertRaisesRegex(ValueError, 'differ by nan'):
      self.measure(fake('a', 0.0), fake('b', np.nan))
    with self.assertRaisesRegex(ValueError, 'the loss of b did not fall'):
      self.measure(fake('a', 0.0), fake('b', 0.0, loss=2.0))

  def test_processor_seconds_are_read(self):
    own = disturbances.process_seconds(os.getpid())
    self.assertBetween(own, 0.01, disturbances.busy_seconds())
    self.assertEqual(disturbances.process_seconds(-1), 0)


class TablesTest(absltest.TestCase):
  def test_ratios_are_of_equal_rounds(self):
    found = measurement(
      {
        'engine 1': [100, 100, 300, 100],
        'hand 1': [200, 50, 300, 100],
        'hand 2': [10, 10, 1000, 10],
        'peer 1': [50, 50, 50, 200],
      },
      [0.0, 0.05, 0.9, 0.0],
    )
    self.assertIsNone(benchmark_tables.FORM(found))
    engine = found['contestants'][0]
    # The third round was disturbed. The ratios to the faster loop by hand are
    # 0.5, 2 and 1, and those to the peer 2, 2 and 0.5.
    self.assertEqual(
      benchmark_tables.ratio(found, engine, 'hand'), (1.0, 0.75, 1.5)
    )
    self.assertEqual(
      benchmark_tables.ratio(found, engine, 'peer'), (2.0, 1.25, 2.0)
    )
    self.assertIsNone(benchmark_tables.ratio(found, engine, 'streamed'))
    text = benchmark_tables.markdown(found)
    self.assertIn('3 of 4 rounds count', text)
    self.assertIn(
      '| engine 1 | 100 (100 to 100) | 1.00 (0.75 to 1.50) | '
      '2.00 (1.25 to 2.00) |',
      text,
    )
    self.assertNotIn('without data', text)

  def test_rates_have_three_digits(self):
    rates = {f'hand {rate}': [rate] for rate in (12345.0, 1.2345, 99.96, 317.4)}
    rows = benchmark_tables.rows(measurement(rates, [0]))
    shown = [row['rate'].split()[0] for row in rows]
    self.assertEqual(shown, ['12,300', '1.23', '100', '317'])

  def test_kept_table_is_that_of_the_files(self):
    measured = benchmark.read(KEPT)
    self.assertNotEmpty(measured)
    text = (KEPT / 'table.md').read_text()
    self.assertEqual(text, benchmark.table(measured))


class ProgramTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(benchmark_cases, 'make_case', small))
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def call(self, *args):
    return binaries.call(
      benchmark,
      '--max_rounds=5',
      '--case_seconds=0',
      f'--results={self.root}',
      *args,
    )

  def test_measures_and_keeps_what_it_measured(self):
    outcome = self.call('--cases=mlp2', '--engine_devices=2')
    self.assertEqual((outcome.code, outcome.err), (0, ''))
    self.assertIn('ratio to the best by hand', ' '.join(outcome.out.split()))
    kept = (self.root / 'mlp2.json').read_text()
    self.assertLen(json.loads(kept)['contestants'], 3)
    table = (self.root / 'table.md').read_text()
    self.assertRegex(table, r'engine, 2 devices \| [\d,]+ \(')
    outcome = self.call('--cases=mlp2')
    self.assertIn('mlp2.json exists; --measure_again', outcome.out)
    self.assertEqual((self.root / 'mlp2.json').read_text(), kept)
    self.assertEqual((self.root / 'table.md').read_text(), table)

  def test_errors_are_one_line(self):
    for flag, message in (
      ('--engine_devices=3', '--engine_devices must divide the 2 replicas'),
      ('--engine_devices=x', '--engine_devices must divide the 2 replicas'),
      ('--max_rounds=4', '--max_rounds must be >= 5, got 4'),
    ):
      outcome = self.call('--cases=mlp2', flag)
      self.assertEqual(outcome.code, 1)
      self.assertRegex(outcome.err, f'^benchmark.py: error: {message}')
      self.assertEqual(outcome.err.count('\n'), 1)

  def test_unknown_case_is_one_line(self):
    with mock.patch.object(benchmark_cases, 'make_case', make_case):
      outcome = self.call('--cases=foo')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, "^benchmark.py: error: unknown case 'foo'; use mlp2"
    )

  def test_missing_peers_are_named(self):
    with mock.patch.object(
      benchmark_peers, 'missing', return_value=['torch', 'drjax']
    ):
      outcome = self.call('--cases=mlp2', '--peers')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, 'found no peer; pip install torch drjax$')


class PeersTest(parameterized.TestCase):
  def setting(self, case):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    benchmark_peers.write(case, root)
    return benchmark_worker.read(root, 0)

  @parameterized.parameters(('torch', 'torch_local_sgd'), ('drjax', 'drjax'))
  def test_trains_as_the_engine(self, package, kind):
    if importlib.util.find_spec(package) is None:
      self.skipTest(f'{package} is not installed')
    case = small('mlp2', model=models.MLP(10))
    peer = benchmark_worker.make(kind, self.setting(case))
    engine = benchmark_loops.engine(case, 1)
    np.testing.assert_allclose(peer.run(24), engine.run(24).loss, rtol=1e-4)
    expected, found = engine.average(), peer.average()
    self.assertEqual(found.keys(), expected.keys())
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, atol=1e-6)

  @unittest.skipIf(
    importlib.util.find_spec('torch') is None, 'torch is not installed'
  )
  @parameterized.parameters(models.LeNet5, models.ResNet20)
  def test_models_of_torch_are_those_of_flax(self, kind):
    case = make_case({'LeNet5': 'lenet2'}.get(kind.__name__, 'resnet2'), None)
    setting = self.setting(case)
    torch = importlib.import_module('torch')
    found = importlib.import_module('experiments.tools.benchmark_torch')
    model = found.MODELS[kind.__name__](setting.params)
    image = setting.data['image'][:8]
    logits = model(torch.tensor(image.transpose(0, 3, 1, 2)))
    params, state = benchmark_cases.initial(case)
    expected, _ = jax.jit(
      lambda image: case.model.apply(
        {'params': params, **state}, image, train=True, mutable=list(state)
      )
    )(image)
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-4)

  def test_a_worker_obeys_commands(self):
    path = self.create_tempfile().full_path + '.npz'
    answers = io.StringIO()
    commands = [{'run': 3}, {'average': path}]
    benchmark_worker.serve(
      benchmark_worker.Peer(4, lambda n: n / 2, lambda: {'w': np.ones(2)}),
      io.StringIO(''.join(json.dumps(one) + '\n' for one in commands)),
      answers,
    )
    ready, ran, wrote = map(json.loads, answers.getvalue().splitlines())
    self.assertEqual((ready, wrote), ({'unit': 4, 'note': ''}, {}))
    self.assertEqual(ran['loss'], 1.5)
    np.testing.assert_array_equal(np.load(path)['w'], [1, 1])

  def test_the_error_of_a_worker_is_one_line(self):
    messages = pathlib.Path(self.create_tempfile().full_path)
    with messages.open('w') as file, subprocess.Popen(
      [sys.executable, '-S', '-c', 'raise ValueError("no room")'],
      stdout=subprocess.PIPE, stderr=file, text=True,
    ) as process:  # fmt: skip
      worker = benchmark_peers.Worker(process, messages)
      with self.assertRaisesRegex(ValueError, '^DrJAX failed: .*: no room$'):
        benchmark_peers.answer('drjax', worker)


if __name__ == '__main__':
  absltest.main()

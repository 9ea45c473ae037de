"""Tests of `experiments/benchmark.py`."""

import pathlib

from absl.testing import absltest, parameterized
import numpy as np

from experiments import benchmark
from experiments.tools import (
  benchmark_by_hand,
  benchmark_cases,
  benchmark_loops,
  benchmark_rounds,
)
from tests import binaries

KEPT = pathlib.Path(benchmark.__file__).parent / 'results' / 'benchmark'


def case_of(name, **changes):
  case = benchmark_cases.make_case(name, binaries.digits_dir())
  short = {'dispatch': 8, 'checked': 16, 'block_seconds': 0.01}
  return case._replace(**short, **changes)


def measured(rates, kinds, others, **changes):
  """One step of 2 replicas with batches of 32 takes 64 / rate seconds."""
  return {
    'case': 'mlp2', 'replicas': 2, 'batch_size': 32, 'period': 8,
    'machine': {
      'cpus': 2, 'processor': 'x', 'jax': '0', 'python': '3', 'commit': 'c'
    },
    'date': '2026-01-01', 'others': others,
    'contestants': [
      {
        'label': f'{kind} {i}', 'kind': kind, 'steps': 2,
        'seconds': [128 / rate for rate in rates], 'waited': 0.5, 'loss': 1.0,
        'first_seconds': 2.0, 'difference': 1e-7, **changes,
      }
      for i, (rates, kind) in enumerate(zip(rates, kinds))
    ],
  }  # fmt: skip


class ContestantsTest(parameterized.TestCase):
  @parameterized.parameters((1, True), (2, True), (2, False))
  def test_engine_and_loops_train_equally(self, num_devices, scan):
    case = case_of('mlp2')
    loop = benchmark_by_hand.by_hand(case, num_devices, scan=scan)
    engine = benchmark_loops.engine(case, num_devices)
    # Not a multiple of the period, so that the replicas differ.
    losses = [one.run(24 if scan else 12).loss for one in (loop, engine)]
    if scan:
      np.testing.assert_allclose(*losses, rtol=1e-5)

  def test_all_contestants_are_checked(self):
    case = case_of('mlp8')
    contestants = [
      benchmark_loops.engine(case, 1),
      benchmark_by_hand.by_hand(case, 2, scan=True),
      benchmark_by_hand.by_hand(case, 4, scan=False),
    ]
    found = benchmark_rounds.measure(case, contestants, seconds=0, rounds=9)
    self.assertLen(found['others'], benchmark_rounds.LEAST_ROUNDS)
    for one in found['contestants']:
      self.assertLess(one['difference'], 1e-6)
      self.assertLess(one['loss'], 2)
      self.assertGreater(min(one['seconds']), 0)


if __name__ == '__main__':
  absltest.main()

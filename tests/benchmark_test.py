"""Tests of `experiments/benchmark.py`."""

from absl.testing import absltest
import numpy as np

from experiments import benchmark
from experiments.tools import benchmark_loops
from tests import binaries


class BenchmarkTest(absltest.TestCase):
  def test_all_loops_do_the_same_work(self):
    case = benchmark_loops.make_case('mlp2', binaries.digits_dir())
    case = case._replace(steps_per_dispatch=8)
    engine = benchmark_loops.engine_loop(case).run()
    self.assertEqual(engine['loss'].shape, (8, 2))
    loss, by_hand = benchmark_loops.hand_written_loop(case, scan=True).run()
    # The third dispatch: 24 steps of float32 in another order.
    np.testing.assert_allclose(engine['loss'].T, loss, rtol=1e-4)
    np.testing.assert_allclose(
      engine['accuracy'].T, by_hand['accuracy'], rtol=1e-6
    )
    last, _ = benchmark_loops.hand_written_loop(case, scan=False).run()
    np.testing.assert_allclose(engine['loss'][-1], last, rtol=1e-4)

  def test_measures_ratio_memory_and_time_to_first_step(self):
    case = benchmark_loops.make_case('mlp2', binaries.digits_dir())
    case = case._replace(steps_per_dispatch=2, dispatches=1, repeats=2)
    found = benchmark.measure(case)
    rates = found['steps_per_second']
    by_hand = ('scanned_by_hand', 'stepped_by_hand')
    best = max(rates[name] for name in by_hand)
    self.assertEqual(found['ratio'], rates['engine'] / best)
    for name in ('engine', *by_hand):
      self.assertGreater(found['seconds_to_first_step'][name], 0)
      # At least parameters, momentum and the images.
      self.assertGreater(
        found['bytes_per_device'][name], 2 * 9610 * 4 + 1437 * 64
      )

  def test_measures_streamed_against_resident_data(self):
    case = benchmark_loops.make_case('mlp2_streamed', binaries.digits_dir())
    case = case._replace(steps_per_dispatch=16, dispatches=1, repeats=2)
    found = benchmark.measure_streamed(case)
    rates = found['steps_per_second']
    self.assertEqual(found['ratio'], rates['streamed'] / rates['resident'])
    self.assertBetween(found['data_wait'], 0, 1)

  def test_unknown_case_is_one_line(self):
    outcome = binaries.call(benchmark, '--cases=foo')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, "^benchmark.py: error: unknown case 'foo'; use mlp2"
    )


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/tools/results.py`."""

import json

from absl.testing import absltest

from experiments.running.flags import algorithm_flags
from experiments.tools import results
from tests import binaries


def summary(accuracy):
  return {
    'label': 'ssgd', 'epoch': 5.0, 'loss': 0.5, 'test_accuracy': accuracy,
    'rounds': 7, 'bytes_sent': 2048.0, 'cpus': 2, 'device': 'cpu',
    'jax': '0.10.2', 'commit': 'abc',
  }  # fmt: skip


class ResultsTest(absltest.TestCase):
  def test_row_has_the_spread_over_seeds(self):
    by_seed = [[summary(0.97)], [summary(0.99)]]
    table = results.format_table({'digits_mlp': by_seed})
    self.assertEqual(
      table.splitlines()[2],
      '| digits_mlp | ssgd | 2 | 5 | 0.5000 (0.5000 to 0.5000) '
      '| 98.00% (97.00% to 99.00%) | 7 | 2.0 KiB '
      '| 2 cpu cores, JAX 0.10.2 | abc |',
    )

  def test_table_replaces_what_stands_between_the_marks(self):
    text = f'before\n{results.BEGIN}old\n{results.END}after\n'
    new = results.with_table(text, {'digits_mlp': [[summary(0.5)]]})
    self.assertStartsWith(new, f'before\n{results.BEGIN}| preset')
    self.assertEndsWith(new, f'{results.END}after\n')
    self.assertNotIn('old', new)

  def test_every_preset_of_the_table_is_there(self):
    for preset in {*results.SEEDS, *results.single_runs()} - {results.EACH}:
      path = results.HERE / 'presets' / f'{preset}.flags'
      self.assertTrue(path.exists(), path)

  def test_every_algorithm_has_a_run_of_its_own(self):
    named = {f'digits_{name}' for name in algorithm_flags.ALGORITHMS}
    self.assertEqual({*results.single_runs()}, named)

  def test_every_run_of_the_table_is_kept(self):
    for preset, seeds in results.SEEDS.items():
      for seed in seeds:
        path = results.RESULTS / f'{preset}-seed{seed}.json'
        self.assertTrue(path.exists(), path)
        for run in json.loads(path.read_text()):
          self.assertNotEqual(run['jax'], '0.10.2')  # it sums wrongly

  def test_every_algorithm_has_learned_the_digits(self):
    (runs,) = results.read_results()[results.EACH]
    accuracy = {run['label'].split()[0]: run['test_accuracy'] for run in runs}
    self.assertEqual({*accuracy}, {*algorithm_flags.ALGORITHMS})
    self.assertGreaterEqual(min(accuracy.values()), 0.95)

  def test_unknown_preset_is_one_line(self):
    outcome = binaries.call(results, '--presets=foo')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err, "^results.py: error: unknown preset 'foo'; use some of"
    )


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/costs.py`."""

from absl.testing import absltest, parameterized

from experiments import algorithm_flags, costs, experiment
from prsgd_jax.datasets import load_dataset
from tests import binaries


class CostsTest(parameterized.TestCase):
  def cells(self, *args):
    outcome = binaries.call(costs, *args)
    self.assertEqual(outcome.code, 0, outcome.err)
    rows = outcome.out.splitlines()[2:]
    return [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]

  def test_a_row_is_what_the_chain_sends(self):
    # 65 * 128 + 129 * 10 parameters: 37.5 KiB, of which 2 * 7 / 8 are sent.
    rows = self.cells(
      '--run=k_avg,period=4', '--run=hier_avg,local_period=1,global_period=4,'
      'group_size=2', '--num_steps=8', '--latency=0', '--group_latency=0',
      '--bandwidth=1e15', '--group_bandwidth=1e15', '--step_time=2',
    )  # fmt: skip
    self.assertEqual(
      rows[0][:-1],
      ['k_avg period=4', '2', '131.4 KiB', '131.4 KiB', '0 B', '16.00'],
    )
    self.assertEqual(rows[1][1], '10')
    self.assertEqual(rows[1][3:5], ['131.4 KiB', '300.3 KiB'])

  def test_schedules_and_codecs_count(self):
    rows = self.cells(
      '--run=k_avg,when=at:1+2', '--run=diloco,when=doubling:1',
      '--run=diloco,period=4,average_codec=signs', '--num_steps=8',
    )  # fmt: skip
    self.assertEqual([row[1] for row in rows], ['2', '3', '2'])
    # Bytes of the signs of each leaf and four scales, to seven replicas, twice.
    sent = 2 * 7 * (1024 + 16 + 160 + 2 + 4 * 4)
    self.assertEqual(rows[2][2], f'{sent / 1024:.1f} KiB')

  def test_without_runs_it_has_every_algorithm(self):
    rows = self.cells('--num_steps=8')
    named = {row[0].split()[0] for row in rows}
    self.assertEqual(named, set(algorithm_flags.ALGORITHMS))

  def test_shapes_are_those_of_the_datasets(self):
    for name in ('digits', 'text'):
      dataset = load_dataset(name, binaries.digits_dir())
      shape = costs.DATASETS[name]
      known = experiment.batch_shapes(dataset)
      for key, value in shape.batch.items():
        self.assertEqual(known[key], value)
      self.assertEqual(shape.num_examples, dataset.num_examples)
      self.assertEqual(shape.num_classes, dataset.num_classes)

  def test_language_models_have_their_size(self):
    (row,) = self.cells(
      '--dataset=text', '--model=transformer', '--run=k_avg,period=8',
      '--num_steps=8',
    )  # fmt: skip
    # 112577 parameters of 4 bytes, 2 * 7 / 8 of them sent.
    self.assertEqual(row[1:3], ['1', '769.6 KiB'])

  @parameterized.parameters(
    ('dataset must be one of digits', '--dataset=imagenet'),
    ('one number > 0 for each of the 8', '--replica_speeds=1,2'),
    ("replica_speeds expects numbers, got 'fast'", '--replica_speeds=fast'),
  )
  def test_bad_input_is_one_line(self, message, flag):
    outcome = binaries.call(costs, '--run=ssgd', flag)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^costs.py: error: .*{message}')


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/costs.py`."""

import csv
import json
import re
from unittest import mock

from absl.testing import absltest, parameterized

from experiments import costs
from experiments.running.execution import experiment
from experiments.running.flags import algorithm_flags
from prsgd_jax.data.datasets import load_dataset
from tests import binaries


class CostsTest(parameterized.TestCase):
  def cells(self, *args):
    outcome = binaries.call(costs, '--format=markdown', *args)
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

  def test_presets_are_stretched_to_any_number_of_replicas(self):
    for n, want in ((2, '4+8'), (8, '4+4+4+4+8+8+16+16'), (16, '4+' * 8)):
      runs = costs.preset_runs(n)
      run = runs['digits_pr_sgd_heterogeneous']
      self.assertStartsWith(run, f'pr_sgd_heterogeneous,local_steps={want}')
      # One number for each epoch, or each level, is left as it is.
      epochs = runs['digits_pr_sgd_time_varying']
      self.assertEqual(epochs.count('+'), 15)
      self.assertIn('group_sizes=2+4', runs['digits_multi_level_avg'])

  def test_a_preset_that_does_not_fit_is_left_out_with_a_note(self):
    runs = {'fits': 'ssgd', 'groups': 'hier_avg,local_period=1,'
            'global_period=4,group_size=4'}  # fmt: skip
    with mock.patch.object(costs, 'preset_runs', return_value=runs):
      outcome = binaries.call(costs, '--num_replicas=3', '--num_steps=4')
    self.assertEqual(outcome.code, 0)
    self.assertIn('ssgd', outcome.out)
    self.assertRegex(
      outcome.err, '^costs.py: the preset groups is left out: .*group_size'
    )
    # A run that is asked for is not.
    outcome = binaries.call(
      costs, '--num_replicas=3', '--num_steps=4', f'--run={runs["groups"]}'
    )
    self.assertEqual(outcome.code, 1)

  def test_the_table_is_aligned(self):
    outcome = binaries.call(
      costs, '--run=ssgd', '--run=k_avg,period=2', '--num_steps=8'
    )
    *_, rule, first, second = outcome.out.splitlines()
    end = [match.end() for match in re.finditer('-+', rule)][1]
    for line in (first, second):
      # A number ends where its dashes end.
      self.assertNotEqual(line[end - 1], ' ')
      self.assertEqual(line[end : end + 1].strip(), '')

  def test_sorted_numbers_as_json_and_csv(self):
    args = (
      '--run=ssgd', '--run=k_avg,period=4', '--num_steps=8', '--sort=rounds'
    )  # fmt: skip
    rows = json.loads(binaries.call(costs, *args, '--format=json').out)
    self.assertEqual([row['rounds'] for row in rows], [2, 8])
    sent = 2 * 7 / 8 * 4 * (65 * 128 + 129 * 10)
    self.assertEqual(rows[0]['bytes_sent'], 2 * sent)
    text = binaries.call(costs, *args, '--format=csv').out
    (first, _) = csv.DictReader(text.splitlines())
    self.assertEqual(float(first['bytes_sent']), 2 * sent)

  @parameterized.parameters(
    ('--step_time', ('1e308', 'nan', 'inf', '-1')),
    ('--jitter', ('nan', 'inf', '1e308')),
    ('--latency', ('nan', 'inf', '1e308', '-1')),
    ('--bandwidth', ('nan', 'inf', '0', '-1', '1e-308', '1e308')),
    ('--group_latency', ('nan',)),
    ('--group_bandwidth', ('nan',)),
    ('--num_replicas', ('0', '-1', '1000000000000', '9' * 40)),
    ('--num_steps', ('0', '-1', '3000000000', '9' * 40)),
    ('--num_epochs', ('nan', 'inf', '1e308', '-1')),
    ('--batch_size', ('0', '-1', '9' * 40)),
    ('--learning_rate', ('nan', 'inf', '0')),
    ('--weight_decay', ('nan', 'inf', '-1')),
    ('--momentum', ('nan', '1')),
    ('--seed', ('-1', '4294967296', '9' * 40)),
    ('--warmup_epochs', ('nan', 'inf', '-1')),
    ('--learning_rate_drops', ('nan', 'inf', '2,1')),
  )
  def test_a_number_of_no_sense_is_one_line_with_the_flag(self, flag, values):
    for value in values:
      outcome = binaries.call(costs, '--run=ssgd', f'{flag}={value}')
      self.assertEqual(outcome.code, 1, f'{flag}={value}')
      self.assertRegex(outcome.err, f'^costs.py: error: .*{flag}.*\n$')

  @parameterized.parameters(
    ('--num_devices', '9' * 40), ('--num_devices', '-3'),
    ('--replica_speeds', ','.join(['1e-99'] * 8)),
    ('--warmup_epochs', '1e300'), ('--learning_rate_drops', '1e300'),
    ('--step_time', '1e100'),
  )  # fmt: skip
  def test_an_odd_number_is_no_traceback(self, flag, value):
    outcome = binaries.call(
      costs, '--run=ssgd', '--num_steps=4', f'{flag}={value}'
    )
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertNotIn('nan', outcome.out)
    self.assertNotIn(' inf ', outcome.out)

  def test_other_sequences_are_counted(self):
    (row,) = self.cells(
      '--dataset=text', '--run=k_avg,period=8', '--num_steps=8',
      '--sequence_length=32',
    )  # fmt: skip
    # Half of the 64 positions of width 64 are left out.
    sent = 2 * 7 / 8 * 4 * (112577 - 32 * 64)
    self.assertEqual(row[2], f'{sent / 1024:.1f} KiB')

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

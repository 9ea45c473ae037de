"""Tests of `running/flags/saved_flags.py`: `--resume --workdir` is enough."""

import dataclasses
import json
import pathlib
import tempfile

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import train
from experiments.running.flags import config, saved_flags
from experiments.running.records import differences, records
from tests import own_modules

FLAGS = flags.FLAGS
del train  # whose flags these are


class RestoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(flagsaver.flagsaver())
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root) / 'run'

  def parse(self, *args):
    FLAGS.unparse_flags()
    for name in FLAGS:
      flag = FLAGS[name]
      flag.value, flag.present = flag.default, 0
    FLAGS(['train.py', *args])

  def config(self):
    return config.from_flags(FLAGS, algorithm=FLAGS.algorithm)

  def write(self, *args):
    self.parse(*args)
    made = self.config()
    self.open(made)
    return made

  def open(self, made):
    records.open_workdir(
      self.workdir, {**dataclasses.asdict(made), 'data': 'ab'},
      saved_flags.of_run(made), label=made.label(), num_steps=9, resume=False,
    )  # fmt: skip

  @parameterized.parameters(
    '--algorithm=pr_sgd --period=4 --num_steps=30',
    '--algorithm=ssgd --learning_rate_drops=10,15.5 --num_epochs=30',
    '--algorithm=ssgd --optimizer=adamw --weight_decay=0.1 --log_every=7',
    '--algorithm=ssgd --augment --noprogress --dtype=bfloat16 --momentum=0',
    '--algorithm=slowmo --slow_momentum=0.5 --when=doubling:3 --buffers=average'
    ' --local=sgp:one_peer_exponential --average_codec=feedback:top_k:0.1',
    '--algorithm=ssgd --replica_speeds=1,2 --num_replicas=2 --seed=7',
    '--algorithm=ssgd --partition=dirichlet --dirichlet_alpha=0.1',
  )
  def test_all_flags_come_back(self, args):
    made = self.write(*args.split())
    values = {name: FLAGS[name].value for name in config.all_flags()}
    self.parse()
    saved_flags.restore(FLAGS, self.workdir)
    self.assertEqual(self.config(), made)
    again = {name: FLAGS[name].value for name in values}
    if made.num_steps is not None:
      del again['num_epochs'], values['num_epochs']
    if made.optimizer != 'sgd':
      del again['momentum'], values['momentum']
    numbers = ('learning_rate_drops', 'replica_speeds')
    for found in (again, values):
      found |= {n: list(map(float, found[n])) for n in numbers}
    self.assertEqual(again, values)

  def test_length_and_intervals_may_change(self):
    self.write('--period=4', '--num_steps=30', '--log_every=10')
    self.parse('--num_epochs=7', '--log_every=5', '--num_devices=2')
    saved_flags.restore(FLAGS, self.workdir)
    found = self.config()
    self.assertEqual((found.num_epochs, found.num_steps), (7, None))
    self.assertEqual(found.options, {'period': 4})
    self.assertEqual((FLAGS.log_every, FLAGS.num_devices), (5, 2))

  @parameterized.parameters(
    ('--period=8', 'with --period=4, this one has --period=8;'),
    ('--algorithm=ssgd', 'with --algorithm=pr_sgd, this one has --algorithm=s'),
    ('--when=doubling:4', 'with no --when, this one has --when=doubling:4;'),
    ('--augment', 'with --noaugment, this one has --augment;'),
    ('--learning_rate=1', '=0.05, this one has --learning_rate=1.0;'),
    ('--learning_rate_drops=4,6',
     '=4,5, this one has --learning_rate_drops=4,6'),
    ('--latency=1', '--latency=5e-05, this one has --latency=1.0;'),
    ('--init_from=x', 'with no --init_from, this one has --init_from=x;'),
  )  # fmt: skip
  def test_others_are_refused_in_the_syntax_of_flags(self, flag, pattern):
    args = ('--period=4', '--learning_rate=.05', '--learning_rate_drops=4,5')
    self.write(*args)
    self.parse(flag)
    with self.assertRaisesRegex(ValueError, pattern) as caught:
      saved_flags.restore(FLAGS, self.workdir)
    self.assertRegex(str(caught.exception), '; pass another --work')
    self.parse(*args)  # because given flags may be repeated
    saved_flags.restore(FLAGS, self.workdir)

  def test_lists_of_replicas_change_only_with_their_number(self):
    self.write('--algorithm=wp_sgd', '--local_steps=1,2,3', '--contraction=0.9')
    self.parse('--local_steps=1,2')
    with self.assertRaisesRegex(ValueError, 'this one has --local_steps=1,2'):
      saved_flags.restore(FLAGS, self.workdir)
    self.parse('--num_replicas=2', '--local_steps=1,2', '--contraction=0.8')
    with self.assertRaisesRegex(ValueError, 'this one has --contraction=0.8'):
      saved_flags.restore(FLAGS, self.workdir)
    self.parse('--num_replicas=2', '--local_steps=1,2')
    saved_flags.restore(FLAGS, self.workdir)
    made = self.config()
    self.assertEqual(made.num_replicas, 2)
    self.assertEqual(made.options['local_steps'], '1,2')

  def test_run_of_a_comparison_has_its_own_algorithm(self):
    """Whose program had other flags."""
    self.parse('--num_steps=30')
    made = config.check(
      dataclasses.replace(
        config.from_flags(FLAGS, algorithm='ssgd'),
        algorithm='k_avg',
        options={'period': 5},
      )
    )
    self.open(made)
    self.parse()
    saved_flags.restore(FLAGS, self.workdir)
    self.assertEqual(self.config(), made)

  @parameterized.parameters(
    ('seed', True), ('learning_rate_drops', [4]), ('logger', [None]),
    ('augment', 1), ('model', ['mlp']), ('num_epochs', '3'),
  )  # fmt: skip
  def test_value_of_another_type_is_damage(self, name, value):
    self.write('--period=4')
    path = self.workdir / records.CONFIG
    config = json.loads(path.read_text())
    config['flags'] |= {name: value}
    path.write_text(json.dumps(config))
    self.parse()
    with self.assertRaisesRegex(ValueError, f'damaged .{name}: expected '):
      saved_flags.restore(FLAGS, self.workdir)

  @parameterized.parameters(
    '--period=2 --algorithm_options=strength=0.5',
    '--algorithm_options=period=2,strength=0.5',
    '--algorithm_options=period=2.5',  # --period is an integer
    '--algorithm_options=period=2,note=a+b',
  )
  def test_options_of_ones_own_algorithm_come_back(self, args):
    self.enterContext(own_modules.directory('mine'))
    algorithm = '--algorithm=mine:soft'
    made = self.write(algorithm, *args.split())
    self.parse()
    saved_flags.restore(FLAGS, self.workdir)
    self.assertEqual(self.config(), made)
    self.parse(algorithm, *args.split())
    saved_flags.restore(FLAGS, self.workdir)
    self.assertEqual(self.config(), made)

  def test_keywords_of_ones_own_set_no_other_flag(self):
    self.enterContext(own_modules.directory('mine'))
    options = '--algorithm_options=seed=3,lr=4.5'
    made = self.write('--algorithm=mine:named', options, '--seed=1')
    self.parse()
    saved_flags.restore(FLAGS, self.workdir)
    self.assertEqual((FLAGS.seed, FLAGS.learning_rate), (1, 0.1))
    self.assertEqual(self.config(), made)
    self.assertEqual(made.options, {'seed': 3, 'lr': 4.5})

  def test_without_a_run_it_is_one_line(self):
    with self.assertRaisesRegex(ValueError, 'holds no run'):
      saved_flags.restore(FLAGS, self.workdir)


class DifferencesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'seed': 0}, {'seed': 1}, '--seed=0, this one has --seed=1'),
    ({'data': 'a'}, {'data': 'b'}, 'on other data; pass its --data_dir'),
    ({'options': {'period': 4}}, {'options': {}}, '--period=4, this .* no --p'),
    ({'network': {'links': {'group': [1, 2]}}},
     {'network': {'links': {'group': [1, 3]}}},
     '--group_bandwidth=2, this one has --group_bandwidth=3'),
    ({'network': {'speeds': [1, 2]}}, {'network': {'speeds': []}},
     '--replica_speeds=1,2, this one has --replica_speeds='),
    ({'seed': 0, 'options': {'seed': 5}}, {'seed': 1, 'options': {'seed': 5}},
     '--seed=0, this one has --seed=1'),
    ({'seed': 0, 'options': {'seed': 5}}, {'seed': 0, 'options': {'seed': 6}},
     '--algorithm_options=seed=5, this one has --algorithm_options=seed=6'),
  )  # fmt: skip
  def test_first_one_is_said_as_flags(self, one, other, pattern):
    where = pathlib.Path('runs/a')
    with self.assertRaisesRegex(ValueError, pattern):
      differences.check(where, one, other)
    differences.check(where, one, one)

  def test_log_every_does_not_bind(self):
    differences.check(pathlib.Path('a'), {'log_every': 1}, {'log_every': 2})


if __name__ == '__main__':
  absltest.main()

"""Help of the command line, and suggestions for misspelled names."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import compare, costs, plot, sweep, train
from experiments.running.flags import algorithm_flags, config, grids
from prsgd_jax import __main__ as project
from prsgd_jax.engine import processes
from tests import binaries

del sweep  # whose flags grids read


class HelpTest(parameterized.TestCase):
  def test_options_of_the_algorithm_are_there_and_of_no_other(self):
    outcome = binaries.call(train, '--algorithm=slowmo', '--help')
    self.assertEqual((outcome.code, outcome.err), (0, ''))
    _, _, page = outcome.out.partition('Options of slowmo:\n')
    own, _, rest = page.partition('\n\n')
    found = [line.strip() for line in own.splitlines() if '  --' in line]
    wanted = [f for f in algorithm_flags.own_flags('slowmo')
              if f in algorithm_flags.FLAG_KINDS]  # fmt: skip
    self.assertEqual(found, [f'--{flag}' for flag in wanted])
    self.assertNotIn('--group_size\n', outcome.out)
    self.assertIn('--learning_rate=0.1, --lr\n', rest)
    for title in ('Run:', 'Data:', 'Model:', 'Learning rate:'):
      self.assertIn(f'\n{title}\n', rest)

  @parameterized.parameters(train, compare, costs, plot)
  def test_every_flag_is_in_a_group(self, binary):
    outcome = binaries.call(binary, '-h')
    self.assertEqual(outcome.code, 0)
    self.assertLess(max(map(len, outcome.out.splitlines())), 81)
    for flag in flags.FLAGS.get_key_flags_for_module(binary.__name__):
      if flag.name not in (*algorithm_flags.FLAG_KINDS, *config.ALIASES):
        self.assertRegex(outcome.out, rf'(?m)^  --{flag.name}\b')

  def test_version(self):
    outcome = binaries.call(train, '--version')
    self.assertEqual(outcome.code, 0)
    self.assertRegex(outcome.out, r'^prsgd_jax \S+, JAX \S+, Python \S+\n$')

  def test_the_package_says_what_is_there(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      project.main()
    self.assertRegex(out.getvalue(), r'^prsgd_jax .*\n.*\nDevices: 8 x cpu\n')
    self.assertIn('pr_sgd', out.getvalue())


class NearNamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ("flag 'epoch'; did you mean --epochs?", '--epoch=3'),
    ("flag 'perod'; did you mean --period?", '--perod=4'),
    ("flag 'bfloat16'; did you mean --dtype=bfloat16?", '--bfloat16'),
    ("flag 'cosine'; did you mean --lr_schedule=cosine?", '--cosine'),
    ("flag 'diloco'; did you mean --algorithm=diloco?", '--diloco'),
    ("flag 'xyzzy'; see --help", '--xyzzy'),
    ('did you mean experiments/presets/digits_diloco.flags?',
     '--flagfile=digits_diloko.flags'),
    ('did you mean experiments/presets/demo.flags?', '--flagfile=demo.flags'),
    ('experiments/presets has [0-9]+, such as demo.flags',
     '--flagfile=xyzzy'),
    ('unknown --algorithm=localsgd; did you mean local_sgd?',
     '--algorithm=localsgd'),
    ('unknown --algorithm=DiLoCo; did you mean diloco?', '--algorithm=DiLoCo'),
    ('unknown --model=MLP; did you mean mlp?', '--model=MLP'),
    ("got 'MNIST'; did you mean mnist?", '--dataset=MNIST'),
    ('unknown --model=transfomer; did you mean transformer?',
     '--model=transfomer'),
    ("got 'mnits'; did you mean mnist?", '--dataset=mnits'),
  )  # fmt: skip
  def test_is_proposed_on_one_short_line(self, pattern, args):
    outcome = binaries.call(train, *args.split())
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)

  def test_preset_that_is_no_text_is_one_line(self):
    with tempfile.TemporaryDirectory() as root:
      path = pathlib.Path(root) / 'binary.flags'
      path.write_bytes(b'\xff\xfe--lr=1\n')
      outcome = binaries.call(train, f'--flagfile={path}')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, '^train.py: error: --flagfile is not text')

  @parameterized.parameters(
    ('pr_sgd,perod=4', 'did you mean period?'),
    ('local_sg,period=4', 'did you mean local_sgd?'),
  )
  def test_of_runs_too(self, run, pattern):
    outcome = binaries.call(compare, f'--run={run}', '--workdir=x')
    self.assertEqual(outcome.code, 1)
    self.assertIn(pattern, outcome.err)


class AliasesTest(parameterized.TestCase):
  def parse(self, *args):
    with flagsaver.flagsaver():
      for flag in flags.FLAGS:
        flags.FLAGS[flag].present = 0
      flags.FLAGS(['train.py', *args])
      config.fill_in(flags.FLAGS)
      self.kept = config.all_flags()
      return config.from_flags(flags.FLAGS, algorithm=flags.FLAGS.algorithm)

  def test_short_flags_are_the_long_ones(self):
    short = self.parse('--lr=0.3', '--epochs=2', '--bs=4', '--wd=0.1',
                       '--replicas=2')  # fmt: skip
    wanted = (0.3, 2, 4, 0.1, 2)
    self.assertEqual(
      (short.learning_rate, short.num_epochs, short.batch_size,
       short.weight_decay, short.num_replicas), wanted,
    )  # fmt: skip
    self.assertEqual(self.parse('--steps=7').num_steps, 7)
    with self.assertRaisesRegex(ValueError, 'both set the length; give one'):
      self.parse('--steps=7', '--epochs=2')
    self.assertEqual({*self.kept} & {*config.ALIASES}, set())

  @parameterized.parameters(
    (2, ['--algorithm=hier_avg', '--replicas=8'], 4),
    (4, ['--algorithm=hier_avg', '--replicas=8'], 2),
    (2, ['--algorithm=hier_avg', '--replicas=8', '--group_size=2'], 2),
  )
  def test_a_group_is_the_replicas_of_a_process(self, count, given, size):
    with mock.patch.object(processes, 'count', return_value=count):
      run = self.parse(*given, '--local_period=2', '--global_period=8')
    self.assertEqual(run.options['group_size'], size)

  @parameterized.parameters((1, 8), (2, 7))
  def test_a_group_has_no_default_without_equal_processes(self, count, n):
    arguments = (f'--replicas={n}', '--local_period=2', '--global_period=8')
    with (
      mock.patch.object(processes, 'count', return_value=count),
      self.assertRaisesRegex(ValueError, 'hier_avg needs --group_size'),
    ):
      self.parse('--algorithm=hier_avg', *arguments)

  def test_without_an_algorithm_there_is_one(self):
    default = self.parse()
    self.assertEqual(default.label(), 'pr_sgd period=4')
    self.assertEqual(self.kept['period'], 4)
    self.assertEqual(self.parse('--period=8').label(), 'pr_sgd period=8')
    self.assertEqual(
      self.parse('--when=doubling:2').label(), 'pr_sgd when=doubling:2'
    )
    with self.assertRaisesRegex(ValueError, 'pr_sgd needs --period'):
      self.parse('--algorithm=pr_sgd')

  def test_second_names_of_algorithms_are_the_first(self):
    self.assertEqual(algorithm_flags.ALIASES, {'local_sgd': 'k_avg'})
    second = self.parse('--algorithm=local_sgd', '--period=4')
    self.assertEqual(second, self.parse('--algorithm=k_avg', '--period=4'))

  def test_text_has_its_model(self):
    self.assertEqual(self.parse('--dataset=text').model, 'transformer')
    self.assertEqual(self.parse().model, 'mlp')

  def test_grids_know_them(self):
    self.assertEqual(grids.parse_axis('lr=0.1,0.2').names, ('learning_rate',))


if __name__ == '__main__':
  absltest.main()

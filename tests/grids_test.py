"""Tests of `experiments/running/flags/grids.py`."""

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import sweep
from experiments.running.flags import grids

FLAGS = flags.FLAGS
del sweep  # whose flags these are


class GridsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(flagsaver.flagsaver())
    for flag in FLAGS:
      FLAGS[flag].present = 0
    FLAGS(['sweep.py', '--num_replicas=4', '--num_steps=8'])

  def points(self, runs, *grid):
    return grids.points(runs, grid, FLAGS)

  def test_axes_are_crossed_in_order(self):
    found = self.points(
      ['ssgd', 'k_avg,period=2'], 'learning_rate=0.1,0.2', 'seed=0,1'
    )
    places = [
      (p.config.label(), p.config.learning_rate, p.config.seed) for p in found
    ]
    self.assertEqual(
      places,
      [
        (label, rate, seed)
        for label in ('ssgd', 'k_avg period=2')
        for rate in (0.1, 0.2)
        for seed in (0, 1)
      ],
    )
    self.assertEqual(found[-1].slug(), 'k_avg-period2-learning_rate0.2-seed1')
    self.assertLen({p.slug() for p in found}, 8)
    self.assertEqual(FLAGS.seed, 0)  # the flags themselves stay
    self.assertEqual({p.config.num_replicas for p in found}, {4})

  def test_flags_change_together(self):
    found = self.points(['ssgd'], 'num_replicas:batch_size=4:32,8:16')
    sizes = [(p.config.num_replicas, p.config.batch_size) for p in found]
    self.assertEqual(sizes, [(4, 32), (8, 16)])

  def test_an_option_is_for_the_runs_that_leave_it_open(self):
    found = self.points(['ssgd', 'pr_sgd', 'k_avg,period=8'], 'period=2,4')
    labels = [p.config.label() for p in found]
    self.assertEqual(
      labels, ['ssgd', 'pr_sgd period=2', 'pr_sgd period=4', 'k_avg period=8']
    )
    self.assertEqual([p.values['period'] for p in found], ['', '2', '4', ''])
    self.assertEqual(found[1].slug(), 'pr_sgd-period2')

  def test_schedules_codecs_and_local_steps_are_axes(self):
    found = self.points(
      ['diloco', 'ssgd', 'slowmo,slow_momentum=0.5,period=4'],
      'when=every:2,doubling:1', 'local=sgp,k_avg:1:group_mean:2',
    )  # fmt: skip
    labels = [p.config.label() for p in found]
    self.assertEqual(
      labels,
      [
        f'diloco when={when} local={local}'
        for when in ('every:2', 'doubling:1')
        for local in ('sgp', 'k_avg:1:group_mean:2')
      ]
      + ['ssgd']
      + [
        f'slowmo period=4 slow_momentum=0.5 local={local}'
        for local in ('sgp', 'k_avg:1:group_mean:2')
      ],
    )

  def test_lists_have_a_plus_for_the_comma(self):
    found = self.points(['ssgd'], 'learning_rate_drops=,1+2')
    drops = [p.config.learning_rate_drops for p in found]
    self.assertEqual(drops, [(), (1.0, 2.0)])

  def test_the_command_makes_the_run(self):
    given = [
      '--partition=dirichlet', '--latency=0.5', '--data_dir=/d', '--keep=all',
    ]  # fmt: skip
    FLAGS(['sweep.py', *given])
    (point,) = self.points(
      ['hier_avg,local_period=2,global_period=4,group_size=2,buffers=average'],
      'dirichlet_alpha=0.5', 'augment=true', 'learning_rate_drops=1+2',
    )  # fmt: skip
    self.assertCountEqual(
      grids.command(point),
      [
        '--algorithm=hier_avg', '--local_period=2', '--global_period=4',
        '--group_size=2', '--buffers=average', '--num_replicas=4',
        '--num_steps=8', '--dirichlet_alpha=0.5', '--augment',
        '--learning_rate_drops=1,2', *given,
      ],
    )  # fmt: skip

  @parameterized.parameters(
    ('--run is missing', (), ()),
    ('expected FLAG=VALUE', ('ssgd',), ('seed',)),
    ("'sead' is not a setting of a run; use one of", ('ssgd',), ('sead=0',)),
    ("'workdir' is not a setting", ('ssgd',), ('workdir=a,b',)),
    ("'algorithm' is not a setting", ('ssgd',), ('algorithm=ssgd,k_avg',)),
    ("'0' is given twice", ('ssgd',), ('seed=0,0',)),
    ('expected 2 values with : between', ('ssgd',), ('seed:momentum=0',)),
    ('--seed is on two axes', ('ssgd',), ('seed=0', 'seed=1')),
    ('invalid literal', ('ssgd',), ('seed=one',)),
    ('--period does nothing|period: does nothing', ('ssgd',), ('period=2',)),
    ('period: does nothing', ('k_avg,period=2',), ('period=4',)),
    ('are the same run', ('ssgd',), ('learning_rate=0.1,0.10',)),
    ('are the same run', ('ssgd', 'ssgd'), ()),
    ('unknown --algorithm=foo', ('foo',), ('period=2',)),
    ('seed must be an integer in 0', ('ssgd',), ('seed=-1',)),
    ('when: does nothing', ('ssgd',), ('when=every:4',)),
    ('when: does nothing', ('k_avg,period=2',), ('when=every:4',)),
    ('period: does nothing', ('k_avg,when=every:2',), ('period=4',)),
    ('--when replaces', ('k_avg',), ('period=4', 'when=every:4')),
    ('local: does nothing', ('ssgd',), ('local=sgp',)),
  )
  def test_bad_grids_are_refused(self, message, runs, grid):
    with self.assertRaisesRegex(ValueError, message):
      self.points(runs, *grid)

  def test_axes_of_other_flags_differ_though_the_config_does_not(self):
    found = self.points(['ssgd'], 'latency=0,0.1')
    self.assertLen({p.slug() for p in found}, 2)


if __name__ == '__main__':
  absltest.main()

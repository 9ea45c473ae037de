"""Tests of `experiments/experiment.py`."""

import dataclasses

from absl.testing import absltest, parameterized
import numpy as np

from experiments import algorithm_flags, config, experiment
import prsgd_jax as pr
from tests.config_test import DEFAULTS


def build_plan(algorithm, momentum=0.9, **options):
  changed = dataclasses.replace(
    DEFAULTS, algorithm=algorithm, options=options, momentum=momentum
  )
  return experiment.build_plan(config.check(changed), 1280)


def assemble(algorithm, network=None, **changes):
  """The parts of a run on 1280 images that are all zero."""
  names = {field.name for field in dataclasses.fields(DEFAULTS)}
  fields = {k: v for k, v in changes.items() if k in names}
  options = {k: v for k, v in changes.items() if k not in names}
  run = dataclasses.replace(
    DEFAULTS, algorithm=algorithm, options=options, **fields
  )
  split = {
    'image': np.zeros((1280, 8, 8, 1), np.uint8),
    'label': np.zeros(1280, np.int32),
  }
  dataset = pr.Dataset('digits', split, split, 10)
  return experiment.assemble(run, dataset, 1, network or pr.Network())


class PlanTest(parameterized.TestCase):
  def test_every_algorithm_that_resets_says_when_it_averages(self):
    for name in algorithm_flags.ALGORITHMS:
      keywords = algorithm_flags.keywords(name)
      if 'reset' in keywords:
        self.assertTrue('period' in keywords or name in experiment.AVERAGES)

  @parameterized.parameters(
    ('k_avg', {'period': 4}, [3, 7]),
    ('hier_avg', {'local_period': 2, 'global_period': 4, 'group_size': 2},
     [1, 3, 5, 7]),
    ('post_local_sgd', {'switch_step': 2, 'period': 4}, [0, 1, 5]),
    ('hierarchical_local_sgd',
     {'period': 2, 'block_steps': 2, 'group_size': 2}, [1, 3, 5, 7]),
    ('hierarchical_local_sgd',
     {'period': 2, 'block_steps': 2, 'group_size': 2, 'switch_step': 3},
     [0, 1, 2, 4, 6, 8]),
    ('multi_level_avg', {'periods': '2,4', 'group_sizes': '2'}, [1, 3, 5, 7]),
    ('pr_sgd_heterogeneous', {'local_steps': '1,4,2,4'}, [3, 7]),
    ('pr_sgd_time_varying', {'epoch_lengths': '1,2,3'}, [0, 2, 5, 8]),
  )  # fmt: skip
  def test_buffers_start_anew_after_the_averages(self, name, options, steps):
    plan = build_plan(name, buffers='reset', **options)
    self.assertIsNotNone(plan)
    when = experiment._averages(name, algorithm_flags.values(name, options))
    self.assertEqual(np.flatnonzero(when(np.arange(9))).tolist(), steps)

  def test_the_theorys_schedule_is_its_own(self):
    config_ = dataclasses.replace(
      DEFAULTS,
      algorithm='pr_sgd_time_varying',
      options={'epoch_lengths': 'theory'},
      learning_rate_drops=(1.0,),
    )
    with self.assertRaisesRegex(ValueError, 'learning rate of its own'):
      experiment.build_plan(config.check(config_), 1280)

  def test_eamsgd_has_the_momentum_for_itself(self):
    build_plan('eamsgd', period=4, alpha=0.1)
    with self.assertRaisesRegex(ValueError, 'nesterov does nothing'):
      changed = dataclasses.replace(
        DEFAULTS,
        algorithm='eamsgd',
        options={'period': 4, 'alpha': 0.1},
        nesterov=True,
      )
      config.check(changed)

  def test_epochs_are_those_of_the_gradients_taken(self):
    # 8 replicas of batch 16; half of them take one step of two.
    def epochs(algorithm, **options):
      return assemble(algorithm, num_steps=20, **options).epoch(20)

    self.assertEqual(epochs('k_avg', period=4), 2.0)
    unequal = epochs('pr_sgd_heterogeneous', local_steps='1,1,1,1,2,2,2,2')
    self.assertEqual(unequal, 1.5)

  @parameterized.parameters(
    ({}, '--num_epochs must be'),
    ({'num_steps': 20, 'learning_rate_drops': (1.0,)}, '--learning_rate_drops'),
    ({'warmup_epochs': 1.0}, '--num_epochs and --warmup_epochs must be'),
  )
  def test_epochs_are_not_counted_where_replicas_rest(self, fields, message):
    with self.assertRaisesRegex(ValueError, f'{message}.* do at 75% of them'):
      assemble('pr_sgd_heterogeneous', local_steps='1,1,1,1,2,2,2,2', **fields)

  def test_asynchronous_replicas_have_their_own_speeds_on_the_clock(self):
    options = {'speeds': '2,2,2,2,1,1,1,1', 'num_steps': 4}
    own = assemble('ad_psgd', **options)
    self.assertEqual(own.network.speeds, (2, 2, 2, 2, 1, 1, 1, 1))
    slower = pr.Network(speeds=(1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5))
    same = assemble('ad_psgd', slower, **options)
    self.assertEqual(same.network, slower)
    for speeds in ((1,) * 8, (1, 2)):
      with self.assertRaisesRegex(ValueError, 'in the ratios of --speeds=2,2'):
        assemble('ad_psgd', pr.Network(speeds=speeds), **options)


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/config.py`."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments import config, experiment
import prsgd_jax as pr

DEFAULTS = config.RunConfig(
  algorithm='k_avg',
  options={'period': 4},
  dataset='digits',
  model='mlp',
  num_replicas=8,
  batch_size=16,
  partition='shared',
  dirichlet_alpha=None,
  augment=False,
  learning_rate=0.1,
  learning_rate_drops=(),
  optimizer='sgd',
  momentum=0.9,
  nesterov=False,
  weight_decay=0.0,
  dtype='float32',
  seed=0,
  num_epochs=2.0,
  num_steps=None,
)


def dataset(value=0):
  split = {'image': np.full((4, 2, 2, 1), value, np.uint8)}
  return pr.Dataset('digits', split, split, 10)


def changed(**kwargs):
  return config.check(config.dataclasses.replace(DEFAULTS, **kwargs))


class ConfigTest(parameterized.TestCase):
  def test_length_is_of_epochs_unless_steps_are_given(self):
    # 1280 examples in steps of 8 x 16 = 128.
    self.assertEqual(config.total_steps(DEFAULTS, 1280), 20)
    self.assertEqual(config.total_steps(DEFAULTS, 1281), 21)
    self.assertEqual(config.total_steps(changed(num_steps=7), 1280), 7)

  def test_learning_rate_drops_when_the_epochs_are_done(self):
    schedule = experiment.build_schedule(
      changed(learning_rate_drops=(1.0, 1.5)), 1280
    )
    rates = [float(schedule(step)) for step in (0, 9, 10, 14, 15, 19)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])

  def test_label_and_description_tell_runs_apart(self):
    self.assertEqual(DEFAULTS.label(), 'k_avg period=4')
    other = changed(options={'period': 8})
    self.assertNotEqual(
      DEFAULTS.description(dataset()), other.description(dataset())
    )

  def test_data_are_described_by_their_contents(self):
    same, other = dataset(0), dataset(1)
    self.assertEqual(
      DEFAULTS.description(same), DEFAULTS.description(dataset())
    )
    self.assertNotEqual(DEFAULTS.description(same), DEFAULTS.description(other))

  def test_drops_of_one_step_are_both_taken(self):
    schedule = experiment.build_schedule(
      changed(learning_rate_drops=(0.01, 0.02)), 1280
    )
    np.testing.assert_allclose(float(schedule(5)), 0.001)

  @parameterized.parameters(
    ({'learning_rate_drops': (2.0, 1.0)}, 'increase'),
    ({'learning_rate_drops': (0.0,)}, 'increase'),
    ({'learning_rate_drops': (float('nan'),)}, 'increase'),
    ({'learning_rate_drops': (float('inf'),)}, 'increase'),
    ({'learning_rate': float('inf')}, 'learning_rate must be > 0'),
    ({'weight_decay': -1.0}, 'weight_decay must be >= 0'),
    ({'weight_decay': float('nan')}, 'weight_decay must be >= 0'),
    ({'seed': -1}, 'seed must be in'),
    ({'seed': 2**32}, 'seed must be in'),
  )
  def test_refuses_what_has_no_sense(self, fields, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      changed(**fields)

  def test_length_is_described_only_where_the_algorithm_has_it(self):
    longer = changed(num_epochs=3.0)
    self.assertEqual(
      DEFAULTS.description(dataset()), longer.description(dataset())
    )
    one_shot = changed(algorithm='one_shot_averaging', options={})
    longer = changed(algorithm='one_shot_averaging', options={}, num_epochs=3.0)
    self.assertNotEqual(
      one_shot.description(dataset()), longer.description(dataset())
    )


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/config.py`."""

import inspect

from absl.testing import absltest, parameterized
import numpy as np

from experiments import config
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
  momentum=0.9,
  nesterov=False,
  weight_decay=0.0,
  dtype='float32',
  seed=0,
  num_epochs=2.0,
  num_steps=None,
)


def changed(**kwargs):
  return config.check(config.dataclasses.replace(DEFAULTS, **kwargs))


class ConfigTest(parameterized.TestCase):
  def test_length_is_of_epochs_unless_steps_are_given(self):
    # 1280 examples in steps of 8 x 16 = 128.
    self.assertEqual(config.total_steps(DEFAULTS, 1280), 20)
    self.assertEqual(config.total_steps(DEFAULTS, 1281), 21)
    self.assertEqual(config.total_steps(changed(num_steps=7), 1280), 7)

  def test_learning_rate_drops_when_the_epochs_are_done(self):
    schedule = config.build_schedule(
      changed(learning_rate_drops=(1.0, 1.5)), 1280
    )
    rates = [float(schedule(step)) for step in (0, 9, 10, 14, 15, 19)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])

  def test_label_and_description_tell_runs_apart(self):
    self.assertEqual(DEFAULTS.label(), 'k_avg period=4')
    other = changed(options={'period': 8})
    self.assertNotEqual(DEFAULTS.description(), other.description())

  def test_length_is_described_only_where_the_algorithm_has_it(self):
    longer = changed(num_epochs=3.0)
    self.assertEqual(DEFAULTS.description(), longer.description())
    one_shot = changed(algorithm='one_shot_averaging', options={})
    longer = changed(algorithm='one_shot_averaging', options={}, num_epochs=3.0)
    self.assertNotEqual(one_shot.description(), longer.description())

  @parameterized.parameters(*config.ALGORITHMS)
  def test_every_option_of_an_algorithm_has_a_flag(self, name):
    keywords = inspect.signature(config.ALGORITHMS[name]).parameters.keys()
    known = {'tx', 'num_steps', 'reset', 'what', *config.OPTIONS.values()}
    self.assertEmpty(keywords - known)

  def test_every_algorithm_of_the_library_is_there(self):
    self.assertContainsSubset(set(config.ALGORITHMS), {*pr.__all__})
    defined = {
      name
      for name, fn in inspect.getmembers(pr.algorithms, inspect.isfunction)
      if fn.__module__ == pr.algorithms.__name__ and name == fn.__name__
    }
    self.assertEqual(defined, set(config.ALGORITHMS))


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/switching.py`."""

import pathlib
import tempfile

from absl.testing import absltest
import numpy as np

from experiments.papers import switching, target
from prsgd_jax.data.datasets import load_dataset
from tests import binaries

FIELDS = {'num_steps': 6, 'num_replicas': 4, 'batch_size': 4, 'momentum': 0.9}
RUNS = (
  ('ssgd', {}),
  ('pr_sgd', {'period': 3}),
)


class SwitchingTest(absltest.TestCase):
  def test_trajectories_are_those_of_one_program_each(self):
    root = tempfile.TemporaryDirectory()
    self.addCleanup(root.cleanup)
    directory = pathlib.Path(root.name)
    setting = target.Setting('cpu', binaries.digits_dir(), directory)
    configs = [target.make_config(a, o, **FIELDS) for a, o in RUNS]
    dataset = load_dataset('digits', binaries.digits_dir())
    found = switching.train_all(configs, dataset, log_every=2, eval_every=4)
    for (algorithm, options), history in zip(RUNS, found, strict=True):
      expected = target.train(
        setting, algorithm, options, **FIELDS,
        log_every=2, eval_every=4, checkpoint_every=6,
      )  # fmt: skip
      for one, other in zip(history, expected, strict=True):
        for name, value in one.items():
          np.testing.assert_allclose(value, other[name], rtol=1e-5)
      evaluated = [r['step'] for r in history if 'test_accuracy' in r]
      self.assertEqual(evaluated, [4, 6])

  def test_a_subset_is_the_first_examples(self):
    dataset = load_dataset('digits', binaries.digits_dir())
    small = switching.subset(dataset, 7, 5)
    self.assertLen(small.train['label'], 7)
    np.testing.assert_array_equal(
      small.test['image'], dataset.test['image'][:5]
    )


if __name__ == '__main__':
  absltest.main()

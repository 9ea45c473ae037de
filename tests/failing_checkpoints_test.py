"""Checkpoints on a failing disk: one error, and nothing is left."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine import checkpoints
from tests import failing_disk


class FailingCheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.directory = root / 'saved'
    self.mesh = pr.engine.ReplicaMesh(2, 1)
    self.state = pr.engine.create_train_state(
      self.mesh,
      pr.pr_sgd(optax.sgd(0.1), period=2),
      np.random.default_rng(0).normal(size=5000).astype(np.float32),
    )

  def save(self):
    checkpoints.save(self.directory, self.mesh, self.state, {})

  @parameterized.parameters(
    ('mkdir', 'saved'),
    ('mkdir', '.0.partial'),
    ('mkdir', '.partial/state'),
    ('open', 'record.json'),
    ('fsync', 'manifest'),
    ('limit', ''),
  )
  def test_is_one_error_and_leaves_nothing(self, call, part):
    self.assert_one_error(self.save, call, part)

  @parameterized.parameters(('mkdir', '.0.partial'), ('open', 'record.json'))
  def test_in_the_background_it_is_the_error_of_the_result(self, call, part):
    def save():
      checkpoints.save_in_background(
        self.directory, self.mesh, self.state, {}
      ).result()

    self.assert_one_error(save, call, part)

  def assert_one_error(self, save, call, part):
    fault = (
      failing_disk.limit(2000)
      if call == 'limit'
      else failing_disk.refuse(call, part)
    )
    target = self.directory / '0'
    with (
      fault,
      self.assertNoLogs('absl', 'ERROR'),
      self.assertRaisesRegex(
        checkpoints.SaveError,
        rf'^{target} cannot be written \((Input/output error|File too large)',
      ),
    ):
      save()
    self.assertEqual([*self.directory.glob('*')], [])
    self.assertIsNone(checkpoints.latest_step(self.directory))
    self.save()
    restored = checkpoints.restore(self.directory, self.mesh, self.state, {})
    np.testing.assert_array_equal(restored.params, self.state.params)


if __name__ == '__main__':
  absltest.main()

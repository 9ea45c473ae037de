"""A run that is no longer finite names the first replica, or continues."""

import pathlib
import tempfile

from absl.testing import absltest
import numpy as np
import optax

from experiments.running.execution import finite, objects
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.models.classification import Task


def task():
  def loss_fn(params, model_state, batch, key):
    del key
    return ((params - batch['x']) ** 2).sum() / 2, (model_state, {})

  return Task(lambda key, batch: (np.zeros(3, np.float32), ()), loss_fn, None)


def run(workdir, algorithm):
  x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
  return objects.run(
    algorithm=algorithm,
    model=task(),
    data={'x': x},
    num_replicas=4,
    num_devices=2,
    num_steps=8,
    batch_size=1,
    workdir=workdir,
    log_every=2,
    eval_every=2,
    checkpoint_every=2,
    progress=False,
  )


class FiniteTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(directory, 'run')

  def test_names_the_first_replica_after_a_mean(self):
    ill = pr.faults.nan(2, at=5)
    algorithm = pr.faults.inject(pr.ssgd(optax.sgd(0.1)), ill)
    with self.assertRaisesRegex(
      finite.NonFinite,
      r'the gradient is not finite at step 5 on replica 2; .*checkpoints/4$',
    ) as caught:
      run(self.workdir, algorithm)
    self.assertEqual(
      (caught.exception.step, caught.exception.replicas), (5, (2,))
    )

  def test_a_robust_average_goes_on(self):
    average = pr.stages.average_median()
    ill = pr.faults.nan((0, 2), at=4)
    algorithm = pr.faults.inject(
      pr.k_avg(optax.sgd(0.1), period=4, average=average),
      ill,
      pr.faults.late(3),
    )
    summary = run(self.workdir, algorithm)
    self.assertEqual(summary['replicas_dropped'], 2)
    self.assertEqual(
      (summary['gradients_lost'], summary['rounds_missed']), (0, 2)
    )
    for record in records.read_records(self.workdir):
      self.assertTrue(np.isfinite(record['loss']), record)


if __name__ == '__main__':
  absltest.main()

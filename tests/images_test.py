"""Tests of `experiments/papers/images.py`."""

import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import images
from experiments.papers.target import Setting
from tests import binaries


class ImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    setting = Setting('cpu', binaries.digits_dir(), pathlib.Path())
    self.train, self.test = images.load(setting, 'digits', 200)

  def test_training_images_are_centered_and_as_many_as_asked_for(self):
    self.assertEqual(self.train.image.shape, (200, 64))
    self.assertAlmostEqual(float(self.train.image.mean()), 0, places=5)
    self.assertAlmostEqual(float(self.train.image.std()), 1, places=5)

  def test_large_images_are_means_of_pixels(self):
    pixels = np.zeros((1, 28, 28, 1), np.uint8)
    pixels[0, 2:4, 4:6] = [[[1], [2]], [[3], [6]]]
    pooled = images._rows(pixels).reshape(14, 14)
    self.assertEqual(pooled[1, 2], 3)
    self.assertEqual(pooled.sum(), 3)

  def test_softmax_regression_has_the_loss_and_accuracy_of_its_logits(self):
    network = images.Network()
    params = network.start(self.train)(jax.random.key(0))
    batch = self.train.rows(jnp.arange(5))
    (layer,) = params.values()
    logits = np.asarray(batch['image'] @ layer['kernel'] + layer['bias'])
    found = np.asarray(jax.nn.log_softmax(logits))[range(5), batch['label']]
    self.assertAlmostEqual(
      float(network.loss(params, batch)), -found.mean(), places=5
    )
    right = (logits.argmax(axis=1) == batch['label']).mean()
    self.assertAlmostEqual(
      float(network.accuracy(params, batch)), right, places=6
    )


if __name__ == '__main__':
  absltest.main()

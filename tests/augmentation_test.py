"""Tests of `prsgd_jax.data.augmentation`."""

from absl.testing import absltest
import jax
import numpy as np

from prsgd_jax.data import augmentation


class AugmentationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = rng.integers(256, size=(20, 9, 7, 3), dtype=np.uint8)
    self.key = jax.random.key(0)

  def test_statistics_are_those_of_the_pixels(self):
    mean, std = augmentation.channel_statistics(self.images)
    pixels = self.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-6)

  def test_normalized_images_have_mean_zero_and_deviation_one(self):
    statistics = augmentation.channel_statistics(self.images)
    out = augmentation.normalize(jax.numpy.asarray(self.images), *statistics)
    out = np.asarray(out, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(0), 1, rtol=1e-5)

  def test_constant_images_stay_finite(self):
    images = np.full((2, 4, 4, 1), 7, np.uint8)
    statistics = augmentation.channel_statistics(images)
    out = augmentation.normalize(jax.numpy.asarray(images), *statistics)
    self.assertTrue(np.isfinite(out).all())

  def test_crop_is_a_window_of_the_padded_image(self):
    images = self.images.astype(np.float32)
    crops = np.asarray(augmentation.random_crop(self.key, images, padding=2))
    self.assertEqual(crops.shape, images.shape)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = set()
    for crop, image in zip(crops, padded, strict=True):
      found = [
        (i, j)
        for i in range(5)
        for j in range(5)
        if (image[i : i + 9, j : j + 7] == crop).all()
      ]
      self.assertLen(found, 1)
      windows.update(found)
    self.assertGreater(len(windows), 5)

  def test_flip_mirrors_about_half_of_the_images(self):
    images = np.repeat(self.images, 20, axis=0).astype(np.float32)
    flipped = np.asarray(augmentation.random_flip(self.key, images))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    self.assertTrue((same ^ mirrored).all())
    # 400 fair coins: deviation 10; five deviations off.
    self.assertBetween(mirrored.sum(), 150, 250)


if __name__ == '__main__':
  absltest.main()

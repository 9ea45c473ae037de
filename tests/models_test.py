"""Tests of `prsgd_jax.models`."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import models

MODELS = {
  'mlp': (models.MLP, (8, 8, 1)),
  'lenet': (models.LeNet5, (28, 28, 1)),
  'lenet_digits': (models.LeNet5, (8, 8, 1)),
  'resnet18': (models.ResNet18, (32, 32, 3)),
  'resnet20': (models.ResNet20, (32, 32, 3)),
  'lstm': (models.LSTMClassifier, (28, 28, 1)),
}


def num_params(variables):
  return sum(x.size for x in jax.tree.leaves(variables['params']))


class ModelsTest(parameterized.TestCase):
  @parameterized.product(name=list(MODELS), dtype=[jnp.float32, jnp.bfloat16])
  def test_logits_and_parameters_are_float32(self, name, dtype):
    module, shape = MODELS[name]
    model = module(10, dtype=dtype)
    images = jnp.ones((2, *shape))

    def run(key):
      variables = model.init(key, images, train=False)
      return variables, model.apply(variables, images, train=False)

    variables, logits = jax.eval_shape(run, jax.random.key(0))
    self.assertEqual((logits.shape, logits.dtype), ((2, 10), jnp.float32))
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)

  @parameterized.parameters(
    # 3x3x3x16 + stages of 3x3 convolutions + scales and shifts + 64x10 + 10,
    # written out in the paper as 0.27 million.
    (
      'resnet20',
      432
      + 6 * 2304
      + 4608
      + 5 * 9216
      + 18432
      + 5 * 36864
      + 2 * (7 * 16 + 6 * 32 + 6 * 64)
      + 650,
    ),
    # 3x3x3x64, stages of 3x3 convolutions, the shortcuts' 1x1 convolutions,
    # scales and shifts, 512x10 + 10: the 11.17 million that are commonly named.
    (
      'resnet18',
      1728
      + 9 * 4 * 64**2 * (1 + 4 + 16 + 64)
      - 9 * (64 * 128 + 128 * 256 + 256 * 512)
      + (64 * 128 + 128 * 256 + 256 * 512)
      + 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
      + 5130,
    ),
    ('lenet', (25 + 1) * 6 + (150 + 1) * 16 + (784 + 1) * 120 + 121 * 84 + 850),
    ('mlp', 65 * 128 + 129 * 10),
  )
  def test_number_of_parameters(self, name, expected):
    module, shape = MODELS[name]
    variables = jax.eval_shape(
      lambda key: module(10).init(key, jnp.ones((1, *shape)), train=False),
      jax.random.key(0),
    )
    self.assertEqual(num_params(variables), expected)

  @parameterized.parameters(
    models.ResNet20(10, blocks_per_stage=1),
    models.ResNet18(10, channels=(4, 8), blocks_per_stage=1),
  )
  def test_resnet_updates_batch_statistics_only_in_training(self, model):
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    before = variables['batch_stats']
    _, changed = model.apply(
      variables, images, train=True, mutable=['batch_stats']
    )
    _, kept = model.apply(
      variables, images, train=False, mutable=['batch_stats']
    )
    for old, new, same in zip(
      *map(
        jax.tree.leaves, (before, changed['batch_stats'], kept['batch_stats'])
      ),
      strict=True,
    ):
      self.assertFalse(np.array_equal(old, new))
      np.testing.assert_array_equal(old, same)

  def test_resnet18_halves_the_image_three_times(self):
    model = models.ResNet18(10)
    _, states = jax.eval_shape(
      lambda key: model.init_with_output(
        key, jnp.ones((1, 32, 32, 3)), train=False, capture_intermediates=True
      ),
      jax.random.key(0),
    )
    shapes = {
      layer['__call__'][0].shape
      for name, layer in states['intermediates'].items()
      if name.startswith('BatchNorm')
    }
    self.assertEqual(
      shapes,
      {(1, 32, 32, 64), (1, 16, 16, 128), (1, 8, 8, 256), (1, 4, 4, 512)},
    )

  def test_lstm_reads_the_rows_in_order(self):
    model = models.LSTMClassifier(10)
    images = jax.random.normal(jax.random.key(1), (1, 6, 5, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    logits = model.apply(variables, images, train=False)
    reversed_rows = model.apply(variables, images[:, ::-1], train=False)
    self.assertFalse(np.allclose(logits, reversed_rows, atol=1e-4))


if __name__ == '__main__':
  absltest.main()

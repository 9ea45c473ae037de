"""Tests of `prsgd_jax.models`."""

import functools
import time

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.models.classification import classifier

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


class TransformerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 7)

  @parameterized.product(
    vocabulary=[7, 65], length=[12, 64], width=[8, 32], num_blocks=[1, 3]
  )
  def test_number_of_parameters(self, vocabulary, length, width, num_blocks):
    model = models.Transformer(vocabulary, length, width, num_blocks)
    variables = jax.eval_shape(
      lambda key: model.init(key, self.tokens, train=False), jax.random.key(0)
    )
    expected = (
      2 * vocabulary * width
      + vocabulary
      + length * width
      + num_blocks * (12 * width**2 + 13 * width)
      + 2 * width
    )
    self.assertEqual(num_params(variables), expected)

  def test_default_size(self):
    variables = jax.eval_shape(
      lambda key: models.Transformer(65).init(key, self.tokens, train=False),
      jax.random.key(0),
    )
    self.assertEqual(num_params(variables), 112_577)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_later_characters_do_not_change_earlier_logits(self, dtype):
    model = models.Transformer(7, max_length=12, width=16, dtype=dtype)
    variables = model.init(jax.random.key(0), self.tokens, train=False)
    self.assertEqual(
      {x.dtype for x in jax.tree.leaves(variables)}, {jnp.dtype(jnp.float32)}
    )
    logits = model.apply(variables, self.tokens, train=False)
    self.assertEqual((logits.shape, logits.dtype), ((2, 12, 7), jnp.float32))
    for t in (0, 5, 11):
      tokens = self.tokens.at[:, t].set((self.tokens[:, t] + 1) % 7)
      changed = model.apply(variables, tokens, train=False)
      np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
      for later in range(t, 12):
        self.assertFalse(np.array_equal(changed[:, later], logits[:, later]))

  def test_order_of_what_was_read_counts(self):
    model = models.Transformer(7, max_length=12, width=16)
    variables = model.init(jax.random.key(0), self.tokens, train=False)
    swapped = self.tokens[:, jnp.array([1, 0, *range(2, 12)])]
    logits, other = (
      model.apply(variables, x, train=False) for x in (self.tokens, swapped)
    )
    self.assertFalse(np.allclose(logits[:, -1], other[:, -1], atol=1e-5))

  def test_shorter_sequences_are_prefixes_and_longer_ones_are_refused(self):
    model = models.Transformer(7, max_length=12, width=16)
    variables = model.init(jax.random.key(0), self.tokens, train=False)
    logits = model.apply(variables, self.tokens, train=False)
    prefix = model.apply(variables, self.tokens[:, :5], train=False)
    np.testing.assert_allclose(prefix, logits[:, :5], atol=1e-5)
    longer = jnp.zeros((1, 13), jnp.int32)
    with self.assertRaisesRegex(ValueError, 'max_length=12 long, got 13'):
      model.apply(variables, longer, train=False)


class PartitionsTest(parameterized.TestCase):
  """Every model reads every partition; together, they compile quickly."""

  @parameterized.parameters('shared', 'sharded', 'dirichlet')
  def test_batches_and_models_compile_in_one_program(self, partition):
    # Outside a loop, because fused rounds of the shuffle compiled for hours.
    make = getattr(pr, partition)
    if partition == 'dirichlet':
      make = functools.partial(make, alpha=1.0)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(48, 8, 8, 1)).astype(np.float32)
    data = make({'image': image, 'label': np.arange(48) % 3}, batch_size=2)
    draw = data.recipe.make(2)
    tasks = [
      classifier(models.MLP(3, hidden=(4,))),
      classifier(models.LeNet5(3)),
      classifier(models.LSTMClassifier(3, hidden=4)),
      classifier(models.ResNet20(3, blocks_per_stage=0)),
      classifier(models.ResNet18(3, channels=(4,), blocks_per_stage=1)),
    ]
    key = jax.random.key(0)
    shapes = [jax.eval_shape(t.init, key, {'image': image[:2]}) for t in tasks]
    points = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes)

    @jax.jit
    def losses(points, arrays, step):
      keys = jax.random.split(key, 2)
      batches = jax.vmap(draw, in_axes=(None, None, 0, 0))(
        arrays, step, jnp.arange(2), keys
      )
      batch = jax.tree.map(lambda x: x[1], batches)
      return [
        task.loss_fn(*point, batch, key)[0]
        for task, point in zip(tasks, points, strict=True)
      ]

    begun = time.process_time()
    found = losses(points, data.arrays, 5)
    self.assertLess(time.process_time() - begun, 20)
    self.assertTrue(np.isfinite(found).all(), found)


if __name__ == '__main__':
  absltest.main()

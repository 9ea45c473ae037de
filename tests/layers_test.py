"""Tests of `prsgd_jax.models.batch_norm` and `prsgd_jax.models.convolution`."""

import functools

from absl.testing import absltest, parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import models
from prsgd_jax.models import resnet
from prsgd_jax.models.batch_norm import BatchNorm
from prsgd_jax.models.convolution import Conv, max_pool
from prsgd_jax.models.lenet import LeNet5

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(3, 2, size=(4, 7, 5, 3)).astype(np.float32)


def apply(module, variables, x, **kwargs):
  return module.apply(variables, x, mutable=['batch_stats'], **kwargs)


def weigh(y):
  """A sum in which the numbers of y have different weights."""
  return (jnp.sin(y) * (jnp.arange(y.size).reshape(y.shape) % 7 / 7)).sum()


def derivatives(module, variables, x, **kwargs):
  """Return output and statistics, and the gradients of a weighted sum."""

  def loss(params, x):
    out = apply(module, {**variables, 'params': params}, x, **kwargs)
    return weigh(out[0]), out

  both = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  grads, out = both(variables['params'], x)
  return out, grads


def assert_near(one, other, atol):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=atol, rtol=atol),
    one,
    other,
  )


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_equals_flaxs_layer_and_its_derivatives(self, use_running_average):
    found = []
    for layer in (BatchNorm, nn.BatchNorm):
      module = layer(use_running_average=use_running_average, momentum=0.9)
      variables = module.init(jax.random.key(0), IMAGES)
      params = {'scale': jnp.array([1.0, 2, 3]), 'bias': jnp.array([0.0, 1, 2])}
      stats = {'mean': jnp.array([1.0, 2, 3]), 'var': jnp.array([1.0, 4, 9])}
      self.assertEqual(
        jax.tree.map(jnp.shape, dict(variables)),
        jax.tree.map(jnp.shape, {'params': params, 'batch_stats': stats}),
      )
      moved = {'params': params, 'batch_stats': stats}
      found.append((variables, derivatives(module, moved, IMAGES)))
    assert_near(*found, atol=1e-4)

  def test_gradients_are_those_of_float64(self):
    module = BatchNorm(use_running_average=False)
    single = module.init(jax.random.key(0), IMAGES)
    _, grads = derivatives(module, single, IMAGES)
    with jax.enable_x64(True):
      x = jnp.asarray(IMAGES, jnp.float64)
      params = jax.tree.map(lambda p: p.astype(jnp.float64), single['params'])

      def loss(params, x):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / jnp.sqrt(var + 1e-5) * params['scale'] + params['bias']
        return (
          jnp.sin(y) * (jnp.arange(y.size).reshape(y.shape) % 7 / 7)
        ).sum()

      exact = jax.tree.map(np.asarray, jax.grad(loss, (0, 1))(params, x))
    assert_near(grads, exact, atol=2e-5)

  def test_sums_in_float32_and_returns_its_dtype(self):
    module = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    x = IMAGES.astype(jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    y, changed = apply(module, variables, x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    mean = changed['batch_stats']['mean']
    self.assertEqual(mean.dtype, jnp.float32)
    exact = x.astype(np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(mean, 0.1 * exact, rtol=1e-5)


class ConvTest(parameterized.TestCase):
  @parameterized.product(
    size=((1, 1), (2, 2), (3, 3), (5, 5), (5, 2)), channels=(3, 4)
  )
  def test_equals_flaxs_layer_and_its_derivatives(self, size, channels):
    images = np.concatenate([IMAGES, IMAGES[:, ::-1]], axis=-1)[..., :channels]
    found = []
    for layer in (Conv, nn.Conv):
      variables = layer(4, size).init(jax.random.key(1), images)
      found.append((variables, derivatives(layer(4, size), variables, images)))
    assert_near(*found, atol=1e-4)

  @parameterized.parameters((4, 4), (5, 7), (1, 2))
  def test_pooling_equals_flaxs(self, *size):
    # Of four values, so that many squares have two equal maxima.
    x = jnp.asarray(RNG.integers(4, size=(2, *size, 3)), jnp.float32)
    found = []
    for pool in (max_pool, lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))):
      y, derivative = jax.vjp(pool, x)
      found.append((y, *derivative(jnp.arange(y.size).reshape(y.shape) + 1.0)))
    jax.tree.map(np.testing.assert_array_equal, *found)


class ReferenceLeNet(nn.Module):
  """LeNet-5 from flax's layers."""

  @nn.compact
  def __call__(self, x, *, train):
    for channels in (6, 16):
      x = nn.relu(nn.Conv(channels, (5, 5))(x))
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape((len(x), -1))
    for width in (120, 84):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


class ModelsTest(parameterized.TestCase):
  def test_lenet_is_that_of_flaxs_layers(self):
    images = RNG.normal(size=(3, 8, 8, 1)).astype(np.float32)
    found = []
    for model in (LeNet5(10), ReferenceLeNet()):
      variables = model.init(jax.random.key(0), images, train=False)
      out = derivatives(model, variables, images, train=True)
      found.append((variables, out))
    assert_near(*found, atol=1e-4)

  @parameterized.parameters(models.ResNet20, models.ResNet18)
  def test_resnet_is_that_of_flaxs_layers(self, model):
    small = {'channels': (4, 8)} if model is models.ResNet18 else {}
    images = RNG.normal(size=(8, 8, 8, 3)).astype(np.float32)
    net = model(10, blocks_per_stage=1, **small)
    variables = net.init(jax.random.key(0), images, train=False)
    ours = derivatives(net, variables, images, train=True)
    self.enter_context(
      absltest.mock.patch.object(resnet, 'BatchNorm', nn.BatchNorm)
    )
    again = net.init(jax.random.key(0), images, train=False)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    # Gradients through ReLUs may differ where a sum rounds to the other side.
    assert_near(ours, derivatives(net, again, images, train=True), atol=1e-4)


if __name__ == '__main__':
  absltest.main()

"""Three ways to compute the replicas of a device: equal up to rounding."""

import functools

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine.block_mapping import BLOCKS, choose
from prsgd_jax.tracing.primitives import written_bytes

START = np.linspace(-1, 1, 3)
ROWS = np.sin(np.arange(24.0)).reshape(4, 6)


def dense_loss(kernel, model_state, batch, key):
  del key
  return jnp.square(batch[:3] @ kernel - batch[3]), (model_state, {})


def convolution_loss(kernel, model_state, batch, key):
  """A convolution and noise, so that batches and keys matter."""
  noise = jax.random.rademacher(key, (3,), batch.dtype)
  rows = batch[None, None], (kernel + 0.1 * noise)[None, None]
  out = jnp.tanh(jax.lax.conv(*rows, (1,), 'VALID'))
  return jnp.square(out - 0.5).mean(), (model_state, {'out': out})


LOSSES = {'dense': dense_loss, 'convolution': convolution_loss}


def row(data, step, replica, key):
  del key
  return data[(replica + step) % len(data)]


def make(loss, block=None):
  return pr.trainer(
    pr.pr_sgd(optax.sgd(0.1, momentum=0.9), period=2),
    LOSSES[loss],
    num_replicas=4,
    num_devices=2,
    block=block,
  )


@functools.cache
def trajectory(block):
  trainer = make('convolution', block)
  data = pr.data.drawn(ROWS, row)
  state, metrics = trainer.run(trainer.init(START), data, 3)
  return jax.tree.map(np.asarray, (state.params, metrics))


class BlockMappingTest(parameterized.TestCase):
  @parameterized.parameters('unrolled', 'loop')
  def test_trajectories_are_equal(self, block):
    with jax.enable_x64(True):
      way, other = trajectory('vmap'), trajectory(block)
    self.assertEqual(way[0].dtype, np.float64)
    chex.assert_trees_all_close(way, other, rtol=1e-12, atol=1e-12)

  @parameterized.parameters(
    ('dense', None, 'vmap'),
    ('convolution', None, 'unrolled'),
    *[('convolution', block, block) for block in BLOCKS],
  )
  def test_trainer_names_the_way(self, loss, block, chosen):
    trainer = make(loss, block)
    self.assertEqual(trainer.block(START, (), ROWS[0]), chosen)
    self.assertEqual(trainer.mesh.block, block)


class ChooseTest(parameterized.TestCase):
  """The measured rule for CPU."""

  @parameterized.parameters(
    # 4 MiB in each of 8 steps; the argument is a row of it, or all.
    ('cpu', (1, 1024), 'loop'),
    ('cpu', (1024, 1024), 'vmap'),
    ('gpu', (1, 1024), 'vmap'),
  )
  def test_large_intermediate_arrays_are_computed_in_a_loop(
    self, platform, shape, block
  ):
    def fn(x):
      for _ in range(8):
        x = jnp.tanh(jnp.broadcast_to(x, (1024, 1024)))
      return x.sum()

    jaxpr = jax.make_jaxpr(fn)(np.zeros(shape, np.float32)).jaxpr
    self.assertEqual(choose(platform, 4, jaxpr), block)

  def test_steps_of_a_scan_count(self):
    def fn(x):
      return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=3)[0]

    jaxpr = jax.make_jaxpr(fn)(np.zeros(5, np.float32)).jaxpr
    self.assertEqual(written_bytes(jaxpr), 3 * 5 * 4)


if __name__ == '__main__':
  absltest.main()

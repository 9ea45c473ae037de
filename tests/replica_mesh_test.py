"""N replicas on D devices: choice of devices, placement and errors."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.engine import block_mapping


class ReplicaMeshTest(parameterized.TestCase):
  @parameterized.parameters(
    # 8 devices are there; the largest number of them that divides N.
    (1, 1),
    (2, 2),
    (7, 7),
    (8, 8),
    (9, 3),
    (10, 5),
    (11, 1),
    (12, 6),
    (64, 8),
  )
  def test_default_is_the_largest_divisor(self, num_replicas, num_devices):
    mesh = pr.engine.ReplicaMesh(num_replicas)
    self.assertEqual(mesh.num_devices, num_devices)
    self.assertEqual(mesh.block_size * mesh.num_devices, num_replicas)

  def test_default_of_fewer_devices(self):
    mesh = pr.engine.ReplicaMesh(8, devices=jax.devices()[2:5])
    self.assertEqual(mesh.devices, tuple(jax.devices()[2:4]))

  @parameterized.parameters(
    (8, 1, '8 replicas on 1 cpu device (8 on each)'),
    (8, 4, '8 replicas on 4 cpu devices (2 on each)'),
    (8, 8, '8 replicas on 8 cpu devices (1 on each)'),
  )
  def test_says_which(self, n, d, text):
    self.assertEqual(str(pr.engine.ReplicaMesh(n, d)), text)

  def test_equal_meshes_are_equal_and_hash(self):
    self.assertEqual(pr.engine.ReplicaMesh(8, 2), pr.engine.ReplicaMesh(8, 2))
    self.assertNotEqual(
      pr.engine.ReplicaMesh(8, 2), pr.engine.ReplicaMesh(8, 4)
    )
    self.assertLen(
      {pr.engine.ReplicaMesh(8, 2), pr.engine.ReplicaMesh(8, 2)}, 1
    )

  @parameterized.parameters(0, -8, 2.0, None, True)
  def test_replicas_are_a_positive_integer(self, n):
    with self.assertRaisesRegex(
      ValueError, f'num_replicas must be an integer >= 1, got {n}'
    ):
      pr.engine.ReplicaMesh(n)

  @parameterized.parameters(0, -1, 2.0)
  def test_devices_are_a_positive_integer(self, d):
    with self.assertRaisesRegex(
      ValueError, f'num_devices must be an integer >= 1, got {d}'
    ):
      pr.engine.ReplicaMesh(8, d)

  def test_devices_divide_the_replicas(self):
    with self.assertRaisesRegex(
      ValueError, r'divide the 8 replicas, got 3; use one of \[1, 2, 4, 8\]'
    ):
      pr.engine.ReplicaMesh(8, 3)

  def test_there_are_that_many_devices(self):
    with self.assertRaisesRegex(
      ValueError, r"at most the 8 cpu .*got 16;.*'jax_num_cpu_devices', 16"
    ):
      pr.engine.ReplicaMesh(16, 16)

  def test_there_are_devices(self):
    with self.assertRaisesRegex(ValueError, 'device'):
      pr.engine.ReplicaMesh(8, devices=[])


class PlaceTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4, 8)
  def test_gather_is_the_inverse_of_place(self, num_devices):
    mesh = pr.engine.ReplicaMesh(8, num_devices)
    tree = {
      'bool': np.arange(8) % 3 == 0,
      'bfloat16': np.arange(8).astype(jnp.bfloat16),
      'int': np.arange(16, dtype=np.int32).reshape(8, 2),
      'matrix': np.random.default_rng(0).normal(size=(8, 3, 2)).astype('f4'),
    }
    placed = mesh.place(tree)
    for name, x in tree.items():
      shape = (num_devices, 8 // num_devices, *x.shape[1:])
      self.assertEqual(placed[name].shape, shape)
      self.assertEqual(placed[name].dtype, x.dtype)
      # Replica r is row r mod V of device r // V.
      for shard in placed[name].addressable_shards:
        d = mesh.devices.index(shard.device)
        block = np.asarray(x).reshape(shape)[d]
        np.testing.assert_array_equal(np.asarray(shard.data)[0], block)
    jax.tree.map(np.testing.assert_array_equal, mesh.gather(placed), tree)

  @parameterized.parameters(1, 4)
  def test_replicate_puts_a_copy_on_every_device(self, num_devices):
    mesh = pr.engine.ReplicaMesh(8, num_devices)
    x = np.arange(5, dtype=np.uint8)
    placed = mesh.replicate({'x': x, 'scalar': 3.0})
    np.testing.assert_array_equal(placed['x'], np.tile(x, (num_devices, 1)))
    self.assertEqual(placed['x'].dtype, np.uint8)
    self.assertEqual(placed['scalar'].shape, (num_devices,))
    self.assertLen(
      {s.device for s in placed['x'].addressable_shards}, num_devices
    )

  @parameterized.parameters((np.zeros(7),), (np.zeros((2, 4)),), (3.0,))
  def test_leading_axis_is_the_replicas(self, x):
    with self.assertRaisesRegex(
      ValueError, r'leading axis of 8 replicas, got an array of shape \('
    ):
      pr.engine.ReplicaMesh(8, 2).place({'x': x})

  @parameterized.parameters('place', 'replicate', 'place_per_device')
  def test_later_changes_of_the_callers_array_are_not_seen(self, method):
    # A loader that fills one buffer again and again must not change a batch
    # that was placed, and may be in flight. Aligned, CPU JAX shares memory.
    mesh = pr.engine.ReplicaMesh(8, 2)
    rows = mesh.num_devices if method == 'place_per_device' else 8
    buffer = np.zeros(rows * 4096 * 4 + 128, np.uint8)
    offset = -buffer.ctypes.data % 128
    x = buffer[offset : offset + rows * 4096 * 4].view(np.float32)
    x = x.reshape(rows, 4096)
    placed = getattr(mesh, method)(x)
    jax.block_until_ready(placed)
    x[:] = 1
    self.assertEqual(np.asarray(placed).max(), 0)

  def test_host_arrays_may_be_read_only(self):
    x = np.broadcast_to(np.float32(1), (8, 3))
    np.testing.assert_array_equal(
      pr.engine.ReplicaMesh(8, 2).place(x), np.ones((2, 4, 3))
    )


class MapTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4, 8)
  def test_replica_index_is_global(self, num_devices):
    mesh = pr.engine.ReplicaMesh(8, num_devices)
    index = mesh.map(lambda x: mesh.replica_index())(np.zeros(num_devices))
    self.assertEqual(index.dtype, np.int32)
    np.testing.assert_array_equal(mesh.gather(index), np.arange(8))

  def test_axis_has_its_name(self):
    mesh = pr.engine.ReplicaMesh(8, 4)
    out = mesh.map(lambda x: lax.psum(x, pr.base.AXIS_NAME))(np.arange(4.0))
    np.testing.assert_array_equal(out, np.full(4, 6.0))

  def test_placed_arrays_are_not_moved_by_a_mapped_function(self):
    mesh = pr.engine.ReplicaMesh(8, 4)
    placed = mesh.place(np.zeros((8, 3), np.float32))
    out = mesh.map(lambda x: x + 1)(placed)
    self.assertTrue(placed.sharding.is_equivalent_to(out.sharding, 3))


def convolve(x, kernel):
  lines = x[None, None], kernel[None, None]
  return {'out': jax.lax.conv(*lines, (1,), 'VALID')[0, 0]}


class MapBlockTest(parameterized.TestCase):
  """One function of a replica on a block, in three ways."""

  def setUp(self):
    super().setUp()
    self.x = np.arange(24.0).reshape(8, 3)
    self.kernel = np.arange(16.0).reshape(8, 2)

  def program(self, block=None):
    """The function, and its program as text."""
    mapped = pr.engine.ReplicaMesh(8, 1, block=block).map_block(convolve)
    return mapped, str(jax.make_jaxpr(mapped)(self.x, self.kernel))

  def test_is_vectorized(self):
    mapped = pr.engine.ReplicaMesh(8, 1).map_block(lambda x: x @ x)
    np.testing.assert_allclose(mapped(self.x), (self.x**2).sum(axis=1))
    text = str(jax.make_jaxpr(mapped)(self.x))
    self.assertEqual(text.count('dot_general['), 1)

  @parameterized.parameters((7, 1), (8, 8))
  def test_convolutions_of_small_blocks_are_unrolled(self, most, number):
    with mock.patch.object(block_mapping, 'MAX_UNROLLED', most):
      _, text = self.program()
    self.assertEqual(text.count('conv_general_dilated['), number)

  @parameterized.parameters(('vmap', 1, 0), ('unrolled', 8, 0), ('loop', 1, 1))
  def test_ways_differ_in_the_program_only(self, block, convolutions, loops):
    mapped, text = self.program(block)
    pairs = zip(self.x, self.kernel, strict=True)
    expected = [np.correlate(*rows, 'valid') for rows in pairs]
    np.testing.assert_allclose(mapped(self.x, self.kernel)['out'], expected)
    self.assertEqual(text.count('conv_general_dilated['), convolutions)
    self.assertEqual(text.count('scan['), loops)

  def test_one_replica_is_one_call(self):
    mapped = pr.engine.ReplicaMesh(1, 1, block='loop').map_block(jnp.sin)
    self.assertNotIn('scan', str(jax.make_jaxpr(mapped)(np.zeros((1, 2)))))

  @parameterized.parameters('Vmap', 'scan', 1, True)
  def test_unknown_way_is_one_line(self, block):
    with self.assertRaisesRegex(
      ValueError, f"^block must be 'vmap', .* or 'loop', got .*{block}.*; leave"
    ):
      pr.engine.ReplicaMesh(8, 1, block=block)


if __name__ == '__main__':
  absltest.main()

"""The leaves of a tree that are combined, their precision and bytes."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing import payload
from tests import harness


class MixInexactTest(parameterized.TestCase):
  """Only floating leaves are mixed, in float32 or wider, and cast back."""

  def mixed(self, tree, num_devices=2):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    seen = []

    def fn(tree):
      def mix(leaves):
        seen.extend(x.dtype for x in leaves)
        return pr.mixing.mean().apply(leaves, harness.bare_context(mesh))

      return payload.mix_inexact(mix, tree)

    return mesh.gather(mesh.map(fn)(mesh.place(tree))), seen

  def test_integers_and_booleans_stay_each_replicas_own(self):
    tree = {
      'bool': np.array([True, False, False, True]),
      'count': np.arange(4, dtype=np.int32),
      'float': np.arange(4, dtype=np.float32),
    }
    out, seen = self.mixed(tree)
    np.testing.assert_array_equal(out['count'], tree['count'])
    np.testing.assert_array_equal(out['bool'], tree['bool'])
    np.testing.assert_array_equal(out['float'], np.full(4, 1.5))
    for name in tree:
      self.assertEqual(out[name].dtype, tree[name].dtype)
    self.assertEqual(seen, [jnp.float32])

  @parameterized.product(dtype=('bfloat16', 'float16'), num_devices=(1, 2, 4))
  def test_half_precision_is_averaged_in_single(self, dtype, num_devices):
    # In bfloat16 256 + 1 is 256, so a sum in half precision would lose the 3.
    x = np.array([256, 1, 1, 1], jnp.dtype(dtype))
    out, seen = self.mixed(x, num_devices)
    want = np.float32(259 / 4).astype(x.dtype)
    np.testing.assert_array_equal(out, np.full(4, want))
    self.assertEqual(out.dtype, x.dtype)
    self.assertEqual(seen, [jnp.float32])

  def test_double_precision_stays(self):
    with jax.enable_x64(True):
      out, seen = self.mixed(np.array([1.0, 0, 0, 1e-12]))
    self.assertEqual(seen, [jnp.float64])
    self.assertAlmostEqual(out[0], 0.25 + 0.25e-12, places=15)

  def test_complex_numbers_are_mixed(self):
    out, _ = self.mixed(np.array([1j, 1, 0, 0], np.complex64))
    np.testing.assert_allclose(out, np.full(4, 0.25 + 0.25j))
    self.assertEqual(out.dtype, np.complex64)

  def test_tree_without_floats(self):
    out, seen = self.mixed({'count': np.arange(4)})
    np.testing.assert_array_equal(out['count'], np.arange(4))
    self.assertEmpty(seen)


class PayloadBytesTest(absltest.TestCase):
  def test_are_those_of_the_floating_leaves_as_they_are_sent(self):
    def shape(dims, dtype):
      return jax.ShapeDtypeStruct(dims, jnp.dtype(dtype))

    tree = {
      'bfloat16': shape((5,), 'bfloat16'),  # 4 bytes each on the wire
      'count': shape((7,), 'int32'),  # not sent
      'float32': shape((3, 2), 'float32'),
      'scalar': shape((), 'float32'),
    }
    self.assertEqual(payload.payload_bytes(tree), 4 * (5 + 6 + 1))
    self.assertEqual(payload.payload_bytes(()), 0)
    with jax.enable_x64(True):
      double = shape((3,), 'float64')
      self.assertEqual(payload.payload_bytes(double), 24)


if __name__ == '__main__':
  absltest.main()

"""The rows of a batch on the host, against the samplers on the device."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.data import orders, samplers

# The first steps, a later epoch, and the last step there is.
STEPS = np.array([0, 1, 2, 40, 99999, 2**31 - 1])


def rows_on_device(sampler):
  """The rows of all replicas at `STEPS`."""
  rows = jax.vmap(jax.vmap(sampler.rows, (None, 0)), (0, None))
  replicas = jnp.arange(sampler.num_replicas)
  return np.asarray(jax.jit(rows)(jnp.asarray(STEPS, jnp.int32), replicas))


class OrdersTest(parameterized.TestCase):
  @parameterized.parameters(
    ('shared', 8, 2, 2, 0),
    ('shared', 1437, 8, 16, 2**32 - 1),
    ('shared', samplers.MAX_RESIDENT, 4, 3, 5),
    ('sharded', 1000, 3, 7, 123),
  )
  def test_equals_the_sampler(self, kind, n, num_replicas, batch_size, seed):
    sampler, order = (
      getattr(module, kind)(n, num_replicas, batch_size, seed=seed)
      for module in (samplers, orders)
    )
    np.testing.assert_array_equal(
      order.rows(STEPS, np.arange(num_replicas)), rows_on_device(sampler)
    )

  def test_equals_the_sampler_of_given_shards(self):
    labels = np.arange(60) % 4
    shards = samplers.dirichlet_shards(labels, 3, alpha=0.1, seed=2)
    sampler = samplers.dirichlet(labels, 3, 5, alpha=0.1, seed=2)
    order = orders.from_shards(shards, 5, seed=2)
    np.testing.assert_array_equal(
      order.rows(STEPS, np.arange(3)), rows_on_device(sampler)
    )

  @parameterized.parameters('shared', 'sharded')
  def test_a_process_has_the_rows_of_its_replicas(self, kind):
    order = getattr(orders, kind)(100, 4, 5, seed=1)
    every = order.rows(STEPS, np.arange(4))
    own = order.rows(STEPS[2:], np.arange(2, 4))
    np.testing.assert_array_equal(own, every[2:, 2:])

  @parameterized.parameters(samplers.MAX_RESIDENT + 5, 2**31 - 1)
  def test_a_large_shuffle_repeats_no_example(self, n):
    position = np.random.default_rng(0).integers(n, size=100_000)
    position = np.unique(np.append(position, [0, n - 1]))
    found = orders.shuffled_index(3, np.ones(1, int), position, n)
    self.assertLen(np.unique(found), len(position))
    self.assertBetween(found.min(), 0, n / 1000)
    self.assertBetween(found.max(), n - n / 1000, n - 1)

  def test_parts_without_a_table_are_disjoint_and_complete(self):
    with mock.patch.object(samplers, 'MAX_RESIDENT', 4):
      order = orders.sharded(103, 4, 5, seed=7)
    # 26 steps are five epochs of the part of 26, and more of those of 25.
    rows = order.rows(np.arange(26), np.arange(4))
    parts = [np.unique(rows[:, replica]) for replica in range(4)]
    self.assertEqual([len(part) for part in parts], [26, 26, 26, 25])
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), range(103))
    seen = [np.bincount(rows[:, r].ravel(), minlength=103) for r in range(4)]
    self.assertEqual({*seen[0][parts[0]]}, {5})

  @parameterized.parameters(
    ('shared', 'the batch of all replicas, 4 x 5 = 20, is larger than the 19'),
    ('sharded', 'the batch of 5 is larger than the shard of replica 3, 4'),
  )
  def test_refuses_too_few_examples(self, kind, message):
    with self.assertRaisesRegex(ValueError, message):
      getattr(orders, kind)(19, 4, 5, seed=0)


if __name__ == '__main__':
  absltest.main()

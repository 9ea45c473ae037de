"""`chain` and the helpers of stages."""

import inspect

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import base


def stage(name, log, tier='global'):
  """A stage that records its calls, and counts them in its state."""

  def init(replica, num_replicas):
    log.append((name, 'init', num_replicas))
    return replica, 0

  def update(replica, state, context):
    log.append((name, 'update', context.step))
    return replica._replace(metrics=(*replica.metrics, len(name))), state + 1

  def cost(shapes, num_replicas, steps):
    return (base.Traffic(steps >= 0, len(name), num_replicas, tier, None),)

  def output(replica, state):
    return replica._replace(metrics=(*replica.metrics, (name, state)))

  return pr.base.ReplicaTransformation(
    update,
    init,
    cost,
    output,
    pr.base.names(writes=['metrics']),
    talks=(True,),
  )


SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((2,), jnp.float32))


def context(step=0):
  keys = jax.random.split(jax.random.key(0), 3)
  return pr.base.Context(step, None, keys[1:], keys[0], None)


class ChainTest(parameterized.TestCase):
  def test_every_stage_draws_by_keys_of_its_own(self):
    drawn = []

    def update(replica, state, context):
      drawn.append(jax.random.key_data(context.shared_key).tolist())
      drawn.extend(jax.random.key_data(context.key).tolist())
      return replica, state

    one = pr.base.ReplicaTransformation(
      update, names=pr.base.names(reads=['key', 'shared_key'])
    )
    nested = pr.chain(one, pr.chain(one, one))
    nested.update(pr.base.Replica(params=()), ((), ((), ())), context())
    self.assertLen({tuple(key) for key in drawn}, 9)

  def test_a_stage_that_names_no_key_gets_none(self):
    drawn = []

    def update(replica, state, context):
      drawn.append((context.key is None, context.shared_key is None))
      return replica, state

    def reading(*keys):
      return pr.base.ReplicaTransformation(
        update, names=pr.base.names(reads=keys)
      )

    stages = reading(), reading('key'), pr.chain(reading('shared_key'))
    pr.chain(*stages).update(
      pr.base.Replica(params=()), ((), (), ((),)), context()
    )
    self.assertEqual(drawn, [(True, True), (False, True), (True, False)])

  def test_composes_all_four_in_order(self):
    log = []
    chained = pr.chain(stage('a', log), stage('bb', log))
    replica, state = chained.init(pr.base.Replica(params=[]), 8)
    self.assertEqual(state, (0, 0))
    replica, state = chained.update(replica, state, context(5))
    self.assertEqual(replica.metrics, (1, 2))
    self.assertEqual(state, (1, 1))
    self.assertEqual(
      log,
      [
        ('a', 'init', 8),
        ('bb', 'init', 8),
        ('a', 'update', 5),
        ('bb', 'update', 5),
      ],
    )
    out = chained.output(replica, (3, 4))
    self.assertEqual(out.metrics[2:], (('a', 3), ('bb', 4)))
    sent = chained.cost(SHAPES, 8, np.arange(2))
    self.assertEqual([s.bytes_sent for s in sent], [1, 2])

  def test_nests(self):
    log = []
    nested = pr.chain(
      stage('a', log), pr.chain(stage('b', log), stage('c', log))
    )
    replica, state = nested.init(pr.base.Replica(params=[]), 2)
    self.assertEqual(state, (0, (0, 0)))
    replica, state = nested.update(replica, state, context())
    self.assertEqual(replica.metrics, (1, 1, 1))
    self.assertEqual(state, (1, (1, 1)))
    self.assertLen(nested.cost(SHAPES, 2, np.arange(1)), 3)

  def test_of_nothing_changes_nothing(self):
    empty = pr.chain()
    replica, state = empty.init(pr.base.Replica(params=[1]), 2)
    after, state = empty.update(replica, state, context())
    self.assertEqual((after, state), (replica, ()))
    self.assertEqual(empty.cost(replica, 2, np.arange(1)), ())

  @parameterized.parameters(
    (optax.sgd(0.1),), (None,), (pr.gradient,), (pr.mixing.mean(),), ([],)
  )
  def test_expects_stages(self, other):
    # An optax transformation is a NamedTuple of functions as well.
    with self.assertRaisesRegex(
      ValueError, 'chain expects stages such as.*got'
    ):
      pr.chain(pr.gradient(), other)

  def test_state_of_another_chain_is_refused(self):
    log = []
    chained = pr.chain(stage('a', log), stage('b', log))
    with self.assertRaises(ValueError):
      chained.update(pr.base.Replica(params=[]), (0,), context())

  def test_a_message_that_is_not_announced_is_refused(self):
    silent = stage('a', [])._replace(talks=())
    with self.assertRaisesRegex(ValueError, r'talks=\(\).*1 message'):
      pr.chain(silent).cost(SHAPES, 2, np.arange(1))


class DefaultsTest(absltest.TestCase):
  def test_a_stage_needs_an_update_alone(self):
    plain = pr.base.ReplicaTransformation(lambda r, s, c: (r, s))
    replica = pr.base.Replica(params=[1])
    self.assertEqual(plain.init(replica, 4), (replica, ()))
    self.assertEqual(plain.cost(replica, 4, np.arange(3)), ())
    self.assertIs(plain.output(replica, ()), replica)


class OverBlockTest(absltest.TestCase):
  def test_reduces_over_a_replicas_own_axes(self):
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    got = base.over_block(jnp.linalg.norm)(x)
    want = np.sqrt((x.astype(float) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(got, want, rtol=1e-6)


class PublicApiTest(absltest.TestCase):
  def test_all_is_sorted_and_there(self):
    self.assertEqual(list(pr.__all__), sorted(pr.__all__))
    for name in pr.__all__:
      value = getattr(pr, name)
      public = callable(value) or inspect.ismodule(value)
      self.assertTrue(public or name == 'AXIS_NAME', name)

  def test_a_name_of_a_namespace_is_found_there(self):
    with self.assertRaisesRegex(AttributeError, 'it is pr.graphs.ring$'):
      pr.ring  # noqa: B018
    with self.assertRaisesRegex(AttributeError, "attribute 'rong'$"):
      pr.rong  # noqa: B018

  def test_trees_pass_through_jax(self):
    replica = pr.base.Replica(params={'w': jnp.ones(2)})
    self.assertLen(jax.tree.leaves(replica), 1)


if __name__ == '__main__':
  absltest.main()

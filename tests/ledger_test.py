"""Rounds and bytes: by hand, and against the collectives that are run."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness

N = 8
SGD = optax.sgd(0.1, momentum=0.9)
ADAM = optax.adam(0.1)
# Two leaves, 12 numbers: 48 bytes.
PARAMS = {'w': np.zeros((5, 2), np.float32), 'b': np.zeros(2, np.float32)}
PARAM_BYTES = 48
MODEL_STATE = {'mean': np.zeros(4, np.float32), 'seen': np.int32(0)}
ALL_REDUCE = 2 * 7 / 8


def loss(params, model_state, batch, key):
  del key
  return params['w'].sum() * batch + params['b'].sum(), (model_state, {})


def create(algorithm, num_devices=2, params=PARAMS):
  mesh = pr.ReplicaMesh(N, num_devices)
  return mesh, pr.create_train_state(mesh, algorithm, params, MODEL_STATE)


def account(algorithm, num_steps, params=PARAMS):
  _, state = create(algorithm, params=params)
  return pr.account(algorithm, pr.replica_shapes(state), N, num_steps)


def _chain(*syncs, tx=SGD):
  return pr.chain(pr.gradient(), pr.local_update(tx), *syncs)


class AccountTest(parameterized.TestCase):
  # (algorithm, rounds in 8 steps, bytes by tier)
  @parameterized.named_parameters(
    ('ssgd', pr.ssgd(SGD), 8, {'global': 8 * ALL_REDUCE * 48}),
    ('pr_sgd', pr.pr_sgd(SGD, period=4), 2, {'global': 2 * ALL_REDUCE * 48}),
    ('k_avg', pr.k_avg(SGD, period=3), 2, {'global': 2 * ALL_REDUCE * 48}),
    (
      'one_shot',
      pr.one_shot_averaging(SGD, num_steps=8),
      1,
      {'global': ALL_REDUCE * 48},
    ),
    ('too_late', pr.one_shot_averaging(SGD, num_steps=9), 0, {'global': 0.0}),
    (
      'hier_avg',
      pr.hier_avg(SGD, local_period=2, global_period=8, group_size=4),
      4 + 1,
      {'group': 4 * 2 * 3 / 4 * 48, 'global': ALL_REDUCE * 48},
    ),
    ('ring', pr.d_psgd(SGD), 8, {'neighbour': 8 * 2 * 48}),
    (
      'groups_of_one',
      pr.hier_avg(SGD, local_period=2, global_period=8, group_size=1),
      1,
      {'global': ALL_REDUCE * 48},
    ),
    (
      'dense',
      pr.d_psgd(SGD, mixing=pr.dense(np.eye(N))),
      8,
      {'neighbour': 8 * 7 * 48},
    ),
    (
      'momentum_too',
      pr.k_avg(SGD, period=4, what=('params', 'opt_state')),
      2,
      {'global': 2 * ALL_REDUCE * 96},
    ),
    (
      'adam_too',  # mu and nu, not the count
      pr.k_avg(ADAM, period=4, what=('params', 'opt_state')),
      2,
      {'global': 2 * ALL_REDUCE * 144},
    ),
    (
      'model_state_too',  # four means, not the count
      pr.k_avg(SGD, period=4, what=('params', 'model_state')),
      2,
      {'global': 2 * ALL_REDUCE * (48 + 16)},
    ),
    (
      'heterogeneous',
      pr.chain(
        pr.while_active([1] * 7 + [4], pr.gradient(), pr.local_update(SGD)),
        pr.sync(pr.mean(), when=pr.every(4)),
      ),
      2,
      {'global': 2 * ALL_REDUCE * 48},
    ),
    (
      'outer',
      _chain(
        pr.sync(pr.mean(), when=pr.every(4), outer=optax.sgd(1.0, momentum=0.9))
      ),
      2,
      {'global': 2 * ALL_REDUCE * 48},
    ),
    ('never', _chain(pr.sync(pr.mean(), when=pr.never())), 0, {'global': 0.0}),
  )
  def test_by_hand(self, algorithm, rounds, bytes_by_tier):
    got = account(algorithm, 8)
    self.assertEqual(got.rounds[-1], rounds)
    self.assertEqual(set(got.bytes_by_tier), set(bytes_by_tier))
    for tier, total in bytes_by_tier.items():
      self.assertAlmostEqual(got.bytes_by_tier[tier][-1], total)
    self.assertAlmostEqual(got.bytes_sent[-1], sum(bytes_by_tier.values()))

  def test_entry_t_is_what_was_sent_in_the_first_t_steps(self):
    got = account(pr.k_avg(SGD, period=2), 5)
    np.testing.assert_array_equal(got.rounds, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(got.bytes_sent, got.rounds * ALL_REDUCE * 48)
    self.assertEqual(got.rounds.dtype, np.int64)
    self.assertEqual(got.bytes_sent.dtype, np.float64)

  def test_does_not_communicate(self):
    got = account(_chain(), 3)
    np.testing.assert_array_equal(got.rounds, np.zeros(4))
    np.testing.assert_array_equal(got.bytes_sent, np.zeros(4))
    self.assertEqual(got.bytes_by_tier, {})

  def test_replicas_are_machines_whatever_the_devices(self):
    algorithm = pr.hier_avg(SGD, local_period=1, global_period=2, group_size=2)
    totals = set()
    for num_devices in (1, 2, 8):
      _, state = create(algorithm, num_devices)
      got = pr.account(algorithm, pr.replica_shapes(state), N, 4)
      totals.add((int(got.rounds[-1]), float(got.bytes_sent[-1])))
    self.assertLen(totals, 1)

  def test_half_precision_is_sent_in_single(self):
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), PARAMS)
    got = account(pr.k_avg(SGD, period=1), 1, half)
    self.assertAlmostEqual(got.bytes_sent[-1], ALL_REDUCE * 48)

  def test_a_schedule_may_be_a_constant(self):
    # A user's own schedule that returns one bool, as it may when traced.
    algorithm = _chain(pr.sync(pr.mean(), when=lambda step: True))
    np.testing.assert_array_equal(account(algorithm, 3).rounds, [0, 1, 2, 3])


def collectives_in_jaxpr(algorithm, num_steps):
  """The collectives of the engine's program at V = 1.

  A jaxpr has each collective once, however often its conditional is taken.
  """
  mesh, state = create(algorithm, N)
  train_steps = pr.make_train_steps(mesh, algorithm, loss)
  batch = mesh.place_per_device(np.zeros((N, num_steps, 1), np.float32))
  return harness.collectives_of(train_steps, state, batch)


def sent_bytes(sent):
  """The convention of the ledger, from a collective and its operands."""
  payload = sum(x.size * x.dtype.itemsize for x in sent.operands)
  groups = sent.params.get('axis_index_groups')
  size = len(groups[0]) if groups else N
  if sent.name.startswith(('psum', 'pmean')):
    return 2 * (size - 1) / size * payload
  if sent.name.startswith('all_gather'):
    return (size - 1) * payload
  assert sent.name == 'ppermute', sent.name
  return payload


class CollectivesTest(parameterized.TestCase):
  """At V = 1 the bytes of the ledger are those of the collectives that run."""

  @parameterized.named_parameters(
    ('ssgd', pr.ssgd(SGD), 1),
    ('pr_sgd', pr.pr_sgd(SGD, period=4), 4),
    ('k_avg', pr.k_avg(ADAM, period=2), 2),
    (
      'averaged_buffers',
      pr.k_avg(ADAM, period=2, what=('params', 'opt_state', 'model_state')),
      2,
    ),
    ('ring', pr.d_psgd(SGD), 1),
    ('ring_without_self', pr.d_psgd(SGD, mixing=pr.ring(0.0)), 1),
    ('dense', pr.d_psgd(SGD, mixing=pr.dense(np.eye(N))), 1),
    (
      'outer',
      _chain(pr.sync(pr.mean(), when=pr.every(4), outer=optax.sgd(0.7))),
      4,
    ),
  )
  def test_one_round(self, algorithm, period):
    # One communication in a period, and one collective of it in the program.
    found = collectives_in_jaxpr(algorithm, period)
    got = account(algorithm, period)
    self.assertEqual(got.rounds[-1], 1)
    self.assertAlmostEqual(
      got.bytes_sent[-1], sum(sent_bytes(sent) for sent in found)
    )
    for sent in found:
      self.assertEqual(sent.conditional, period > 1)

  def test_two_tiers(self):
    algorithm = pr.hier_avg(SGD, local_period=2, global_period=8, group_size=4)
    found = collectives_in_jaxpr(algorithm, 8)
    grouped = [s for s in found if s.params.get('axis_index_groups')]
    whole = [s for s in found if not s.params.get('axis_index_groups')]
    got = account(algorithm, 8).bytes_by_tier
    # The group's collective is taken 4 times in 8 steps, the other once.
    group_bytes = sum(sent_bytes(s) for s in grouped)
    self.assertAlmostEqual(got['group'][-1], 4 * group_bytes)
    whole_bytes = sum(sent_bytes(s) for s in whole)
    self.assertAlmostEqual(got['global'][-1], whole_bytes)


if __name__ == '__main__':
  absltest.main()

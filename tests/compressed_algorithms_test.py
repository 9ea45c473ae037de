"""Algorithms that send codes: identities, messages and errors."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness, reference
from tests.rows import LEARNING_RATE, PLAIN, SGD, N, T
from tests.rows.compressed import FRACTION

PROBLEM = laws.PROBLEMS['smooth']
NOTHING_LOST = pr.codecs.uncompressed()


def final(algorithm, seed=0):
  """x[N, d] after T steps, in float64."""
  return run(algorithm, seed)[0]


def run(algorithm, seed=0):
  """x[N, d] and the state after T steps, on the host."""
  with jax.enable_x64(True):
    mesh = pr.engine.ReplicaMesh(N, laws.ONE_LAYOUT)
    start = harness.to_tree(PROBLEM.start)
    state = pr.engine.create_train_state(mesh, algorithm, start, seed=seed)
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, harness.problem_loss
    )
    batch = harness.problem_batches(mesh, PROBLEM, range(T))
    state, _ = train_steps(state, batch)
    return harness.to_vector(mesh.gather(state.params)), harness.to_host(state)


def memory_of(state, *path):
  """What the codec of a `sync` remembers, as the oracle's vectors.

  Args:
    state: the train state, on the host.
    *path: the indices of the stage in the chains around it.
  """
  found = state.algorithm_state
  for i in path:
    found = found[i]
  leaves = found.memory
  if isinstance(leaves, dict):
    return {name: vector(x) for name, x in leaves.items()}
  return vector(leaves)


def vector(leaves):
  return harness.to_vector(dict(zip('bw', leaves)))


def row(name):
  """x[N, d] after T steps of a row of the table."""
  return laws.trajectory(name).x[-1]


class SpecialCasesTest(parameterized.TestCase):
  """Each algorithm without compression equals a simpler one."""

  def test_codes_of_gradients_are_ssgd(self):
    algorithm = pr.chain(
      pr.gradient(),
      pr.sync(pr.mixing.mean(), 'grads', codec=NOTHING_LOST),
      pr.local_update(SGD),
    )
    laws.assert_close(final(algorithm), row('ssgd'))

  def test_error_feedback_is_ssgd(self):
    algorithm = pr.error_feedback_sgd(SGD, compressor=NOTHING_LOST)
    laws.assert_close(final(algorithm), row('ssgd'))

  def test_error_feedback_that_keeps_all_entries_is_ssgd(self):
    algorithm = pr.error_feedback_sgd(SGD, compressor=pr.codecs.top_k(1.0))
    laws.assert_close(final(algorithm), row('ssgd'))

  def test_fedpaq_and_qsparse_are_local_sgd(self):
    # With momentum local; the average is by differences, not of the models.
    want = row('k_avg_4')
    for make in (pr.fedpaq, pr.qsparse_local_sgd):
      laws.assert_close(
        final(make(SGD, period=4, compressor=NOTHING_LOST)), want
      )

  def test_qsparse_at_every_step_is_error_feedback(self):
    algorithm = pr.qsparse_local_sgd(
      SGD, period=1, compressor=pr.codecs.top_k(FRACTION)
    )
    laws.assert_close(final(algorithm), row('error_feedback_sgd'))

  @parameterized.parameters(
    pr.graphs.ring, pr.mixing.mean, pr.graphs.exponential
  )
  def test_choco_with_gamma_1_is_order_c_gossip(self, mixing):
    # PAPERS 6.
    choco = pr.choco_sgd(
      SGD,
      mixing=mixing(),
      compressor=NOTHING_LOST,
      consensus_step_size=1.0,
    )
    laws.assert_close(final(choco), final(pr.diffusion(SGD, mixing=mixing())))

  def test_choco_is_an_average(self):
    gossip = pr.stages.gossip_differences(
      pr.graphs.ring(), pr.codecs.top_k(FRACTION), consensus_step_size=0.4
    )
    np.testing.assert_array_equal(
      final(pr.k_avg(SGD, period=3, average=gossip)), row('choco_sgd_local')
    )
    apart = np.abs(row('choco_sgd_local') - row('choco_sgd')).max()
    self.assertGreater(apart, 1e-3)

  def test_diloco_of_whole_differences_is_diloco(self):
    average = pr.stages.average_differences(pr.codecs.feedback(NOTHING_LOST))
    algorithm = pr.diloco(SGD, period=4, average=average)
    laws.assert_close(final(algorithm), row('diloco'))
    apart = np.abs(row('diloco_top_k') - row('diloco')).max()
    self.assertGreater(apart, 1e-3)

  def test_compression_makes_a_difference(self):
    # So that the equalities above say something.
    for name in ('qsgd', 'terngrad', 'sign_sgd', 'error_feedback_sgd'):
      self.assertGreater(np.abs(row(name) - row('ssgd')).max(), 1e-3)
    for name in ('fedpaq', 'qsparse_local_sgd'):
      self.assertGreater(np.abs(row(name) - row('k_avg_4')).max(), 1e-3)

  def test_a_local_step_may_be_an_algorithm(self):
    # Of a round of one step: the average of codes follows that of gradients.
    algorithm = pr.fedpaq(pr.ssgd(SGD), period=1, compressor=NOTHING_LOST)
    laws.assert_close(final(algorithm), row('ssgd'))

  def test_more_levels_are_nearer_to_ssgd(self):
    fine = np.abs(final(pr.qsgd(SGD, levels=32767)) - row('ssgd')).max()
    coarse = np.abs(row('qsgd') - row('ssgd')).max()
    self.assertLess(fine, 1e-2 * coarse)


class ErrorFeedbackTest(parameterized.TestCase):
  def test_nothing_is_lost_but_late(self):
    # sum_t gamma mean_i G_i = x_0 - x_T + mean_i e_i, with momentum 0: the
    # errors are the part not applied yet.
    algorithm = pr.error_feedback_sgd(
      PLAIN, compressor=pr.codecs.top_k(FRACTION)
    )
    with jax.enable_x64(True):
      engine = harness.make_engine(algorithm, N, laws.ONE_LAYOUT)
      state, x = laws.advance(engine, laws.initial_state(engine), range(T))
      errors = memory_of(harness.to_host(state), 3)
    before = [np.tile(PROBLEM.start, (N, 1)), *x[:-1]]
    wanted = sum(
      LEARNING_RATE * PROBLEM.gradient(i, before[t][i], t + 1) / N
      for t in range(T)
      for i in range(N)
    )
    self.assertGreater(np.abs(errors).max(), 1e-2)
    errors = errors.reshape(N, -1).mean(axis=0)
    laws.assert_close(wanted, PROBLEM.start - x[-1][0] + errors)

  def test_errors_of_half_precision_are_kept_in_single(self):
    algorithm = pr.error_feedback_sgd(SGD, compressor=pr.codecs.top_k(FRACTION))
    mesh = pr.engine.ReplicaMesh(4, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, jnp.zeros(4, jnp.bfloat16)
    )
    for errors in jax.tree.leaves(state.algorithm_state):
      self.assertEqual(errors.dtype, jnp.float32)


class VoteTest(parameterized.TestCase):
  """The majority of signs, by hand: the gradient is the batch."""

  def voted(self, gradients, num_devices=1, num_steps=1):
    """-x after steps of size 1 with the same gradients [N, d]."""

    def loss(params, model_state, batch, key):
      del key
      return params @ batch, (model_state, {})

    gradients = np.asarray(gradients, np.float32)
    n, dim = gradients.shape
    mesh = pr.engine.ReplicaMesh(n, num_devices)
    algorithm = pr.sign_sgd(optax.sgd(1.0))
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(dim, np.float32)
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    batch = gradients.reshape(num_devices, 1, n // num_devices, dim)
    batch = np.repeat(batch, num_steps, axis=1)
    state, _ = train_steps(state, mesh.place_per_device(batch))
    x = mesh.gather(state.params)
    np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape))
    return -x[0]

  @parameterized.parameters(1, 2, 3, 6)
  def test_majority_and_ties(self, num_devices):
    # Sums of sixths that are not exact: 3 against 3 is 0 all the same.
    columns = [
      [1, 1, 1, -1, -1, -1],
      [-1, 1, -1, 1, -1, 1],
      [9, 1e-9, 1, 2, -100, -100],
      [-1, -1, -1, -1, 5, 5],
    ]
    got = self.voted(np.array(columns).T, num_devices)
    np.testing.assert_array_equal(got, [0, 0, 1, -1])

  @parameterized.parameters(2, 4, 6)
  def test_zeros_of_all_replicas_cancel_where_n_is_even(self, n):
    np.testing.assert_array_equal(self.voted(np.zeros((n, 3))), 0)

  def test_zeros_of_all_replicas_alternate_where_n_is_odd(self):
    zeros = np.zeros((3, 2))
    np.testing.assert_array_equal(self.voted(zeros), 1)
    np.testing.assert_array_equal(self.voted(zeros, num_steps=2), 0)

  def test_a_zero_is_outvoted(self):
    got = self.voted([[0.0], [-2.0], [-1.0], [0.0]])
    np.testing.assert_array_equal(got, [-1])


class ChocoTest(parameterized.TestCase):
  def test_sums_of_the_neighbors_are_those_of_their_copies(self):
    # s_i = sum_j W_ij xhat_j, which the replica does not have.
    algorithm = pr.choco_sgd(
      SGD,
      mixing=pr.graphs.ring(),
      compressor=pr.codecs.top_k(FRACTION),
      consensus_step_size=0.4,
    )
    _, state = run(algorithm)
    memory = memory_of(state, 1, 0, 1)
    known, mixed = (memory[x].reshape(N, -1) for x in ('known', 'mixed'))
    laws.assert_close(mixed, reference.ring_weights(N) @ known)

  def test_agrees_without_gradients(self):
    # CHOCO-Gossip: to the mean of different points, an eighth of the entries at
    # a time.
    algorithm = pr.chain(
      pr.stages.gossip_differences(
        pr.graphs.ring(), pr.codecs.top_k(1 / 8), consensus_step_size=0.1
      )
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    start = np.random.default_rng(0).normal(size=(N, 16)).astype(np.float32)
    state = pr.engine.create_train_state(
      mesh, algorithm, start, per_replica=True
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda *args: (jnp.float32(0), ((), {}))
    )
    nothing = mesh.place_per_device(np.zeros((2, 2000, 4, 1), np.float32))
    state, _ = train_steps(state, nothing)
    x = mesh.gather(state.params)
    mean = np.broadcast_to(start.mean(axis=0), x.shape)
    np.testing.assert_allclose(x, mean, rtol=0, atol=1e-3)


class BytesTest(parameterized.TestCase):
  """Bytes that one replica sends in a step, for a leaf of 80000 numbers."""

  PARAMS = np.zeros((200, 400), np.float32)

  @parameterized.named_parameters(
    ('qsgd', pr.qsgd(SGD, levels=4), 7 * (40_000 + 4)),
    ('terngrad', pr.terngrad(SGD), 7 * (20_000 + 4)),
    ('sign_sgd', pr.sign_sgd(SGD), 7 * 10_000),
    (
      'error_feedback',
      pr.error_feedback_sgd(SGD, compressor=pr.codecs.top_k(0.01)),
      7 * 800 * (4 + 4),
    ),
    (
      'choco',
      pr.choco_sgd(
        SGD,
        mixing=pr.graphs.ring(),
        compressor=pr.codecs.signs(),
        consensus_step_size=0.1,
      ),
      2 * (10_000 + 4),
    ),
    (
      'fedpaq',
      pr.fedpaq(SGD, period=1, compressor=pr.codecs.random_k(0.01)),
      7 * (800 * 4 + 8),
    ),
  )
  def test_by_hand(self, algorithm, expected):
    mesh = pr.engine.ReplicaMesh(N, N)
    state = harness.state_types(mesh, algorithm, self.PARAMS)
    got = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, 3)
    self.assertEqual(got.bytes_sent[-1], 3 * expected)

  def test_differences_travel_in_their_steps_alone(self):
    algorithm = pr.qsparse_local_sgd(
      SGD, period=4, compressor=pr.codecs.signs()
    )
    state = harness.state_types(
      pr.engine.ReplicaMesh(N), algorithm, np.zeros(8)
    )
    got = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, 9)
    self.assertEqual(got.rounds.tolist(), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])

  def test_what_travels_is_integers_and_few_floats(self):
    algorithm = pr.qsgd(SGD, levels=4)
    mesh = pr.engine.ReplicaMesh(N, N)
    state = pr.engine.create_train_state(mesh, algorithm, self.PARAMS)

    def loss(params, model_state, batch, key):
      del key
      return params.sum() * batch, (model_state, {})

    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    batch = mesh.place_per_device(np.zeros((N, 1, 1), np.float32))
    sent = harness.collectives_of(train_steps, state, batch)
    operands = [x for collective in sent for x in collective.operands]
    got = sorted((str(x.dtype), x.size) for x in operands)
    self.assertEqual(got, [('float32', 1), ('uint8', 40_000)])


class SeedTest(parameterized.TestCase):
  def test_another_seed_draws_otherwise(self):
    other = final(pr.terngrad(SGD), seed=1)
    self.assertGreater(np.abs(other - row('terngrad')).max(), 1e-3)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda q: pr.error_feedback_sgd(SGD, compressor=q),
    lambda q: pr.fedpaq(SGD, period=2, compressor=q),
    lambda q: pr.qsparse_local_sgd(SGD, period=2, compressor=q),
    lambda q: pr.choco_sgd(
      SGD, mixing=pr.graphs.ring(), compressor=q, consensus_step_size=1.0
    ),
  )
  def test_compressor_is_one(self, make):
    with self.assertRaisesRegex(
      ValueError,
      r'expected a compressor such as pr.codecs.top_k\(0.1\), got 0.1',
    ):
      make(0.1)

  @parameterized.parameters(0, -0.1, 1.5, float('nan'), None, True)
  def test_consensus_step_size_is_in_range(self, gamma):
    with self.assertRaisesRegex(
      ValueError, rf'consensus_step_size must be in \(0, 1\], got {gamma}'
    ):
      pr.choco_sgd(
        SGD,
        mixing=pr.graphs.ring(),
        compressor=pr.codecs.signs(),
        consensus_step_size=gamma,
      )

  def test_choco_takes_a_mixing(self):
    with self.assertRaisesRegex(ValueError, 'sync expects a mixing.*got 0.5'):
      pr.choco_sgd(
        SGD, mixing=0.5, compressor=pr.codecs.signs(), consensus_step_size=0.5
      )

  def choco_on(self, mixing):
    algorithm = pr.choco_sgd(
      SGD, mixing=mixing, compressor=pr.codecs.signs(), consensus_step_size=0.5
    )
    return pr.engine.create_train_state(
      pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
    )

  @parameterized.parameters(
    pr.graphs.random_matching, pr.graphs.one_peer_exponential
  )
  def test_choco_needs_a_static_mixing(self, mixing):
    with self.assertRaisesRegex(
      ValueError,
      r'one W for all rounds, got a mixing with \d; use a static one',
    ):
      self.choco_on(mixing())

  def test_choco_needs_rows_that_sum_to_one(self):
    weights = np.eye(N)
    weights[0, 0], weights[1, 0] = 0.5, 0.5
    with self.assertRaisesRegex(ValueError, 'rows that sum to 1'):
      self.choco_on(pr.mixing.dense(weights))

  @parameterized.parameters(0, 1.5, True)
  def test_periods_are_positive_integers(self, bad):
    for make in (pr.fedpaq, pr.qsparse_local_sgd):
      with self.assertRaisesRegex(
        ValueError, f'period must be an integer >= 1, got {bad}'
      ):
        make(SGD, period=bad, compressor=pr.codecs.signs())

  def test_levels_are_checked(self):
    with self.assertRaisesRegex(ValueError, 'levels must be an integer >= 1'):
      pr.qsgd(SGD, levels=0)

  @parameterized.parameters(
    lambda tx: pr.qsgd(tx, levels=2),
    lambda tx: pr.terngrad(tx),
    lambda tx: pr.sign_sgd(tx),
    lambda tx: pr.error_feedback_sgd(tx, compressor=pr.codecs.signs()),
  )
  def test_optimizer_is_optax(self, make):
    with self.assertRaisesRegex(ValueError, 'optax transformation.*got 0.1'):
      make(0.1)


if __name__ == '__main__':
  absltest.main()

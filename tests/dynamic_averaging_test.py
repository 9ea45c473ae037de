"""Data-dependent communication: its condition, messages and counts."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import base
from tests import harness, reference
from tests.rows import LEARNING_RATE, MOMENTUM, SGD
from tests.rows.averaging import DYNAMIC_THRESHOLD

N, T = 8, 24
PROBLEM = reference.make_problem(N, T)


def oracle_checks(check_period, threshold):
  """(t, largest squared distance, averaged or not) of every check."""
  seen = []
  reference.dynamic_averaging(
    PROBLEM,
    check_period=check_period,
    threshold=threshold,
    learning_rate=LEARNING_RATE,
    momentum=MOMENTUM,
    seen=seen,
  )
  return seen


def decided(state):
  """The rounds in a train state, int[N], and r."""
  (count,) = [
    node
    for node in jax.tree.leaves(state.algorithm_state, is_leaf=_is_decided)
    if _is_decided(node)
  ]
  return np.ravel(count.rounds), state.registers['dynamic_averaging.reference']


def _is_decided(node):
  return isinstance(node, base.Decided)


class RoundsTest(parameterized.TestCase):
  """The rounds in the state, against the oracle's count."""

  @parameterized.parameters(1, 4, 8)
  def test_counts_what_the_oracle_counts_at_every_step(self, num_devices):
    algorithm = pr.dynamic_averaging(
      SGD, check_period=2, threshold=DYNAMIC_THRESHOLD
    )
    checks = oracle_checks(2, DYNAMIC_THRESHOLD)
    with jax.enable_x64(True):
      run = harness.make_engine(algorithm, N, num_devices)
      start = harness.to_tree(PROBLEM.start)
      state = pr.engine.create_train_state(run.mesh, algorithm, start)
      for t in range(1, T + 1):
        batch = harness.problem_batches(run.mesh, PROBLEM, [t - 1])
        state, _ = run.train_steps(state, batch)
        rounds, _ = decided(state)
        want = sum(violated for at, _, violated in checks if at <= t)
        np.testing.assert_array_equal(rounds, np.full(N, want))
        self.assertEqual(rounds.dtype, np.int32)

  def test_the_oracle_has_something_to_decide_and_is_away_from_ties(self):
    checks = oracle_checks(2, DYNAMIC_THRESHOLD)
    violated = [v for _, _, v in checks]
    self.assertTrue(any(violated) and not all(violated))
    for _, distance, _ in checks:
      self.assertGreater(abs(distance / DYNAMIC_THRESHOLD - 1), 0.01)

  def test_the_ledger_adds_them_up(self):
    algorithm = pr.dynamic_averaging(
      SGD, check_period=2, threshold=DYNAMIC_THRESHOLD
    )
    run = harness.make_engine(algorithm, N, 2)
    start = harness.to_tree(PROBLEM.start.astype(np.float32))
    state = pr.engine.create_train_state(run.mesh, algorithm, start)
    batch = harness.problem_batches(run.mesh, PROBLEM, np.arange(T), np.float32)
    shapes = pr.engine.replica_shapes(state)
    state, _ = run.train_steps(state, batch)
    account = pr.ledger.account(algorithm, shapes, N, T)
    spent = pr.ledger.with_decided(account, T, state.algorithm_state)
    meter = pr.ledger.meter(algorithm, shapes, N, T)
    position = meter.advance(meter.init(), T)
    self.assertEqual(meter.spent(position, state.algorithm_state), spent)
    without = account.rounds[T]
    self.assertEqual(meter.spent(position).rounds, without)
    self.assertLess(without, spent.rounds)
    averages = sum(v for _, _, v in oracle_checks(2, DYNAMIC_THRESHOLD))
    all_reduce = 2 * (N - 1) / N
    self.assertEqual(spent.rounds, T // 2 + averages)
    # A flag of four bytes at each check; six numbers at each average.
    self.assertAlmostEqual(
      spent.bytes_sent, all_reduce * (T // 2 * 4 + averages * 24)
    )

  def test_one_replica_has_no_rounds(self):
    algorithm = pr.dynamic_averaging(SGD, check_period=1, threshold=0.0)
    mesh = pr.engine.ReplicaMesh(1)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(2, np.float32)
    )
    account = pr.ledger.account(
      algorithm, pr.engine.replica_shapes(state), 1, 3
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
    batch = mesh.place_per_device(np.ones((1, 3, 1, 2), np.float32))
    state, _ = train_steps(
      state.replace(model_state=mesh.place(np.zeros(1))), batch
    )
    self.assertEqual(decided(state)[0][0], 3)
    spent = pr.ledger.with_decided(account, 3, state.algorithm_state)
    self.assertEqual((spent.rounds, spent.bytes_sent), (0, 0.0))


def linear_loss(params, model_state, batch, key):
  """The gradient is the batch."""
  del key
  return params @ batch, (model_state + 1, {})


def moved(moves, num_devices=2, dtype=np.float32, tx=None, **stage):
  """A state after steps against these gradients [steps, N, d], from zero."""
  moves = np.asarray(moves)
  steps, n, dim = moves.shape
  mesh = pr.engine.ReplicaMesh(n, num_devices)
  algorithm = pr.dynamic_averaging(
    optax.sgd(1.0) if tx is None else tx, **{'check_period': 1, **stage}
  )
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(dim, dtype), np.float32(0)
  )
  batch = moves.reshape((steps, num_devices, n // num_devices, dim))
  train_steps = pr.engine.make_train_steps(mesh, algorithm, linear_loss)
  state, _ = train_steps(
    state, mesh.place_per_device(np.moveaxis(batch, 1, 0).astype(dtype))
  )
  return mesh, state


def one_moves(by, steps=1, n=4, dim=2, who=3):
  moves = np.zeros((steps, n, dim))
  moves[0, who, 0] = -by
  return moves


class DecisionTest(parameterized.TestCase):
  """Who is far, and what follows."""

  @parameterized.product(num_devices=(1, 2, 4), who=(0, 3))
  def test_one_far_replica_averages_all(self, num_devices, who):
    mesh, state = moved(one_moves(2.0, who=who), num_devices, threshold=3.9)
    x = mesh.gather(state.params)
    np.testing.assert_array_equal(x, np.full((4, 2), [0.5, 0.0]))
    rounds, r = decided(state)
    np.testing.assert_array_equal(rounds, np.ones(4))
    np.testing.assert_array_equal(mesh.gather(r), x)

  @parameterized.parameters(1, 2, 4)
  def test_at_the_threshold_nobody_is_far(self, num_devices):
    mesh, state = moved(one_moves(2.0), num_devices, threshold=4.0)
    x = mesh.gather(state.params)
    np.testing.assert_array_equal(x[:, 0], [0, 0, 0, 2])
    rounds, r = decided(state)
    np.testing.assert_array_equal(rounds, np.zeros(4))
    np.testing.assert_array_equal(mesh.gather(r), np.zeros((4, 2)))

  def test_distance_is_from_the_last_average_and_not_from_the_start(self):
    # Together by 2 in each step: far from 0 after the first, which moves r.
    moves = np.full((3, 4, 1), -2.0)
    _, state = moved(moves, threshold=3.0)
    self.assertEqual(decided(state)[0][0], 3)
    _, state = moved(moves, threshold=5.0)
    self.assertEqual(decided(state)[0][0], 1)  # 16 > 5 in the second step

  def test_without_movement_there_is_no_round_even_at_threshold_0(self):
    _, state = moved(np.zeros((3, 4, 2)), threshold=0.0)
    np.testing.assert_array_equal(decided(state)[0], np.zeros(4))

  def test_only_at_the_checks(self):
    mesh, state = moved(one_moves(9.0, steps=3), threshold=0.0, check_period=4)
    np.testing.assert_array_equal(mesh.gather(state.params)[:, 0], [0, 0, 0, 9])
    np.testing.assert_array_equal(decided(state)[0], np.zeros(4))

  def test_half_precision_is_added_up_in_single(self):
    # 300 moves of 1: bfloat16 would stop counting at 256.
    moves = np.zeros((1, 4, 300))
    moves[0, 1] = -1.0
    for threshold, rounds in ((299.0, 1), (301.0, 0)):
      _, state = moved(moves, dtype=jnp.bfloat16, threshold=threshold)
      self.assertEqual(decided(state)[0][0], rounds)
      self.assertEqual(state.params.dtype, jnp.bfloat16)
      self.assertEqual(decided(state)[1].dtype, jnp.float32)

  def test_covers_what_is_asked(self):
    for what, buffers in (
      (('params',), [0, 0, 0, -2]),
      (('opt_state', 'params'), [-0.5] * 4),
    ):
      mesh, state = moved(
        one_moves(2.0),
        tx=optax.sgd(1.0, momentum=0.9),
        threshold=1.0,
        average=pr.sync(pr.mixing.mean(), what),
      )
      np.testing.assert_array_equal(
        mesh.gather(state.params)[:, 0], np.full(4, 0.5)
      )
      trace = mesh.gather(state.opt_state)[0].trace
      np.testing.assert_array_equal(trace[:, 0], buffers)


class ProgramTest(parameterized.TestCase):
  def test_both_messages_are_conditional(self):
    algorithm = pr.dynamic_averaging(SGD, check_period=2, threshold=1.0)
    run = harness.make_engine(algorithm, N, N)
    start = harness.to_tree(PROBLEM.start.astype(np.float32))
    state = pr.engine.create_train_state(run.mesh, algorithm, start)
    batch = harness.problem_batches(run.mesh, PROBLEM, [0], np.float32)
    found = harness.collectives_of(run.train_steps, state, batch)
    sizes = [sum(x.size for x in sent.operands) for sent in found]
    self.assertEqual(sizes[0], 1)  # the flag, first
    self.assertEqual(sum(sizes[1:]), 6)
    self.assertTrue(all(sent.conditional for sent in found))

  def test_cost_lists_the_check_and_the_average(self):
    algorithm = pr.dynamic_averaging(SGD, threshold=1.0, check_period=3)
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((10,), jnp.float32))
    _, check, average = algorithm.cost(shapes, N, np.arange(6))
    np.testing.assert_array_equal(check.fires, [0, 0, 1, 0, 0, 1])
    self.assertEqual(check.bytes_sent, 2 * 7 / 8 * 4)
    self.assertIsNone(average.fires)
    self.assertEqual(average.bytes_sent, 2 * 7 / 8 * 40)
    self.assertEqual({check.tier, average.tier}, {'global'})


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(-1, np.nan, np.inf, True, None)
  def test_threshold(self, threshold):
    with self.assertRaisesRegex(
      ValueError, f'threshold must be >= 0 and finite, got {threshold}'
    ):
      pr.dynamic_averaging(SGD, threshold=threshold, check_period=2)


if __name__ == '__main__':
  absltest.main()

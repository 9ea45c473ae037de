"""Averages in groups: identities, groups that agree, and errors."""

from absl.testing import absltest, parameterized
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness
from tests.averaging_algorithms_test import points
from tests.rows import PLAIN, SGD, N, T


class SpecialCasesTest(parameterized.TestCase):
  """PAPERS 4, on any number of levels."""

  @parameterized.parameters(
    ('multi_level_hier_avg', 'hier_avg'),
    ('multi_level_k_avg', 'k_avg_4'),
  )
  def test_is_the_same_program(self, special, general):
    np.testing.assert_array_equal(
      laws.trajectory(special).x, laws.trajectory(general).x
    )

  @parameterized.named_parameters(
    ('groups_of_one', (1, 2, 4), (1, 1), 'k_avg_4'),
    ('equal_periods', (4, 4, 4), (2, 4), 'k_avg_4'),
    ('first_group_of_all', (2, 4, 8), (N, N), 'k_avg_2'),
    ('middle_group_of_all', (4, 4, 8), (2, N), 'k_avg_4'),
    ('a_level_twice', (2, 2, 8), (4, 4), 'hier_avg'),
    ('all_as_a_size', (2, 8), (4, N), 'hier_avg'),
    ('always', (1, 1, 1), (2, 4), 'ssgd'),
  )
  def test_multi_level_collapses(self, periods, group_sizes, name):
    x = points(
      pr.multi_level_avg(SGD, periods=periods, group_sizes=group_sizes)
    )
    laws.assert_close(x, laws.trajectory(name).x[1:])

  @parameterized.named_parameters(
    ('blocks_of_one', 2, 2, 1, 0, 'k_avg_4'),
    ('one_block', 4, 2, N, 0, 'k_avg_4'),
    ('one_block_step', 4, 1, 2, 0, 'k_avg_4'),
    ('never_local', 3, 2, 4, T, 'ssgd'),
  )
  def test_hierarchical_local_sgd_collapses(self, h, h_b, size, switch, name):
    x = points(
      pr.hierarchical_local_sgd(
        SGD, period=h, block_steps=h_b, group_size=size, switch_step=switch
      )
    )
    laws.assert_close(x, laws.trajectory(name).x[1:])

  def test_blocks_from_the_start_are_hier_avg(self):
    # Another program, whose products and sums may be contracted otherwise.
    x = laws.trajectory('hierarchical_local_sgd_hier_avg').x
    laws.assert_close(x, laws.trajectory('hier_avg').x)

  def test_blocks_of_one_after_the_switch_are_post_local_sgd(self):
    x = points(
      pr.hierarchical_local_sgd(
        SGD, period=2, block_steps=2, group_size=1, switch_step=5
      )
    )
    laws.assert_close(x, laws.trajectory('post_local').x[1:])

  @parameterized.parameters((PLAIN,), (SGD,))
  def test_one_local_step_is_the_mean_gradient_of_the_block(self, tx):
    # Local SGD between machines that average gradients inside.
    inside = pr.chain(
      pr.gradient(),
      pr.sync(pr.mixing.group_mean(2), 'grads'),
      pr.local_update(tx),
      pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())),
    )
    algorithm = pr.hierarchical_local_sgd(
      tx, period=1, block_steps=4, group_size=2
    )
    laws.assert_close(points(algorithm), points(inside))


class AgreementTest(parameterized.TestCase):
  @parameterized.parameters(*laws.layouts('multi_level'))
  def test_groups_agree_bit_for_bit_when_their_level_is_due(self, num_devices):
    x = laws.trajectory('multi_level', num_devices).x
    for t in range(1, T + 1):
      for size, period in ((2, 2), (4, 4), (8, 12)):
        groups = x[t].reshape((N // size, size, -1))
        agree = (groups == groups[:, :1]).all()
        # A group is at one also where a larger one has just been averaged.
        self.assertEqual(agree, t % period == 0, (t, size))

  def test_without_a_level_of_all_islands_never_meet(self):
    x = laws.trajectory('multi_level_islands').x
    for t in range(6, T + 1, 6):
      np.testing.assert_array_equal(x[t, :4], np.stack([x[t, 0]] * 4))
      np.testing.assert_array_equal(x[t, 4:], np.stack([x[t, 4]] * 4))
      self.assertGreater(np.abs(x[t, 0] - x[t, 4]).max(), 1e-2)

  def test_drift_of_three_levels(self):
    # The law of Hier-AVG with one more level: noise between the last average of
    # level l and the last average of a lower level is shared by S_{l-1}.
    periods, sizes = (2, 4, 8), (2, 4)
    syncs = [
      pr.at(lambda step, p=p: step % p == 0, pr.sync(group))
      for p, group in zip(
        periods, (*map(pr.mixing.group_mean, sizes), pr.mixing.mean())
      )
    ]
    test = laws.DriftTest()
    algorithm = pr.chain(
      *syncs, pr.gradient(), pr.local_update(optax.sgd(test.GAMMA))
    )
    since = np.arange(16)
    expected = ((since % 2) + 1) * (1 - 1 / N)
    expected = expected + since % 4 // 2 * 2 * (1 / 2 - 1 / N)
    expected = expected + since % 8 // 4 * 4 * (1 / 4 - 1 / N)
    # Between two groups there is one degree of freedom per coordinate: 1 %.
    np.testing.assert_allclose(test.drift(algorithm, 16), expected, rtol=0.05)


class AverageTest(parameterized.TestCase):
  def test_momentum_is_averaged_on_every_level(self):
    def average(mixing):
      return pr.sync(mixing, ('params', 'opt_state'))

    periods = {'local_period': 2, 'global_period': 4, 'group_size': N}
    one = points(pr.hier_avg(SGD, **periods, average=average))
    other = points(pr.k_avg(SGD, period=2, average=average(pr.mixing.mean())))
    laws.assert_close(one, other)
    kept = points(pr.hier_avg(SGD, **periods))
    self.assertGreater(np.abs(one - kept).max(), 1e-4)


class CostTest(parameterized.TestCase):
  def test_every_level_has_its_tier(self):
    algorithm = pr.multi_level_avg(SGD, periods=(2, 4, 12), group_sizes=(2, 4))
    mesh = pr.engine.ReplicaMesh(N, 2)
    start = np.zeros(12, np.float32)
    state = harness.state_types(mesh, algorithm, start)
    got = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, 12)
    self.assertEqual(got.rounds[-1], 6 + 3 + 1)
    pairs, fours = 6 * 2 * (1 / 2) * 48, 3 * 2 * (3 / 4) * 48
    self.assertAlmostEqual(got.bytes_by_tier['group'][-1], pairs + fours)
    self.assertAlmostEqual(got.bytes_by_tier['global'][-1], 2 * (7 / 8) * 48)

  def test_a_group_of_all_is_not_inside_a_group(self):
    totals = []
    for group_sizes in ((2,), (2, N)):
      algorithm = pr.multi_level_avg(
        SGD, periods=(2, 4), group_sizes=group_sizes
      )
      state = harness.state_types(
        pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(12, np.float32)
      )
      got = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, 4)
      totals.append((got.bytes_by_tier['global'][-1], got.seconds[-1]))
    self.assertEqual(*totals)

  def test_blocks_send_nothing_before_the_switch(self):
    algorithm = pr.hierarchical_local_sgd(
      SGD, period=2, block_steps=2, group_size=4, switch_step=3
    )
    mesh = pr.engine.ReplicaMesh(N, 2)
    start = np.zeros(12, np.float32)
    state = harness.state_types(mesh, algorithm, start)
    costs = algorithm.cost(pr.engine.replica_shapes(state), N, np.arange(11))
    inside, outside = (c for c in costs if isinstance(c, pr.base.Traffic))
    self.assertEqual(np.flatnonzero(inside.fires).tolist(), [4, 6, 8, 10])
    self.assertEqual(np.flatnonzero(outside.fires).tolist(), [0, 1, 2, 6, 10])


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), (), 'a period for each level.*got 0 periods and 0 sizes'),
    ((2, 4, 8), (2,), 'got 3 periods and 1 sizes'),
    ((4,), (2, 4), 'got 1 periods and 2 sizes'),
    ((2, 5), (2,), 'each of periods must divide the next, got 2 before 5'),
    ((4, 2), (2,), 'each of periods must divide the next, got 4 before 2'),
    ((2, 4, 8), (2, 3), 'each of group_sizes must divide .* got 2 before 3'),
    ((2, 0), (2,), 'periods must be an integer >= 1, got 0'),
    ((2, 4), (True,), 'group_sizes must be an integer >= 1, got True'),
  )
  def test_levels(self, periods, group_sizes, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.multi_level_avg(SGD, periods=periods, group_sizes=group_sizes)

  @parameterized.parameters(
    ('period', 0, 1),
    ('block_steps', 1.5, 1),
    ('group_size', -2, 1),
    ('switch_step', -1, 0),
  )
  def test_numbers(self, name, bad, least):
    good = {'period': 2, 'block_steps': 2, 'group_size': 2, 'switch_step': 0}
    with self.assertRaisesRegex(
      ValueError, f'^{name} must be an integer >= {least}, got {bad}'
    ):
      pr.hierarchical_local_sgd(SGD, **{**good, name: bad})

  @parameterized.parameters(
    lambda: pr.multi_level_avg(SGD, periods=(2, 4), group_sizes=(3,)),
    lambda: pr.hierarchical_local_sgd(
      SGD, period=2, block_steps=2, group_size=3
    ),
  )
  def test_group_size_divides_the_replicas(self, make):
    with self.assertRaisesRegex(
      ValueError, r'divide the 8 replicas, got 3; use one of \[1, 2, 4, 8\]'
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8), make(), np.zeros(2)
      )


if __name__ == '__main__':
  absltest.main()

"""Averages of all replicas: identities between algorithms, and errors."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness
from tests.rows import SGD, N, T


def points(*stages):
  """x[T, N, d] of stages that have no row, after each step."""
  with jax.enable_x64(True):
    run = harness.make_engine(pr.chain(*stages), N, laws.ONE_LAYOUT)
    _, x = laws.advance(run, laws.initial_state(run), range(T))
  return np.stack(x)


class TimeVaryingTest(parameterized.TestCase):
  """Algorithm 2 of PR-SGD."""

  def test_epochs_of_one_step_are_synchronous_sgd(self):
    # PAPERS 2.ii.
    x = points(pr.pr_sgd_time_varying(SGD, epoch_lengths=[1]))
    laws.assert_close(x, laws.trajectory('ssgd').x[1:])

  def test_epochs_of_one_length_are_k_avg(self):
    x = points(pr.pr_sgd_time_varying(SGD, epoch_lengths=[4] * 3))
    np.testing.assert_array_equal(x, laws.trajectory('k_avg_4').x[1:])

  def test_the_theorys_epochs_for_few_steps_are_synchronous(self):
    # K = 1 up to s = (2 N)^3; the paper's own step sizes, here all 1 / L.
    theory = pr.schedules.theory_schedule(N, 10, smoothness=20)
    x = points(
      pr.pr_sgd_time_varying(
        optax.sgd(theory.learning_rate, momentum=0.9),
        epoch_lengths=theory.epoch_lengths,
      )
    )
    laws.assert_close(x, laws.trajectory('ssgd').x[1:])

  def test_follows_the_theorys_learning_rate(self):
    # N = 1 of the theory, so that gamma falls at once; with K = 1, SSGD.
    theory = pr.schedules.theory_schedule(1, 20, smoothness=5)
    lengths = theory.epoch_lengths
    self.assertEqual(lengths, (1,) * 7 + (2,) * 13)
    tx = optax.sgd(theory.learning_rate)
    x = points(pr.pr_sgd_time_varying(tx, epoch_lengths=lengths))
    problem = laws.PROBLEMS['smooth']
    gamma = [
      min(1 / 5, s ** (-2 / 3))
      for s, k in enumerate(lengths, 1)
      for _ in range(k)
    ]
    now = np.stack([problem.start] * N)
    ends = set(np.cumsum(lengths).tolist())
    for t in range(1, T + 1):
      g = [problem.gradient(i, now[i], t) for i in range(N)]
      now = now - gamma[t - 1] * np.stack(g)
      if t in ends:
        now = np.broadcast_to(now.mean(axis=0), now.shape)
      laws.assert_close(x[t - 1], now)

  def test_reset_goes_with_the_epochs(self):
    lengths = (3, 5, 4)
    average = pr.chain(pr.sync(pr.mixing.mean()), pr.restart(SGD))
    one = points(
      pr.pr_sgd_time_varying(SGD, epoch_lengths=lengths, average=average)
    )
    when = pr.schedules.intervals(lengths)
    other = points(pr.k_avg(SGD, period=when), pr.at(when, pr.restart(SGD)))
    np.testing.assert_array_equal(one, other)
    kept = points(pr.pr_sgd_time_varying(SGD, epoch_lengths=lengths))
    self.assertGreater(np.abs(one - kept).max(), 1e-4)


class HeterogeneousTest(parameterized.TestCase):
  """Algorithm 3 of PR-SGD; its fixed point is in algorithms_test."""

  def test_equal_local_steps_are_k_avg(self):
    # PAPERS 2.iv.
    laws.assert_close(
      laws.trajectory('heterogeneous_alike').x, laws.trajectory('k_avg_4').x
    )

  def test_one_slow_round_is_longer_for_all(self):
    local_steps = (1,) * (N - 1) + (12,)
    x = points(pr.pr_sgd_heterogeneous(SGD, local_steps=local_steps))
    start = laws.PROBLEMS['smooth'].start
    for t in range(1, 12):
      np.testing.assert_array_equal(x[t - 1][0], x[0][0])  # done, and waits
    self.assertGreater(np.abs(x[0][0] - start).max(), 1e-3)
    for t in (12, 24):
      np.testing.assert_array_equal(x[t - 1], np.stack([x[t - 1][0]] * N))


class PostLocalTest(parameterized.TestCase):
  def test_never_switched_is_synchronous_sgd(self):
    x = points(pr.post_local_sgd(SGD, switch_step=T, period=4))
    laws.assert_close(x, laws.trajectory('ssgd').x[1:])

  def test_switched_at_once_is_local_sgd(self):
    x = points(pr.post_local_sgd(SGD, switch_step=0, period=4))
    np.testing.assert_array_equal(x, laws.trajectory('k_avg_4').x[1:])

  def test_is_synchronous_up_to_the_switch(self):
    x = laws.trajectory('post_local').x
    ssgd = laws.trajectory('ssgd').x
    laws.assert_close(x[:6], ssgd[:6])
    self.assertGreater(np.abs(x[6] - ssgd[6]).max(), 1e-3)


class DynamicTest(parameterized.TestCase):
  def test_threshold_0_is_periodic_averaging(self):
    np.testing.assert_array_equal(
      laws.trajectory('dynamic_0').x, laws.trajectory('k_avg_4').x
    )

  def test_threshold_of_no_reach_never_averages(self):
    x = points(pr.dynamic_averaging(SGD, check_period=2, threshold=1e9))
    one_shot = laws.trajectory('one_shot').x[1:]
    np.testing.assert_array_equal(x[:-1], one_shot[:-1])

  def test_averages_less_than_it_checks(self):
    dynamic = laws.trajectory('dynamic').x
    every_check = laws.trajectory('k_avg_2').x
    self.assertGreater(np.abs(dynamic - every_check).max(), 1e-3)


class SchedulesTest(parameterized.TestCase):
  """Schedules at the extremes are the algorithms with names."""

  @parameterized.named_parameters(
    ('always', pr.schedules.with_probability(1.0, num_steps=T), 'k_avg_1'),
    ('doubling', pr.schedules.doubling(4, num_steps=4), 'k_avg_4'),
    (
      'qsr',
      pr.schedules.qsr(lambda step: 0.1, alpha=0.1, base_period=8, num_steps=T),
      'k_avg_8',
    ),
  )
  def test_is_k_avg(self, when, name):
    np.testing.assert_array_equal(
      points(pr.k_avg(SGD, period=when)), laws.trajectory(name).x[1:]
    )

  def test_probability_0_never_averages(self):
    x = points(
      pr.k_avg(SGD, period=pr.schedules.with_probability(0.0, num_steps=T))
    )
    np.testing.assert_array_equal(x[:-1], laws.trajectory('one_shot').x[1:-1])


class AverageTest(parameterized.TestCase):
  """What may stand in place of the mean."""

  def test_gossip_in_place_of_the_mean_is_d_psgd(self):
    x = points(pr.pr_sgd(SGD, period=1, average=pr.sync(pr.graphs.ring())))
    np.testing.assert_array_equal(x, laws.trajectory('d_psgd_ring').x[1:])

  def test_gossip_after_local_steps_is_diffusion(self):
    x = points(pr.k_avg(SGD, period=3, average=pr.sync(pr.graphs.ring())))
    np.testing.assert_array_equal(x, laws.trajectory('diffusion_ring_3').x[1:])

  def test_groups_in_place_of_the_mean_are_islands(self):
    x = points(
      pr.k_avg(SGD, period=4, average=pr.sync(pr.mixing.group_mean(4)))
    )
    other = points(pr.multi_level_avg(SGD, periods=[4], group_sizes=[4]))
    np.testing.assert_array_equal(x, other)

  def test_an_average_of_two_stages(self):
    # Averaged buffers that are reset are reset; the other order averages zeros.
    mean = pr.sync(pr.mixing.mean(), ('params', 'opt_state'))
    one = points(
      pr.k_avg(SGD, period=4, average=pr.chain(mean, pr.restart(SGD)))
    )
    np.testing.assert_array_equal(
      one, laws.trajectory('k_avg_reset_buffers').x[1:]
    )
    kept = laws.trajectory('k_avg_averaged_buffers').x[1:]
    self.assertGreater(np.abs(one - kept).max(), 1e-4)

  def test_a_stage_is_the_local_step(self):
    clipped = pr.chain(
      pr.gradient(), pr.let(grads=lambda grads: 2 * grads), pr.local_update(SGD)
    )
    double = optax.sgd(0.1, momentum=0.9)
    laws.assert_close(
      points(pr.k_avg(clipped, period=4)), points(pr.k_avg(double, period=4))
    )


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (pr.pr_sgd_time_varying, {'epoch_lengths': []}, 'lengths.* got none'),
    (
      pr.pr_sgd_time_varying,
      {'epoch_lengths': [4, 0]},
      'lengths must be an integer >= 1, got 0',
    ),
    (
      pr.pr_sgd_heterogeneous,
      {'local_steps': []},
      'local_steps expects one number per replica, got none',
    ),
    (
      pr.pr_sgd_heterogeneous,
      {'local_steps': (1, 2.5)},
      'local_steps must be an integer >= 1, got 2.5',
    ),
    (
      pr.post_local_sgd,
      {'switch_step': -1, 'period': 4},
      'switch_step must be an integer >= 0, got -1',
    ),
    (
      pr.post_local_sgd,
      {'switch_step': 4, 'period': 0},
      '^period must be an integer >= 1, got 0',
    ),
    (
      pr.dynamic_averaging,
      {'check_period': 0, 'threshold': 1.0},
      'check_period must be an integer >= 1, got 0',
    ),
    (
      pr.dynamic_averaging,
      {'check_period': 2, 'threshold': -0.5},
      'threshold must be >= 0 and finite, got -0.5',
    ),
  )
  def test_refused(self, make, keywords, message):
    with self.assertRaisesRegex(ValueError, message):
      make(SGD, **keywords)

  @parameterized.parameters(
    (pr.pr_sgd_time_varying, {'epoch_lengths': [2]}),
    (pr.pr_sgd_heterogeneous, {'local_steps': (1, 2)}),
    (pr.post_local_sgd, {'switch_step': 1, 'period': 2}),
    (pr.dynamic_averaging, {'check_period': 2, 'threshold': 1.0}),
  )
  def test_optimizer_is_optax(self, make, keywords):
    with self.assertRaisesRegex(ValueError, 'optax transformation.*got 0.1'):
      make(0.1, **keywords)

  def test_local_steps_are_one_for_each_replica(self):
    algorithm = pr.pr_sgd_heterogeneous(SGD, local_steps=(1, 2, 3))
    with self.assertRaisesRegex(ValueError, 'each of the 8 replicas, got 3'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8), algorithm, np.zeros(2)
      )


if __name__ == '__main__':
  absltest.main()

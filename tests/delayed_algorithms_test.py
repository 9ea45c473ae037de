"""DiLoCo that does not wait: special cases, evaluation and errors."""

import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows import LEARNING_RATE, MOMENTUM, PLAIN, SGD, TABLE, N, T
from tests.rows.delayed import CLOCK, SPEEDS
from tests.rows.outer import NESTEROV

PROBLEM = reference.make_problem(N, T)
ALONE = reference.make_problem(1, T)
# The gradient is the same constant everywhere and always.
CONSTANT = PROBLEM._replace(
  hessian=0 * PROBLEM.hessian,
  features=0 * PROBLEM.features,
  noise=np.ones_like(PROBLEM.noise),
)
PLAIN_OUTER = optax.sgd(1.0)


def run(algorithm, problem=PROBLEM):
  """x on one device, because a law of every row compares the layouts."""
  return harness.run_problem(algorithm, problem, num_devices=1).x


@functools.cache
def diloco():
  return run(pr.diloco(SGD, period=4))


@functools.cache
def diloco_alone():
  return run(pr.diloco(SGD, period=4), ALONE)


@functools.cache
def delayed_nesterov():
  return run(pr.delayed_nesterov(SGD, speeds=SPEEDS, period=3, buffer_size=3))


class IdentitiesTest(parameterized.TestCase):
  def test_eager_on_one_replica_is_diloco(self):
    eager = run(pr.eager_diloco(SGD, period=4), ALONE)
    assert_close(eager, diloco_alone())

  def test_eager_of_equal_differences_is_diloco_after_the_first_round(self):
    options = {'period': 4, 'outer': PLAIN_OUTER}
    eager = run(pr.eager_diloco(PLAIN, **options), CONSTANT)
    diloco = run(pr.diloco(PLAIN, **options), CONSTANT)
    moved = LEARNING_RATE * 4
    assert_close(eager[:4], diloco[:4])
    assert_close(eager[4:] - diloco[4:], moved * (1 - 1 / N))

  def test_delayed_is_diloco_a_round_late_if_differences_are_constant(self):
    options = {'period': 4, 'outer': optax.sgd(0.7, 0.9, nesterov=True)}
    delayed = run(pr.delayed_diloco(PLAIN, **options), CONSTANT)
    diloco = run(pr.diloco(PLAIN, **options), CONSTANT)
    assert_close(delayed[4:], diloco[:-4])

  @parameterized.parameters(pr.eager_diloco, pr.delayed_diloco)
  def test_is_not_diloco(self, make):
    difference = run(make(SGD, period=4)) - diloco()
    self.assertGreater(np.abs(difference).max(), 1e-3)

  def test_equal_speeds_and_a_buffer_of_all_are_diloco(self):
    same = pr.delayed_nesterov(SGD, speeds=[1] * N, period=4)
    assert_close(run(same), diloco())

  def test_a_buffer_of_one_on_one_worker_is_nesterov(self):
    alone = pr.delayed_nesterov(SGD, speeds=[1], period=4, buffer_size=1)
    assert_close(run(alone, ALONE), diloco_alone())

  @parameterized.parameters(
    {'buffer_size': 2},
    {'local_steps': [3] * N},
    {'activation': 0.1},
  )
  def test_each_part_of_it_matters(self, **options):
    options = {'buffer_size': 3, **options}
    changed = pr.delayed_nesterov(SGD, speeds=SPEEDS, period=3, **options)
    difference = run(changed) - delayed_nesterov()
    self.assertGreater(np.abs(difference).max(), 1e-3)


class OutputTest(absltest.TestCase):
  def test_is_the_model_of_the_server(self):
    algorithm = TABLE['delayed_nesterov'].make()
    state = harness.run_problem(algorithm, PROBLEM, num_devices=1).state
    with jax.enable_x64(True):
      params, _ = pr.engine.consensus(algorithm, state)
    server = reference.delayed_nesterov(
      PROBLEM,
      **CLOCK,
      **NESTEROV,
      buffer_size=3,
      activation=0.2,
      learning_rate=LEARNING_RATE,
      momentum=MOMENTUM,
      server=True,
    )
    assert_close(harness.to_vector(params), server[-1])


class CostTest(parameterized.TestCase):
  def account(self, algorithm):
    params = {'b': np.zeros(4, np.float32), 'w': np.zeros(8, np.float32)}
    state = harness.state_types(pr.engine.ReplicaMesh(N), algorithm, params)
    network = pr.ledger.Network(speeds=(1.0, 8.0) * (N // 2))
    return pr.ledger.account(
      algorithm, pr.engine.replica_shapes(state), N, T, network
    )

  @parameterized.parameters(pr.eager_diloco, pr.delayed_diloco)
  def test_sends_what_diloco_sends_and_does_not_wait(self, make):
    late = self.account(make(SGD, period=4))
    diloco = self.account(pr.diloco(SGD, period=4))
    self.assertEqual(late.rounds[-1], diloco.rounds[-1])
    self.assertEqual(late.bytes_sent[-1], diloco.bytes_sent[-1])
    self.assertLessEqual(late.seconds[-1], diloco.seconds[-1])

  def test_an_arrival_is_a_round(self):
    algorithm = pr.delayed_nesterov(SGD, speeds=SPEEDS, period=3)
    spent = self.account(algorithm)
    length = np.multiply(CLOCK['durations'], CLOCK['local_steps'])
    self.assertEqual(spent.rounds[-1], (T // length).sum())
    # In T ticks of the fastest, worker i takes T / D_i gradients.
    gradients = (T // np.array(CLOCK['durations'])).sum()
    self.assertEqual(spent.gradients[-1], gradients)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'speeds': []}, 'one number per replica, got none'),
    ({'speeds': [0.5]}, 'speeds must be an integer >= 1, got 0.5'),
    ({'period': 0}, 'period must be an integer >= 1, got 0'),
    ({'local_steps': [1]}, 'each of the 2 speeds, got 1'),
    ({'buffer_size': 0}, 'buffer_size must be an integer >= 1, got 0'),
    ({'outer_learning_rate': 0}, 'outer_learning_rate must be > 0, got 0'),
    ({'outer_momentum': 1}, r'outer_momentum must be in \[0, 1\), got 1'),
    ({'activation': 0.6}, r'activation must be in \[0, 1 / 2\], got 0.6'),
  )
  def test_arguments_are_in_range(self, options, message):
    good = {'speeds': [1, 2], 'period': 4}
    with self.assertRaisesRegex(ValueError, message):
      pr.delayed_nesterov(SGD, **{**good, **options})

  def test_there_is_a_speed_for_each_replica(self):
    algorithm = pr.delayed_nesterov(SGD, speeds=[1, 2], period=4)
    with self.assertRaisesRegex(ValueError, '8 replicas, got 2'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )

  def test_workers_do_not_communicate(self):
    local = pr.k_avg(SGD, period=2)
    with self.assertRaisesRegex(ValueError, 'do not communicate'):
      pr.delayed_nesterov(local, speeds=[1, 2], period=4)


if __name__ == '__main__':
  absltest.main()

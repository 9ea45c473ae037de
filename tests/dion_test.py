"""Dion: its messages are enough, and the effect of the rank."""

from absl.testing import absltest, parameterized
import numpy as np

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness, reference
from tests.rows import LEARNING_RATE, PLAIN, N, T
from tests.rows.dion import MU, layers, start


class DionTest(parameterized.TestCase):
  @parameterized.product(rank=(1, 2), dim=(4, 8))
  def test_equals_dion_of_the_whole_mean_gradient(self, rank, dim):
    # Matrices of shape (1, 2) and (3, 2).
    problem = reference.make_problem(N, T, dim=dim)
    run = harness.run_problem(
      pr.dion(PLAIN, rank=rank, momentum=MU), problem, num_devices=4
    )
    want = reference.dion(
      problem,
      layers=layers(dim),
      start=start(dim, rank),
      rate=MU,
      learning_rate=LEARNING_RATE,
    )
    laws.assert_close(run.x, want)

  @parameterized.parameters('dion_full_rank', 'ssgd_plain')
  def test_another_rank_is_another_algorithm(self, other):
    x, y = (laws.trajectory(name).x for name in ('dion', other))
    self.assertGreater(np.abs(x - y).max(), 1e-3)

  def test_at_full_rank_the_mean_memory_is_a_momentum(self):
    problem = laws.PROBLEMS['smooth']
    run = harness.run_problem(pr.dion(PLAIN, rank=2, momentum=MU), problem)
    want = np.zeros((2, 2))
    for t in range(1, T + 1):
      g = [problem.gradient(i, run.x[t - 1, i], t) for i in range(N)]
      want = MU * (want + np.mean(g, axis=0)[:4].reshape((2, 2)))
    memory = run.mesh.gather(run.state.registers['dion.m'])['w']
    laws.assert_close(memory.mean(axis=0), want)
    self.assertGreater(np.abs(memory - memory[0]).max(), 1e-2)

  def test_two_messages_of_low_rank_are_sent(self):
    params = {'w': np.zeros((8, 5), np.float32), 'b': np.zeros(5, np.float32)}
    algorithm = pr.dion(PLAIN, rank=2)
    state = harness.state_types(pr.engine.ReplicaMesh(N), algorithm, params)
    spent = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, T)
    self.assertEqual(spent.rounds[-1], 2 * T)
    numbers = (8 + 5) * 2 + 5
    self.assertAlmostEqual(
      spent.bytes_sent[-1], T * 2 * (N - 1) / N * 4 * numbers
    )

  @parameterized.parameters(
    ({'rank': 0}, 'rank must be an integer >= 1, got 0'),
    ({'rank': 2, 'momentum': 1.0}, r'momentum must be in \[0, 1\), got 1.0'),
  )
  def test_arguments_are_in_range(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.dion(PLAIN, **options)


if __name__ == '__main__':
  absltest.main()

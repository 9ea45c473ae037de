"""Tests of `experiments/papers/t01_pr_sgd`: its claims can fail."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers.t01_pr_sgd import judging, mlp, runs

SECONDS = {'SSGD': 2.0, 'I = 1': 2.0}  # a local step takes 1 s, an average 1 s
POINTS = 40


def histories(slowness):
  """Losses that fall as exp(-t / slowness), for two seeds."""
  made = {}
  for label, slow in slowness.items():
    made[label] = [
      [
        {
          'step': t,
          'epoch': float(t),
          'modeled_seconds': t * SECONDS.get(label, 1.25),
          'loss': float(np.exp(-t / slow)),
          'test_accuracy': 0.9,
        }
        for t in range(1, POINTS + 1)
      ]
    ] * 2
  return made


def verdicts(slowness):
  made = {'SSGD': 10, 'I = 4': 10, 'I = 8': 10, **slowness}
  found = judging.claims(
    judging.MLP_TASK, histories(made), runs.NETWORK, rates=(0.4, 0.4)
  )
  return [claim.verdict for claim in found]


class JudgingTest(parameterized.TestCase):
  def test_flat_intervals_pass_if_one_average_fails(self):
    self.assertEqual(verdicts({mlp.ONE_SHOT: 20}), ['yes', 'yes'])

  def test_a_task_that_one_average_solves_is_no_test(self):
    self.assertEqual(verdicts({mlp.ONE_SHOT: 10})[0], 'no')

  def test_slow_intervals_fail(self):
    slow = {'I = 8': 15, mlp.ONE_SHOT: 20}
    self.assertEqual(verdicts(slow), ['partly', 'partly'])
    # In time, 20 / 10 times the steps cost more than the network saves.
    slow = {'I = 8': 20, mlp.ONE_SHOT: 30}
    self.assertEqual(verdicts(slow), ['partly', 'no'])

  def test_longest_flat_interval_by_rate(self):
    flat, slow = [1.0, 1.1], [1.3, np.inf]
    claim = judging.rates_claim(
      {
        '0.4': {'I = 1': flat, 'I = 4': slow, mlp.ONE_SHOT: slow},
        '0.1': {'I = 1': flat, 'I = 4': flat, mlp.ONE_SHOT: flat},
      }
    )
    longest = claim.measured['longest flat interval'].cases
    self.assertEqual(
      [m.value for m in longest.values()], [1, mlp.FIELDS['num_steps']]
    )
    self.assertEqual(claim.verdict, 'yes')


if __name__ == '__main__':
  absltest.main()

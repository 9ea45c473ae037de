"""Tests of `experiments/papers/t01_pr_sgd`: its claims can fail."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers.t01_pr_sgd import judging, mlp, runs, tuned

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

  def test_intervals_are_compared_with_the_shortest_one(self):
    # I = 1 misses the loss of SSGD, which is no effect of the interval.
    made = histories({'SSGD': 5, 'I = 1': 50, 'I = 4': 50, 'I = 8': 100})
    cost = {
      label: judging.relative_cost(made, label, 'epoch', 0.35, judging.UNIT)
      for label in made
      if label != runs.SSGD
    }
    self.assertEqual(np.mean(cost['I = 1']), 1)
    longest = judging._longest({k: list(own) for k, own in cost.items()})
    self.assertEqual(longest, (4, (4, 4), None))


class TunedTest(absltest.TestCase):
  def claim(self, fast):
    """The claim if SSGD falls fastest at rate 0.4, by the slowness there."""
    slow = {'0.2': 20, '0.4': fast, '0.8': 40}
    ours = {'0.4': 30, '0.2': 10, '0.1': 20}
    by_rate = {
      rate: histories({'SSGD': slow.get(rate, 20), 'I = 4': own, 'I = 8': 90})
      for rate, own in ours.items()
    }
    synchronous = {
      rate: histories({'SSGD': own})['SSGD'] for rate, own in slow.items()
    }
    synchronous['0.1'] = by_rate['0.1']['SSGD']
    return tuned.claim(mlp.Trained(by_rate, synchronous))

  def test_each_method_has_its_fastest_rate(self):
    claim = self.claim(fast=10)
    best = {k: m.value for k, m in claim.measured['best rate'].cases.items()}
    self.assertEqual(best, {'SSGD': 0.4, 'I = 4': 0.2, 'I = 8': 0.4})
    speedup = claim.measured['speedup over SSGD at its best rate'].cases
    self.assertAlmostEqual(speedup['I = 4'].value, 2 / 1.25)
    self.assertEqual(speedup['I = 8'].value, 0)  # it never has the loss
    self.assertEqual(claim.verdict, 'partly')
    self.assertIn('edge of their rates: I = 8.', claim.setting)

  def test_a_tuned_reference_may_be_faster(self):
    self.assertEqual(self.claim(fast=5).verdict, 'no')

  def test_the_losses_of_all_runs_are_kept(self):
    made = histories({'SSGD': 5, 'I = 4': 50})
    alone = {'0.4': made['SSGD'], '0.8': made['SSGD']}
    kept = tuned.curves(mlp.Trained({'0.4': made}, alone))
    self.assertEqual([*kept['0.4']], ['SSGD', 'I = 4'])
    self.assertEqual([*kept['0.8']], ['SSGD'])
    self.assertLen(kept['0.8']['SSGD'][0], POINTS)


if __name__ == '__main__':
  absltest.main()

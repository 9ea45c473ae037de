"""The choice of an algorithm and its interval from pilots."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

from experiments import costs
from experiments.planning import (
  checking,
  choices,
  pilots,
  plans,
  reporting,
)
from experiments.planning.choices import Candidate, Goal, Trial
from experiments.planning.pilots import Pilot, Point
from experiments.running.records import json_files
import prsgd_jax as pr
from prsgd_jax.ledger.network import Link
from tests import binaries

KEPT = pathlib.Path(costs.__file__).parent / 'results' / 'plan_check'
SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((1000,), np.float32))
SGD = optax.sgd(0.1)
N, NUM_STEPS, STEP_TIME, LATENCY, BANDWIDTH = 4, 100, 0.5, 0.25, 1000.0
# A ring of four: six messages of a quarter of 4000 bytes.
ROUND_BYTES = 6 * 1000.0
ROUND = 6 * LATENCY + ROUND_BYTES / BANDWIDTH
LINKS = dict.fromkeys(pr.ledger.TIERS, Link(LATENCY, BANDWIDTH))


def trial(algorithm, losses, every=5, decided=(), diverged=False):
  """A trial whose loss after `every`, `2 every`, ... steps is given."""
  meter = pr.ledger.meter(
    algorithm, SHAPES, N, NUM_STEPS, pr.ledger.Network(LINKS, STEP_TIME)
  )
  points = [
    Point(every * (i + 1), loss, decided and decided[i], 0.0)
    for i, loss in enumerate(losses)
  ]
  return Trial(meter, NUM_STEPS, Pilot(tuple(points), diverged))


def result(state, seconds, loss=1.0, steps=10):
  return choices.Result(state, steps, loss, 1, 10.0, seconds)


def plan(goal, *candidates, seeds=(0, 1)):
  return plans.Plan(
    goal, tuple(choices.order(candidates, goal)), seeds, 0.5, True, 7, (5, 8)
  )


class JudgeTest(parameterized.TestCase):
  @parameterized.parameters((1, 15, 15), (4, 16, 4), (10, 20, 2), (64, 64, 1))
  def test_steps_to_a_loss_end_with_a_round(self, period, steps, rounds):
    tried = trial(pr.k_avg(SGD, period=period), [0.9, 0.6, 0.4, 0.3])
    found = choices.judge(tried, Goal(0.5))
    self.assertEqual(found.state, choices.REACHED)
    self.assertEqual((found.steps, found.rounds), (steps, rounds))
    self.assertEqual(found.bytes_sent, rounds * ROUND_BYTES)
    np.testing.assert_allclose(
      found.seconds, steps * STEP_TIME + rounds * ROUND
    )
    self.assertEqual(found.loss, 0.4)

  def test_an_average_that_never_comes_ends_with_the_run(self):
    tried = trial(pr.k_avg(SGD, period=101), [0.9, 0.4])
    self.assertEqual(choices.judge(tried, Goal(0.5)).steps, 10)  # sends nothing
    tried = trial(pr.one_shot_averaging(SGD, num_steps=NUM_STEPS), [0.9, 0.4])
    self.assertEqual(choices.judge(tried, Goal(0.5)).steps, NUM_STEPS)

  def test_rounds_inside_groups_do_not_hand_out_the_average(self):
    algorithm = pr.hier_avg(SGD, local_period=2, global_period=12, group_size=2)
    found = choices.judge(trial(algorithm, [0.9, 0.6, 0.4]), Goal(0.5))
    self.assertEqual(found.steps, 24)

  def test_data_dependent_rounds_are_those_of_the_pilot(self):
    algorithm = pr.dynamic_averaging(SGD, check_period=1, threshold=1.0)
    decided = [(0,), (3,)]
    tried = trial(algorithm, [0.9, 0.4], decided=decided)
    found = choices.judge(tried, Goal(0.5))
    (_, size, lasts) = tried.meter.decided[0]
    known = tried.meter.spent(tried.meter.advance(tried.meter.init(), 10))
    self.assertEqual(found.steps, 10)
    self.assertAlmostEqual(found.bytes_sent, known.bytes_sent + 3 * size)
    self.assertAlmostEqual(found.seconds, known.seconds + 3 * lasts)

  def test_no_number_is_invented_for_a_missed_target(self):
    tried = trial(pr.ssgd(SGD), [0.9, 0.6, 0.7])
    found = choices.judge(tried, Goal(0.5))
    self.assertEqual(found.state, choices.ENDED)
    self.assertEqual((found.steps, found.loss), (15, 0.6))
    tried = trial(pr.ssgd(SGD), [0.9], diverged=True)
    self.assertEqual(choices.judge(tried, Goal(0.5)).state, choices.DIVERGED)
    tried = trial(pr.ssgd(SGD), [], diverged=True)
    self.assertEqual(choices.judge(tried, Goal(0.5)).steps, 0)

  def test_a_budget_ends_the_run(self):
    budget = 10 * (STEP_TIME + ROUND)
    tried = trial(pr.ssgd(SGD), [0.9, 0.6, 0.4])
    over = choices.judge(tried, Goal(0.5, seconds=budget))
    self.assertEqual(over.state, choices.OVER_BUDGET)
    found = choices.judge(tried, Goal(None, seconds=budget))
    self.assertEqual((found.state, found.steps), (choices.REACHED, 10))
    self.assertEqual(found.loss, 0.6)
    found = choices.judge(tried, Goal(None, bytes_sent=1e9))
    self.assertEqual((found.state, found.loss), (choices.ENDED, 0.4))
    found = choices.judge(tried, Goal(None, bytes_sent=1.0))
    self.assertEqual((found.state, found.steps), (choices.OVER_BUDGET, 0))

  @parameterized.parameters(
    (Goal(0.5), 4), (Goal(0.1), None), (Goal(None, seconds=20.0), 4),
    (Goal(0.1, bytes_sent=0.0), 2),
  )  # fmt: skip
  def test_a_pilot_ends_when_the_goal_is_decided(self, goal, count):
    tried = trial(pr.k_avg(SGD, period=10), [0.9, 0.6, 0.4, 0.3, 0.2])
    is_enough = choices.enough(tried.meter, NUM_STEPS, goal)
    points = tried.pilot.points
    ends = [i for i in range(6) if is_enough(points[:i])]
    self.assertEqual(ends[0] if ends else None, count)


class RankingTest(absltest.TestCase):
  def test_the_soonest_comes_first_and_the_missed_last(self):
    goal = Goal(0.5)
    fast = Candidate('fast', (result(choices.REACHED, 2.0),) * 2)
    slow = Candidate('slow', (result(choices.REACHED, 9.0),) * 2)
    half = Candidate(
      'half', (result(choices.REACHED, 1.0), result(choices.ENDED, 1.0))
    )
    gone = Candidate('gone', (result(choices.DIVERGED, 0.0, np.nan),) * 2)
    found = choices.order([gone, half, slow, fast], goal)
    self.assertEqual([c.label for c in found], ['fast', 'slow', 'gone', 'half'])
    self.assertEqual(choices.wins(found, goal), [2, 0, 0, 0])
    self.assertTrue(choices.may_still_win(half, fast, goal))
    self.assertFalse(choices.may_still_win(gone, fast, goal))
    late = Candidate('late', (result(choices.ENDED, 3.0),) * 2)
    self.assertFalse(choices.may_still_win(late, fast, goal))

  def test_without_a_target_the_lowest_loss_comes_first(self):
    goal = Goal(None, seconds=5.0)
    full = Candidate('full', (result(choices.REACHED, 5.0, 0.2),) * 2)
    short = Candidate('short', (result(choices.ENDED, 1.0, 0.1),) * 2)
    self.assertEqual(choices.order([full, short], goal)[0], short)


class ReportingTest(absltest.TestCase):
  def test_the_sentence_shows_the_uncertainty(self):
    goal = Goal(0.5)
    one = Candidate(
      'one', (result(choices.REACHED, 2.0), result(choices.REACHED, 3.0))
    )
    two = Candidate(
      'two', (result(choices.REACHED, 1.0), result(choices.REACHED, 9.0))
    )
    self.assertEqual(
      reporting.recommendation(plan(goal, two, one)),
      'Use one: it is the first to reach a loss of 0.5, after 2.5 (2 to 3) s '
      'of modeled time; it is the best with only 1 of the 2 seeds (two with '
      '1).',
    )
    self.assertEndsWith(
      reporting.recommendation(plan(goal, one)), 'the best with both seeds.'
    )

  def test_a_missed_target_has_a_warning_and_bounds(self):
    goal = Goal(0.5, seconds=60.0)
    missed = Candidate('far', (result(choices.ENDED, 7.0, 0.75, 40),) * 2)
    found = plan(goal, missed)
    self.assertStartsWith(
      reporting.recommendation(found),
      'No recommendation, because no run reaches a loss of 0.5 within 60 s',
    )
    (warning,) = reporting.warnings(found)
    self.assertStartsWith(
      warning, 'far: 2 of 2 pilots did not reach a loss of 0.5 in 40 steps '
      '(lowest 0.75)',
    )  # fmt: skip
    (cells,) = reporting.cells(found)
    self.assertEqual(
      (cells['steps'], cells['seconds']), ('> 40 (the pilot ended)', '> 7')
    )
    best = Candidate('best', (result(choices.REACHED, 9.0),) * 2)
    (warning,) = reporting.warnings(plan(goal, missed, best))
    self.assertEndsWith(warning, 'longer pilots may change the recommendation')

  def test_json_has_the_numbers_of_each_seed(self):
    found = plan(Goal(0.5), Candidate('one', (result('reached', 2.0),) * 2))
    text = json.loads(reporting.text(found, 'json'))
    self.assertEqual(text['runs'][0]['modeled_seconds'], [2.0, 2.0])
    self.assertIn('evaluated every 5 or 8 steps on 7 ', text['conditions'])


class CheckTest(absltest.TestCase):
  def candidates(self):
    return [
      Candidate(name, (result(state, seconds),) * 2)
      for name, state, seconds in (
        ('a', choices.REACHED, 1.0), ('b', choices.REACHED, 2.0),
        ('c', choices.REACHED, 3.0), ('d', choices.REACHED, 4.0),
        ('e', choices.ENDED, 5.0),
      )
    ]  # fmt: skip

  def test_the_best_the_second_and_the_last_are_trained(self):
    goal, known = Goal(0.5), self.candidates()
    self.assertEqual(checking.chosen(plan(goal, *known)), [0, 1, 3])
    self.assertEqual(checking.chosen(plan(goal, *known[:2])), [0, 1])
    self.assertEqual(checking.chosen(plan(goal, known[0], known[4])), [0])

  def test_a_disturbed_run_is_trained_again(self):
    shares = {'a': [0.5, 0.3, 0.4], 'b': [0.01], 'd': [0.9, 0.05]}
    counts = dict.fromkeys(shares, 0)

    def compiled(study, point, seed):
      def train():
        own = shares[point][counts[point] % len(shares[point])]
        counts[point] += 1
        return {'others': own, 'steps': 10, 'seconds': 2.0, 'losses': [0.4]}

      del study, seed
      return train

    study = mock.Mock(points=['a', 'b', 'c', 'd', 'e'], seeds=(0,))
    with (
      mock.patch.object(checking, '_compiled', compiled),
      mock.patch.object(plans, 'label', lambda point: point),
      mock.patch('builtins.print'),
    ):
      rows = checking._train_all(study, plan(Goal(0.5), *self.candidates()))
    self.assertEqual(counts, {'a': 3, 'b': 1, 'd': 2})
    found = {row['algorithm']: row['others'] for row in rows}
    self.assertEqual(found, {'a': 0.3, 'b': 0.01, 'd': 0.05})
    self.assertEqual([row['planned_seconds'] for row in rows], [1, 2, 4])

  def test_the_page_has_the_error_of_the_plan(self):
    row = {'seed': 0, 'others': 0.0, 'planned_steps': 10, 'steps': 12}
    measured = {
      'machine': {
        'cpus': 2, 'processor': 'x', 'jax': '0', 'python': '3', 'commit': 'c'
      },
      'date': '2026-01-01', 'hosts': 4, 'bits_per_second': 1e8,
      'latency': 1e-3, 'step_seconds': 2e-3, 'others_at_links': 0.5,
      'target_loss': 0.5, 'recommendation': 'Use a.', 'plan': [],
      'runs': [
        {**row, 'algorithm': 'a', 'planned_seconds': 2.0, 'seconds': 3.0},
        {**row, 'algorithm': 'b', 'planned_seconds': 4.0, 'seconds': 2.0},
      ],
    }  # fmt: skip
    page = checking.page([measured])
    self.assertIn('| a | 10 | 12 | 2 | 3 | 1.50 |', page)
    self.assertIn('The measured order differs from the planned one.', page)
    self.assertIn('up to 50% of the processors', page)

  def test_the_kept_table_has_the_kept_numbers(self):
    paths = sorted(KEPT.glob('*.json'), key=lambda path: len(path.name))
    found = [json_files.read(path, checking.FORM) for path in paths]
    self.assertNotEmpty(found)
    self.assertEqual((KEPT / 'table.md').read_text(), checking.page(found))


class PilotTest(absltest.TestCase):
  ARGS = (
    '--plan', '--run=k_avg', '--grid=period=2', '--model_options=hidden=4',
    '--num_steps=6', '--num_replicas=2', '--num_devices=1',
    '--pilot_every=3', '--noprogress', '--step_time=0.001', '--format=json',
  )  # fmt: skip

  def call(self, *args):
    return binaries.call(costs, *self.ARGS, *args)

  def test_a_pilot_is_trained_once_and_read_again(self):
    root = self.enterContext(tempfile.TemporaryDirectory())
    args = (f'--workdir={root}', '--target_loss=0.001', '--pilot_seeds=1')
    first = self.call(*args)
    self.assertEqual(first.code, 0, first.err)
    found = json.loads(first.out)
    self.assertEqual(found['runs'][0]['steps'], [6])
    (path,) = pathlib.Path(root).glob('*.json')
    saved = json.loads(path.read_text())
    self.assertEqual([p['step'] for p in saved['points']], [3, 6])
    losses = [p['loss'] for p in saved['points']]
    with mock.patch.object(pilots, 'train', side_effect=AssertionError):
      self.assertEqual(self.call(*args).out, first.out)
      # A target between the two losses is reached at one of them.
      target = f'--target_loss={max(losses) + 1e-3}'
      again = json.loads(self.call(*args, target).out)
    step = [3, 6][losses[0] > max(losses) + 1e-3]
    self.assertEqual(again['runs'][0]['steps'], [step + step % 2])
    refused = self.call(*args, '--learning_rate=0.2')
    self.assertEqual(refused.code, 1)
    self.assertRegex(refused.err, 'holds a run with --learning_rate=0.1')

  def test_bad_input_is_one_line(self):
    for args, message in (
      ((), 'requires a goal; add --target_loss'),
      (('--target_loss=0',), '--target_loss must be > 0'),
      (('--budget_bytes=nan',), '--budget_bytes must be > 0'),
      (('--target_loss=1', '--pilot_seeds=0'), 'pilot_seeds must be 1 to 1000'),
      (('--target_loss=1', '--pilot_every=0'), 'pilot_every must be >= 1'),
      (('--target_loss=1', '--grid=seed=0,1'), 'use --pilot_seeds'),
      # Only the first run's data and step would be measured.
      *(
        (('--target_loss=1', f'--grid={axis}'), 'make a plan for each value')
        for axis in (
          'dataset=digits,fashion_mnist',
          'batch_size=8,16',
          'optimizer=sgd,adam',
          'step_time=0.001,1',
          'learning_rate:batch_size=0.1:8,0.2:16',
        )
      ),
      (('--target_loss=1', f'--seed={2**32 - 1}'), 'seed of the last pilot'),
      (('--target_loss=1', '--noplan'), 'no effect without --plan'),
      (('--target_loss=1', '--num_processes=2'), 'trains in one process'),
    ):
      outcome = self.call(*args)
      self.assertEqual(outcome.code, 1, args)
      self.assertRegex(outcome.err, f'^costs.py: error: .*{message}.*\n$')


if __name__ == '__main__':
  absltest.main()

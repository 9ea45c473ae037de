"""Tests of `experiments/running/execution/tuning.py`."""

import math

from absl.testing import absltest, parameterized

from experiments.running.execution import tuning

NAN = math.nan


def rows(label, losses, **place):
  """A row for each learning rate and seed; None diverged, '' is missing."""
  found = []
  for rate, by_seed in losses.items():
    for seed, loss in enumerate(by_seed):
      status = {None: 'diverged', '': 'missing'}.get(loss, 'done')
      row = {
        'label': label, 'learning_rate': rate, 'seed': str(seed),
        'status': status, **place,
      }  # fmt: skip
      measured = {'loss': loss, 'test_accuracy': loss}
      found.append(row | (measured if status == 'done' else {}))
  return found


def choose(listed, measure='loss', over=()):
  return tuning.choose(listed, by=['learning_rate'], over=over, measure=measure)


class TuningTest(parameterized.TestCase):
  @parameterized.parameters(
    ('loss', {'.1': (3, 1), '.2': (1, 2), '.4': (2, 2)}, '.2', []),
    ('test_accuracy', {'.1': (3, 1), '.2': (1, 2), '.4': (2, 3)}, '.4', ['e']),
    # The mean of .1 would be the best, but for its seed that diverged.
    ('loss', {'.1': (0, None), '.2': (2, 2), '.4': (3, 3)}, '.2', []),
    ('loss', {'.1': (None,), '.2': (None,)}, None, []),
    ('loss', {'.1': (1, 2), '.2': ('', 0)}, None, []),
    ('loss', {'.1': (1, 2)}, '.1', []),
    # A test loss may be no number where the training loss is one.
    ('loss', {'.1': (NAN,), '.2': (2,), '.4': (1,), '.8': (3,)}, '.4', []),
    ('loss', {'.1': (1, NAN), '.2': (NAN, NAN)}, None, []),
    # 1e-1 and 9 are the ends, in every order and spelling.
    ('loss', {'9': (2,), '1e-1': (1,), '3': (4,)}, '1e-1', ['e']),
  )
  def test_best_is_the_best_mean_over_seeds(self, measure, losses, best, edge):
    (found,) = choose(rows('ssgd', losses), measure)
    expected = None if best is None else {'learning_rate': best}
    self.assertEqual(found['best'], expected)
    self.assertEqual(found['at_edge'], ['learning_rate'] * len(edge))

  def test_measure_that_no_run_has_is_said(self):
    listed = rows('ssgd', {'.1': (1,), '.2': (None,)})
    del listed[0]['test_accuracy']
    choose(listed)
    with self.assertRaisesRegex(
      ValueError, 'accuracy was not recorded by ssgd; use loss$'
    ):
      choose(listed, 'test_accuracy')

  def test_methods_are_labels_and_other_settings(self):
    listed = [
      *rows('ssgd', {'.1': (1,), '.2': (2,)}, batch_size='8'),
      *rows('ssgd', {'.1': (2,), '.2': (1,)}, batch_size='16'),
      *rows('k_avg', {'.1': (1,), '.2': (2,)}, batch_size='8'),
    ]
    found = choose(listed, over=['batch_size'])
    self.assertEqual(
      [
        (m['label'], m['settings']['batch_size'], m['best']['learning_rate'])
        for m in found
      ],
      [('ssgd', '8', '.1'), ('ssgd', '16', '.2'), ('k_avg', '8', '.1')],
    )

  def test_scores_have_the_spread_and_what_is_not_there(self):
    (found,) = choose(rows('ssgd', {'.1': (1, 3), '.2': (None, 2)}))
    self.assertEqual(
      found['scores'],
      [
        {
          'values': {'learning_rate': '.1'}, 'mean': 2.0, 'least': 1,
          'most': 3, 'runs': 2, 'diverged': 0, 'missing': 0,
        },
        {
          'values': {'learning_rate': '.2'}, 'mean': None, 'least': 2,
          'most': 2, 'runs': 2, 'diverged': 1, 'missing': 0,
        },
      ],
    )  # fmt: skip

  def test_table_states_the_grid(self):
    found = choose(rows('ssgd', {'.1': (1,), '.2': (2,), '.4': (None,)}))
    self.assertEqual(
      tuning.format_table(found, 'loss').splitlines()[2],
      '| ssgd | learning_rate=.1 (at the edge of the grid) | learning_rate=.1: '
      '1, learning_rate=.2: 2, learning_rate=.4: 1 of 1 runs diverged |',
    )


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/running/execution/keeping.py`."""

from absl.testing import absltest, parameterized

from experiments.running.execution import keeping
from prsgd_jax.engine import Retention


class KeepingTest(parameterized.TestCase):
  @parameterized.parameters(
    ('3', Retention(3)),
    ('all', Retention(None)),
    ('every:1000', Retention(1, 1000)),
    ('every:1000,2', Retention(2, 1000)),
    ('lowest:test_loss,lowest:loss,highest:test_accuracy',
     Retention(1, None, ('test_loss', 'loss'), ('test_accuracy',))),
  )  # fmt: skip
  def test_terms(self, text, rules):
    self.assertEqual(keeping.parse(text, 100, 500), rules)

  @parameterized.parameters(
    '', '0', '-1', '1.5', 'x', '3,', 'newest:3', 'every:', 'every:0', 'every',
    'lowest', 'lowest:', 'best:test_loss', '\N{SUPERSCRIPT TWO}', '9' * 30,
    '1 ', 'ALL',
  )  # fmt: skip
  def test_other_terms_are_refused(self, text):
    with self.assertRaisesRegex(ValueError, 'keep must be terms such as 3, '):
      keeping.parse(text, 100, 500)

  @parameterized.parameters('1,2', 'all,3', 'every:2,every:3')
  def test_one_number_of_each_kind(self, text):
    with self.assertRaisesRegex(ValueError, 'has two terms of one kind, got'):
      keeping.parse(text, 100, 500)

  def test_measures_of_evaluations_need_one_at_each_checkpoint(self):
    keeping.parse('lowest:loss', 100, 50)
    with self.assertRaisesRegex(
      ValueError, 'highest:test_accuracy requires .*eval_every=100, got 50'
    ):
      keeping.parse('highest:test_accuracy', 100, 50)


if __name__ == '__main__':
  absltest.main()

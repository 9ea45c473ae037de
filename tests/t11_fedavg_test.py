"""Tests of `experiments/papers/t11_fedavg`."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.papers.t11_fedavg import cnn, judging, softmax


class UnlikeOrderTest(absltest.TestCase):
  def test_clients_have_few_classes_and_all_examples_are_dealt(self):
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(10), 40))
    order = softmax.unlike_order(labels, 20)
    np.testing.assert_array_equal(np.sort(order), np.arange(400))
    # Shards of 20 are of one class each.
    for own in labels[order].reshape(20, 20):
      self.assertLessEqual(len(np.unique(own)), softmax.SHARDS)

  def test_updates_of_a_round(self):
    self.assertEqual([w.updates for w in softmax.WORKS], [1, 4, 10, 40])


class JudgingTest(parameterized.TestCase):
  @parameterized.parameters(
    (cnn.PAPER['like'], 'yes'),
    (cnn.PAPER['unlike'], 'yes'),  # the paper's own row rises once
    ((483, 350, 600, 229), 'partly'),
    ((483, 600, 350, 470), 'partly'),
    ((483, 600, 350, 490), 'no'),
    ((483, 600, 350, np.inf), 'no'),
  )
  def test_rounds_fall(self, rounds, verdict):
    cases = ('u = 1', 'u = 12', 'u = 60', 'u = 300')
    measured = judging.measured(
      'rounds', {case: [r] for case, r in zip(cases, rounds, strict=True)}
    )
    found = judging.rule('rounds', cases).verdict(measured)
    self.assertEqual(found, verdict)


if __name__ == '__main__':
  absltest.main()

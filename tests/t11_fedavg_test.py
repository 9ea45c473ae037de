"""Tests of `experiments/papers/t11_fedavg`."""

from absl.testing import absltest
import numpy as np

from experiments.papers.t11_fedavg import softmax


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


if __name__ == '__main__':
  absltest.main()

"""Tests of `experiments/papers/t11_fedavg`."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from experiments.papers.t11_fedavg import cnn, judging, softmax


class ClientsTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_clients_have_few_classes_and_all_examples_are_dealt(self, like):
    number = softmax.CLIENTS * softmax.OWN
    labels = np.arange(number) * 7 % 10
    shards = jax.numpy.asarray(softmax.in_shards(labels, like=like))
    own = softmax.own_order()
    found = [
      np.stack([
        softmax.places(shards, softmax.deal(jax.random.key(seed)), k, own[k])
        for k in range(softmax.CLIENTS)
      ])
      for seed in (0, 1)
    ]  # fmt: skip
    for places in found:
      np.testing.assert_array_equal(np.sort(places.ravel()), np.arange(number))
      classes = [len(np.unique(labels[client])) for client in places]
      # Shards of 100 are of one class each.
      self.assertLessEqual(max(classes), 10 if like else softmax.SHARDS)
      self.assertGreaterEqual(min(classes), 10 if like else 1)
    self.assertTrue((found[0] != found[1]).any())

  def test_no_gradient_changes_what_is_dealt(self):
    shards = jax.numpy.asarray(softmax.in_shards(np.arange(4000), like=True))

    def loss(dealt):
      return softmax.places(shards, dealt, 3, np.arange(5)).sum() * 1.0

    dealt = softmax.deal(jax.random.key(0))
    np.testing.assert_array_equal(jax.grad(loss)(dealt), 0)

  def test_updates_of_a_round(self):
    self.assertEqual([w.updates for w in softmax.WORKS], [1, 4, 10, 40])


class JudgingTest(parameterized.TestCase):
  @parameterized.parameters(
    ([20, 22, 21, 23, 19], 'yes'),
    ([20, 22, 40, 39, 19], 'partly'),  # fewer rounds on average only
  )
  def test_rounds_fall_for_most_seeds(self, last, verdict):
    cases = ('u = 1', 'u = 10', 'u = 40')
    rounds = dict(zip(cases, ([34] * 5, [32] * 5, last), strict=True))
    found = judging.rule('rounds', cases).verdict(
      judging.measured('rounds', rounds)
    )
    self.assertEqual(found, verdict)

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

  def test_gains_have_the_seeds_of_the_rounds(self):
    first = np.array([100.0, 80.0])
    gains = [
      softmax._gain_over(first, np.array(own)) for own in ([50, 20], [10, 40])
    ]
    self.assertEqual(gains[0], (180 / 70, (2, 4), None))
    self.assertEqual(softmax._largest(gains), (3.6, (10, 4), None))


if __name__ == '__main__':
  absltest.main()

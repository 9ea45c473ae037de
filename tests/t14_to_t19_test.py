"""Tests of the targets t14 to t19 of `experiments/papers`, in small."""

import pathlib

from absl.testing import absltest, parameterized
import jax
import numpy as np

from experiments.papers import (
  images,
  t16_unequal_work,
  t17_duality,
  t18_parallel_dropout,
  t19_natural_gradient,
)
from experiments.papers.t14_least_squares import judging, runs
from experiments.papers.t15_average_direction_sam import minima
from experiments.papers.target import Setting
from tests import binaries

KEY = jax.random.key(0, impl='threefry2x32')


class LeastSquaresTest(absltest.TestCase):
  def test_exponent_of_a_power(self):
    sizes = (1, 4, 16)
    values = np.array([[3.0, 1.0], [0.75, 4.0], [0.1875, 16.0]])
    np.testing.assert_allclose(judging.exponent(sizes, values), [-1, 1])

  def test_summary_is_over_copies_and_groups(self):
    # [rates, seeds, points, parts, copies, groups]; two seeds differ by 2.
    risks = np.zeros((1, 2, 1, 2, 2, 8))
    risks[0, :, 0, 0] = np.arange(16).reshape(2, 8)
    risks[0, 1] += 2
    found = runs.summarize({1: risks, 16: risks[..., :1]}, 0, -1)
    self.assertEqual(found['bias']['N = 1']['seeds'], [7.5, 9.5])
    self.assertEqual(found['bias']['N = 16']['seeds'], [4.0, 6.0])
    self.assertEqual(found['variance']['N = 1']['seeds'], [0.0, 2.0])
    want = np.std([0, 8, 2, 10], ddof=1) / 2
    self.assertAlmostEqual(found['bias']['N = 16']['error'], want)

  def test_before_the_tail_the_output_is_the_last_iterate(self):
    tail, last = (
      runs.simulated_risks((0.05,), 1, 2, 8, first, 2) for first in (4, 8)
    )
    for n in runs.REPLICAS:
      for point, equal in ((1, True), (3, False)):
        same = np.array_equal(tail[n][:, :, point], last[n][:, :, point])
        self.assertEqual(same, equal)


class AverageDirectionTest(absltest.TestCase):
  def test_spread_and_best_rate(self):
    params = {'a': np.array([[0.0, 0.0], [2.0, 4.0]]), 'b': np.ones((2, 3))}
    self.assertEqual(minima._spread(params), 5.0)
    rows = [
      {'method': 'ring', 'batch': 1, 'rate': rate, 'chosen_by': accuracy}
      for rate, accuracy in ((0.1, [9, 9]), (0.2, [8, 11]), (0.4, [np.nan, 20]))
    ]
    best = minima.best(rows, 'ring', 1)
    self.assertEqual(best['rate'], 0.2)


class UnequalWorkTest(parameterized.TestCase):
  @parameterized.parameters(*t16_unequal_work.UNEQUAL)
  def test_at_the_crossing_both_are_equal(self, work):
    found = t16_unequal_work.exact(t16_unequal_work.WORK[work])
    at = t16_unequal_work.crossing(found)
    risks = [
      at**2 * found[m]['bias'] + found[m]['variance']
      for m in t16_unequal_work.METHODS
    ]
    np.testing.assert_allclose(*risks)

  def test_equal_work_has_equal_weights(self):
    found = t16_unequal_work.weights(t16_unequal_work.WORK['equal'])
    for weights in found.values():
      np.testing.assert_allclose(weights, 1 / 8)

  def test_only_the_fastest_have_weight(self):
    steps = t16_unequal_work.WORK['half at half speed']
    found = t16_unequal_work.weights(steps)['fastest only']
    np.testing.assert_allclose(found, [1 / 4] * 4 + [0] * 4)


class DualityTest(absltest.TestCase):
  def test_nearest_of_the_class(self):
    rng = np.random.default_rng(0)
    seen, unseen = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))
    label, other = np.arange(30) % 3, np.arange(9) % 3
    got = t17_duality.nearest(seen, label, unseen, other)
    for k in range(9):
      square = ((seen - unseen[k]) ** 2).sum(axis=-1)
      square[label != other[k]] = np.inf
      self.assertEqual(got[k], square.argmin())

  def test_expansion_of_a_small_change_is_exact(self):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
      last = {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}
      # All units are active near these weights.
      layer = t17_duality.Layer(rng.normal(size=(2, 3)), np.full(3, 9.0), last)
      x, y = rng.normal(size=(5, 2)), np.arange(5) % 4
      changes = 1e-3 * rng.normal(size=(5, 2, 3))
      moved, first, second = t17_duality.expansions(layer, changes, x, y)
      before = layer.losses(x, y)
    error = np.abs(moved - before - first - second)
    # The third order is a thousandth of the second.
    self.assertLess(error.max(), 0.02 * np.abs(second).max())
    logits = np.maximum(x[0] @ (layer.kernel + changes[0]) + 9, 0)
    logits = logits @ last['kernel'] + last['bias']
    want = np.log(np.exp(logits).sum()) - logits[0]
    np.testing.assert_allclose(moved[0], want)


class ParallelDropoutTest(absltest.TestCase):
  def test_masks_are_own_and_examples_shared(self):
    keys = t18_parallel_dropout.keys_of(KEY, 5, np.arange(3))
    examples, masks = (
      {tuple(k) for k in np.asarray(jax.random.key_data(x))}
      for x in (keys.batch, keys.loss)
    )
    self.assertLen(examples, 1)
    self.assertLen(masks, 3)

  def test_a_batch_has_own_examples_only_in_batch_sgd(self):
    examples = images.Examples(np.arange(90).reshape(30, 3), np.arange(30))
    for name, distinct in (
      (t18_parallel_dropout.PARALLEL, 1), (t18_parallel_dropout.BATCH, 8),
    ):  # fmt: skip
      method = t18_parallel_dropout.METHODS[name]
      batch = t18_parallel_dropout.draw_batch(method, examples, KEY)
      self.assertEqual(batch['image'].shape, (8, 3))
      self.assertLen(set(np.array(batch['label']).tolist()), distinct)

  def test_mean_over_masks(self):
    rng = np.random.default_rng(0)
    params = {
      f'Dense_{i}': {
        'kernel': rng.normal(size=(2, *shape)), 'bias': np.ones((2, shape[1])),
      }
      for i, shape in enumerate(((5, 4), (4, 3)))
    }  # fmt: skip
    batch = {'image': rng.normal(size=(6, 5)), 'label': np.arange(6) % 3}
    strengths = np.array([[0.0, 0.0], [0.0, 0.5]])
    found = t18_parallel_dropout.mean_losses(params, batch, KEY, strengths)
    for r, strength in enumerate(strengths):
      own = jax.tree.map(lambda x: x[r], params)  # noqa: B023
      want = np.mean(
        [
          t18_parallel_dropout.loss(
            own, {k: v[m] for k, v in batch.items()}, key, strength
          )
          for m, key in enumerate(jax.random.split(KEY, 6))
        ]
      )
      np.testing.assert_allclose(found[r], want, rtol=1e-5)

  def test_the_splits_have_all_digits_once(self):
    setting = Setting('cpu', binaries.digits_dir(), pathlib.Path('unused'))
    splits = t18_parallel_dropout.load(setting)
    self.assertEqual(
      [len(own.label) for own in splits],
      [
        t18_parallel_dropout.NUM_TRAIN,
        t18_parallel_dropout.NUM_VALIDATION,
        t18_parallel_dropout.NUM_TEST,
      ],
    )
    rows = np.concatenate([own.image for own in splits])
    self.assertLen(np.unique(rows, axis=0), len(rows))

  def test_the_rate_is_chosen_on_validation_images(self):
    count = len(t18_parallel_dropout.RATES)
    shape = (count, 2, 1, len(t18_parallel_dropout.REGULARIZERS))
    rising = np.broadcast_to(
      np.arange(count, dtype=float)[:, None, None, None], shape
    )
    found = {'validation': 9 - rising, 'test': rising, 'train': rising / 2}
    best = t18_parallel_dropout._best(found, -1)['dither']
    self.assertEqual(best['rate'], t18_parallel_dropout.RATES[-1])
    self.assertEqual(best['error'], [count - 1.0] * 2)
    self.assertEqual(best['training error'], [(count - 1) / 2] * 2)

  def test_loss_by_hand(self):
    rng = np.random.default_rng(0)
    params = {
      f'Dense_{i}': {
        'kernel': rng.normal(size=shape), 'bias': np.full(shape[1], 3.0),
      }
      for i, shape in enumerate(((5, 4), (4, 3)))
    }  # fmt: skip
    batch = {'image': rng.normal(size=5), 'label': np.array(2)}
    of = jax.jit(t18_parallel_dropout.loss)
    # A dropout of almost 1 keeps no unit, and one of 0 all of them.
    for dropout, kept in ((0.0, 1), (0.999, 0)):
      found = of(params, batch, KEY, np.array([0.0, dropout]))
      first, last = params['Dense_0'], params['Dense_1']
      hidden = np.maximum(batch['image'] @ first['kernel'] + first['bias'], 0)
      logits = kept * hidden @ last['kernel'] + last['bias']
      want = np.log(np.exp(logits).sum()) - logits[2]
      np.testing.assert_allclose(found, want, rtol=1e-5)
    quiet, noisy = (
      of(params, batch, KEY, np.array([dither, 0.0])) for dither in (0.0, 1.0)
    )
    self.assertGreater(abs(noisy - quiet), 1e-3)


class NaturalGradientTest(absltest.TestCase):
  def test_speedup_is_by_steps_to_the_loss_of_one(self):
    points = t19_natural_gradient.NUM_STEPS // t19_natural_gradient.EVERY
    one = 1.0 / np.arange(1, points + 1)
    many = 1.0 / (4 * np.arange(1, points + 1))
    rows = {
      'SGD': {
        'one replica': {'loss': [one]}, 'few': {'loss': [many]},
      }
    }  # fmt: skip
    found = t19_natural_gradient.speedups(rows, 'SGD', 'few')
    np.testing.assert_allclose(found.value, 4, rtol=0.01)


if __name__ == '__main__':
  absltest.main()

"""Dual weights and determinants, by their definitions and on quadratics."""

from absl.testing import absltest
import numpy as np

from prsgd_jax.science import duality


class DualWeightsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.w = rng.normal(size=(5, 3))
    self.x, self.other = rng.normal(size=(2, 7, 5))

  def test_act_on_one_input_as_the_weights_on_the_other(self):
    dual = duality.dual_weights(self.w, self.x, self.other)
    for x, other, change in zip(self.x, self.other, dual, strict=True):
      np.testing.assert_allclose(x @ (self.w + change), other @ self.w)

  def test_are_the_smallest_with_this_property(self):
    dual = duality.dual_weights(self.w, self.x, self.other)
    for x, other, change in zip(self.x, self.other, dual, strict=True):
      best = np.linalg.pinv(x[None]) @ ((other - x) @ self.w)[None]
      np.testing.assert_allclose(change, best)

  def test_scale_with_the_weights_and_not_with_the_activities(self):
    dual = duality.dual_weights(self.w, self.x, self.other)
    twice = duality.dual_weights(2 * self.w, 3 * self.x, 3 * self.other)
    np.testing.assert_allclose(twice, 2 * dual)

  def test_are_unknown_for_an_input_of_zeros(self):
    dual = duality.dual_weights(self.w, np.zeros((1, 5)), self.other[:1])
    self.assertTrue(np.isnan(dual).all())


class DeterminantsTest(absltest.TestCase):
  def test_gap_is_that_of_a_quadratic_loss(self):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(6, 6))
    hessian, changes = a + a.T, rng.normal(size=(20, 2, 3))
    found = duality.determinants(hessian, changes)
    flat = changes.reshape(20, 6)
    want = np.mean([c @ hessian @ c / 2 for c in flat])
    np.testing.assert_allclose(found.gap, want)
    np.testing.assert_allclose(found.spread.sum(), (flat**2).sum() / 20)
    np.testing.assert_array_less(found.sharpness[1:], found.sharpness[:-1])


if __name__ == '__main__':
  absltest.main()

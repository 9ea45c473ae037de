"""Checks of arguments."""

from absl.testing import absltest, parameterized
import numpy as np
import optax

from prsgd_jax import checks


class CheckPositiveIntTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, np.int32(3), np.uint8(3))
  def test_accepts(self, value):
    got = checks.check_positive_int('x', value)
    self.assertEqual(got, value)
    self.assertIs(type(got), int)

  @parameterized.parameters(
    0, -1, 1.0, True, np.bool_(True), '1', None, np.int64(0), float('nan')
  )
  def test_refuses(self, value):
    with self.assertRaisesRegex(ValueError, 'x must be an integer >= 1, got '):
      checks.check_positive_int('x', value)


class CheckStepTest(parameterized.TestCase):
  def test_accepts_zero(self):
    self.assertEqual(checks.check_step('x', np.int64(0)), 0)

  @parameterized.parameters(-1, 1.0, True, '1', None)
  def test_refuses(self, value):
    with self.assertRaisesRegex(ValueError, 'x must be an integer >= 0, got '):
      checks.check_step('x', value)


class CheckNumberTest(parameterized.TestCase):
  @parameterized.parameters(2, 2.5, np.float32(3))
  def test_accepts(self, value):
    got = checks.check_number('x', value, lambda x: x > 1, '> 1')
    self.assertEqual(got, value)
    self.assertIs(type(got), float)

  @parameterized.parameters(0, True, '2', None, float('nan'), np.bool_(True))
  def test_refuses(self, value):
    with self.assertRaisesRegex(ValueError, 'x must be > 1, got '):
      checks.check_number('x', value, lambda x: x > 1, '> 1')


class CheckObjectsTest(parameterized.TestCase):
  def test_optax(self):
    checks.check_optax('tx', optax.sgd(0.1))
    with self.assertRaisesRegex(ValueError, 'tx expects an optax .* got 0.1'):
      checks.check_optax('tx', 0.1)

  def test_schedule(self):
    checks.check_schedule('when', lambda step: step > 3)
    with self.assertRaisesRegex(ValueError, 'when expects a schedule.* got 4'):
      checks.check_schedule('when', 4)


if __name__ == '__main__':
  absltest.main()

"""Checks of arguments."""

import math

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


class CheckListTest(parameterized.TestCase):
  @parameterized.parameters(([1, 2],), ((1, 2),), (np.array([1, 2]),))
  def test_accepts(self, values):
    self.assertEqual(checks.check_positive_ints('x', values), [1, 2])

  @parameterized.parameters((3,), (2.5,), (None,), ('12',), (np.array(3),))
  def test_refuses_what_is_no_list(self, values):
    with self.assertRaisesRegex(ValueError, 'x must be a list of numbers, got'):
      checks.check_positive_ints('x', values)

  def test_refuses_an_element(self):
    with self.assertRaisesRegex(ValueError, 'x must be an integer >= 1, got 0'):
      checks.check_positive_ints('x', [1, 0])


class CheckBoolTest(parameterized.TestCase):
  def test_accepts(self):
    self.assertIs(checks.check_bool('x', np.bool_(True)), True)
    self.assertIs(checks.check_bool('x', False), False)

  @parameterized.parameters(0, 1.0, 'false', None, float('nan'))
  def test_refuses(self, value):
    with self.assertRaisesRegex(ValueError, 'x must be True or False, got'):
      checks.check_bool('x', value)


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


class FiniteTest(parameterized.TestCase):
  @parameterized.parameters(
    checks.check_positive, checks.check_not_negative, checks.check_fraction,
    checks.check_probability,
  )  # fmt: skip
  def test_refuses_what_no_comparison_refuses(self, check):
    self.assertEqual(check('x', np.float32(0.5)), 0.5)
    for value in (math.nan, math.inf, -math.inf, 10**400, -0.5, True, None):
      with self.assertRaisesRegex(ValueError, 'x must be .*, got '):
        check('x', value)

  def test_infinity_where_it_is_a_value(self):
    def check(value, **keywords):
      return checks.check_number('x', value, lambda x: x > 0, '> 0', **keywords)

    self.assertEqual(check(math.inf, infinite=True), math.inf)
    with self.assertRaisesRegex(ValueError, '> 0 and finite, got inf'):
      check(math.inf)
    with self.assertRaisesRegex(ValueError, 'x must be > 0, got nan'):
      check(math.nan, infinite=True)


class CheckLengthTest(parameterized.TestCase):
  def test_steps_are_int32(self):
    self.assertEqual(checks.check_length('x', np.int64(2**31 - 1)), 2**31 - 1)
    for value in (2**31, 10**30):
      with self.assertRaisesRegex(ValueError, f'x must be at most .* {value}$'):
        checks.check_length('x', value)


class CheckSeedTest(parameterized.TestCase):
  @parameterized.parameters(0, 2**32 - 1, np.uint64(7), np.int64(7))
  def test_accepts(self, value):
    got = checks.check_seed('x', value)
    self.assertEqual(got, value)
    self.assertIs(type(got), int)

  @parameterized.parameters(-1, 2**32, np.uint64(2**63), 1.0, True, None)
  def test_refuses(self, value):
    with self.assertRaisesRegex(ValueError, r'x must be an integer in 0 \.\. '):
      checks.check_seed('x', value)


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

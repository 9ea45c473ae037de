"""Schedules: the same on a Python int, a NumPy array and a traced step."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr

STEPS = np.arange(40)

# name -> (schedule, its definition of one 0-based step, in plain Python)
TABLE = {
  'always': (pr.always(), lambda s: True),
  'never': (pr.never(), lambda s: False),
  'every_1': (pr.every(1), lambda s: True),
  'every_4': (pr.every(4), lambda s: s in range(3, 40, 4)),
  'every_100': (pr.every(100), lambda s: False),
  'every_numpy': (pr.every(np.int64(7)), lambda s: s in range(6, 40, 7)),
  'at': (pr.at([0, 5, 39]), lambda s: s in (0, 5, 39)),
  'at_unordered': (pr.at([9, 2, 2]), lambda s: s in (2, 9)),
  'at_nothing': (pr.at([]), lambda s: False),
  'at_array': (pr.at(np.array([3, 4])), lambda s: s in (3, 4)),
  'post_local': (
    pr.post_local(3, period=4),
    lambda s: s in (0, 1, 2, *range(6, 40, 4)),
  ),
  'post_local_at_once': (pr.post_local(0, period=4), lambda s: s % 4 == 3),
  'post_local_1': (pr.post_local(5, period=1), lambda s: True),
  'any_of': (
    pr.any_of(pr.every(6), pr.at([0, 1])),
    lambda s: s in (0, 1) or s % 6 == 5,
  ),
  'any_of_constants': (
    pr.any_of(pr.never(), pr.every(5)),
    lambda s: s % 5 == 4,
  ),
  'any_of_one': (pr.any_of(pr.every(3)), lambda s: s % 3 == 2),
  'any_of_always': (pr.any_of(pr.every(3), pr.always()), lambda s: True),
}


class EveryScheduleTest(parameterized.TestCase):
  @parameterized.parameters(*TABLE)
  def test_numpy_steps(self, name):
    schedule, definition = TABLE[name]
    got = schedule(STEPS)
    self.assertIsInstance(got, np.ndarray)
    self.assertEqual((got.dtype, got.shape), (bool, STEPS.shape))
    np.testing.assert_array_equal(got, [definition(int(s)) for s in STEPS])

  @parameterized.parameters(*TABLE)
  def test_traced_steps(self, name):
    schedule, definition = TABLE[name]

    @jax.jit
    def fires(step):
      return jnp.asarray(schedule(step))

    for step in range(40):
      got = fires(jnp.asarray(step, jnp.int32))
      self.assertEqual((got.dtype, got.shape), (bool, ()))
      self.assertEqual(bool(got), definition(step), step)

  @parameterized.parameters(*TABLE)
  def test_python_steps(self, name):
    schedule, definition = TABLE[name]
    for step in (0, 3, 5, 39):
      self.assertEqual(bool(schedule(step)), definition(step))

  @parameterized.parameters('every_4', 'post_local', 'at', 'any_of')
  def test_does_not_read_more_than_the_step(self, name):
    # No state: any order of calls gives the same.
    schedule, _ = TABLE[name]
    forward = [bool(schedule(s)) for s in STEPS]
    backward = [bool(schedule(s)) for s in STEPS[::-1]]
    self.assertEqual(forward, backward[::-1])


class ConstantTest(parameterized.TestCase):
  @parameterized.parameters(pr.always(), pr.never())
  def test_is_known_when_tracing(self, schedule):
    seen = []
    jax.make_jaxpr(lambda s: seen.append(schedule(s)) or s)(0)
    self.assertNotIsInstance(seen[0], jax.core.Tracer)


class AtTest(parameterized.TestCase):
  def test_steps_after_the_last_do_not_fire(self):
    schedule = pr.at([2])
    late = 2**31 - 1
    self.assertFalse(schedule(np.array([3, late])).any())
    self.assertFalse(bool(jax.jit(schedule)(jnp.asarray(late, jnp.int32))))

  def test_callers_list_is_copied(self):
    steps = np.array([2])
    schedule = pr.at(steps)
    steps[0] = 3
    self.assertEqual(np.flatnonzero(schedule(STEPS)).tolist(), [2])

  @parameterized.parameters(
    ([-1],), ([1, -5],), ([1.5],), (['3'],), ([True],), ([None],)
  )
  def test_steps_are_integers_from_zero(self, steps):
    with self.assertRaisesRegex(ValueError, r'expects integers >= 0, got \['):
      pr.at(steps)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -3, 2.0, True, None, '4', np.float64(3))
  def test_periods_are_positive_integers(self, period):
    with self.assertRaisesRegex(
      ValueError, 'period must be an integer >= 1, got '
    ):
      pr.every(period)
    with self.assertRaisesRegex(
      ValueError, 'period must be an integer >= 1, got '
    ):
      pr.post_local(3, period=period)

  @parameterized.parameters(-1, 1.5, None)
  def test_switch_step_is_not_negative(self, switch_step):
    with self.assertRaisesRegex(
      ValueError, f'switch_step must be an integer >= .*, got {switch_step}'
    ):
      pr.post_local(switch_step, period=2)

  def test_any_of_something(self):
    with self.assertRaisesRegex(ValueError, 'at least one schedule, got none'):
      pr.any_of()


if __name__ == '__main__':
  absltest.main()

"""Schedules: the same on a Python int, a NumPy array and a traced step."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import schedules

STEPS = np.arange(40)
TOSSES = np.random.default_rng(3).random(25) < 0.3

# name -> (schedule, its definition of one 0-based step, in plain Python)
TABLE = {
  'always': (pr.schedules.always(), lambda s: True),
  'never': (pr.schedules.never(), lambda s: False),
  'every_1': (pr.schedules.every(1), lambda s: True),
  'every_4': (pr.schedules.every(4), lambda s: s in range(3, 40, 4)),
  'every_100': (pr.schedules.every(100), lambda s: False),
  'every_numpy': (
    pr.schedules.every(np.int64(7)),
    lambda s: s in range(6, 40, 7),
  ),
  'at': (pr.schedules.at_steps([0, 5, 39]), lambda s: s in (0, 5, 39)),
  'at_unordered': (pr.schedules.at_steps([9, 2, 2]), lambda s: s in (2, 9)),
  'at_nothing': (pr.schedules.at_steps([]), lambda s: False),
  'at_array': (pr.schedules.at_steps(np.array([3, 4])), lambda s: s in (3, 4)),
  'post_local': (
    pr.schedules.post_local(3, period=4),
    lambda s: s in (0, 1, 2, *range(6, 40, 4)),
  ),
  'post_local_at_once': (
    pr.schedules.post_local(0, period=4),
    lambda s: s % 4 == 3,
  ),
  'post_local_1': (pr.schedules.post_local(5, period=1), lambda s: True),
  'any_of': (
    pr.schedules.any_of(pr.schedules.every(6), pr.schedules.at_steps([0, 1])),
    lambda s: s in (0, 1) or s % 6 == 5,
  ),
  'any_of_constants': (
    pr.schedules.any_of(pr.schedules.never(), pr.schedules.every(5)),
    lambda s: s % 5 == 4,
  ),
  'any_of_one': (
    pr.schedules.any_of(pr.schedules.every(3)),
    lambda s: s % 3 == 2,
  ),
  'any_of_always': (
    pr.schedules.any_of(pr.schedules.every(3), pr.schedules.always()),
    lambda s: True,
  ),
  'after': (
    pr.schedules.after(5, pr.schedules.every(4)),
    lambda s: s in range(8, 40, 4),
  ),
  'after_0': (
    pr.schedules.after(0, pr.schedules.every(4)),
    lambda s: s in range(3, 40, 4),
  ),
  'after_at': (
    pr.schedules.after(6, pr.schedules.at_steps([0, 2])),
    lambda s: s in (6, 8),
  ),
  'after_always': (
    pr.schedules.after(7, pr.schedules.always()),
    lambda s: s >= 7,
  ),
  'intervals': (
    pr.schedules.intervals((1, 3, 4)),
    lambda s: s in (0, 3, *range(7, 40, 4)),
  ),
  'intervals_one': (pr.schedules.intervals([3]), lambda s: s % 3 == 2),
  'intervals_shrink': (
    pr.schedules.intervals([9, 2]),
    lambda s: s in (8, *range(10, 40, 2)),
  ),
  'doubling': (
    pr.schedules.doubling(2, num_steps=40),
    lambda s: s + 1 in (2, 6, 14, 30),
  ),
  'doubling_by_pairs': (
    pr.schedules.doubling(1, num_steps=40, rounds_each=2),
    lambda s: s + 1 in (1, 2, 4, 6, 10, 14, 22, 30),
  ),
  'doubling_then_the_same': (
    pr.schedules.doubling(1, num_steps=6),
    lambda s: s + 1 in (1, 3, *range(7, 41, 4)),
  ),
  'linear_growth': (
    pr.schedules.linear_growth(2, increment=3, num_steps=40),
    lambda s: s + 1 in (2, 7, 15, 26, 40),
  ),
  'linear_growth_then_the_same': (
    pr.schedules.linear_growth(1, increment=1, num_steps=5),
    lambda s: s + 1 in (1, 3, *range(6, 41, 3)),
  ),
  'with_probability_0': (
    pr.schedules.with_probability(0.0, num_steps=9),
    lambda s: False,
  ),
  'with_probability_1': (
    pr.schedules.with_probability(1, num_steps=9),
    lambda s: True,
  ),
  'with_probability': (
    pr.schedules.with_probability(0.3, num_steps=25, seed=3),
    lambda s: TOSSES[s % 25],
  ),
  'qsr_of_a_constant': (
    pr.schedules.qsr(lambda s: 0.1, alpha=0.25, base_period=2, num_steps=40),
    lambda s: s in (*range(5, 40, 6), 39),
  ),
  'qsr_at_its_base': (
    pr.schedules.qsr(lambda s: 0.1, alpha=0.15, base_period=4, num_steps=40),
    lambda s: s % 4 == 3,
  ),
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
  @parameterized.parameters(pr.schedules.always(), pr.schedules.never())
  def test_is_known_when_tracing(self, schedule):
    seen = []
    jax.make_jaxpr(lambda s: seen.append(schedule(s)) or s)(0)
    self.assertNotIsInstance(seen[0], jax.core.Tracer)


class StartsTest(parameterized.TestCase):
  def test_rounds_of_one_step_are_known_when_tracing(self):
    fires = pr.schedules.starts(pr.schedules.every(1))
    known = []

    @jax.jit
    def trace(step):
      known.append(fires(step))
      return step

    trace(0)
    self.assertIsInstance(known[0], np.ndarray)
    np.testing.assert_array_equal(fires(np.arange(3)), [True] * 3)


class AtTest(parameterized.TestCase):
  def test_steps_after_the_last_do_not_fire(self):
    schedule = pr.schedules.at_steps([2])
    late = 2**31 - 1
    self.assertFalse(schedule(np.array([3, late])).any())
    self.assertFalse(bool(jax.jit(schedule)(jnp.asarray(late, jnp.int32))))

  def test_callers_list_is_copied(self):
    steps = np.array([2])
    schedule = pr.schedules.at_steps(steps)
    steps[0] = 3
    self.assertEqual(np.flatnonzero(schedule(STEPS)).tolist(), [2])

  @parameterized.parameters(
    ([-1],), ([1, -5],), ([1.5],), (['3'],), ([True],), ([None],)
  )
  def test_steps_are_integers_from_zero(self, steps):
    with self.assertRaisesRegex(ValueError, r'expects integers >= 0, got \['):
      pr.schedules.at_steps(steps)


BEYOND = (2**31, 2**40, 10**30, np.int64(2**40), np.uint64(2**63))


class BeyondInt32Test(parameterized.TestCase):
  """What no run can reach never fires, on the traced side as in NumPy."""

  STEPS = np.array([0, 1, 5, 2**24, 2**31 - 2])

  def check(self, schedule, want):
    np.testing.assert_array_equal(schedule(self.STEPS), want)
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(self.STEPS, jnp.int32))
    np.testing.assert_array_equal(traced, want)

  @parameterized.parameters(*BEYOND)
  def test_never(self, number):
    never = [False] * 5
    self.check(pr.schedules.every(number), never)
    self.check(pr.schedules.at_steps([int(number)]), never)
    self.check(pr.schedules.after(number, pr.schedules.every(1)), never)
    self.check(pr.schedules.intervals([number]), never)
    self.check(pr.schedules.doubling(number, num_steps=100), never)
    self.check(
      pr.schedules.linear_growth(number, increment=1, num_steps=9), never
    )
    self.check(
      pr.schedules.starts(pr.schedules.every(number)), [True, *never[1:]]
    )

  @parameterized.parameters(*BEYOND)
  def test_until_then(self, number):
    self.check(pr.schedules.post_local(number, period=4), [True] * 5)
    self.check(
      pr.schedules.post_local(2, period=number), [True, True] + [False] * 3
    )
    self.check(pr.schedules.intervals([2, number]), [False, True] + [False] * 3)
    self.check(pr.schedules.at_steps([5, int(number)]), self.STEPS == 5)

  def test_the_last_step_of_the_longest_run_can_fire(self):
    last = self.STEPS == 2**31 - 2
    self.check(pr.schedules.every(2**31 - 1), last)
    self.check(pr.schedules.at_steps([2**31 - 2]), last)
    self.check(pr.schedules.after(2**31 - 3, pr.schedules.every(2)), last)

  @parameterized.parameters(
    lambda T: pr.schedules.doubling(1, num_steps=T),
    lambda T: pr.schedules.linear_growth(1, increment=100, num_steps=T),
    lambda T: pr.schedules.qsr(
      lambda t: 1e-3, alpha=1.0, base_period=1, num_steps=T
    ),
    lambda T: pr.schedules.at_steps([T - 1]),
  )
  def test_tables_are_those_of_the_averages_not_of_the_steps(self, make):
    schedule = make(2**31 - 1)
    program = jax.make_jaxpr(schedule)(jnp.zeros((), jnp.int32))
    held = sum(np.asarray(c).nbytes for c in program.consts)
    self.assertLess(held, 2**26)

  @parameterized.parameters(
    (
      lambda: pr.schedules.with_probability(0.5, num_steps=10**9),
      r'at most 2\*\*24 = 16777216 steps, got num_steps=1000000000',
    ),
    (
      lambda: pr.schedules.with_probability(0.5, num_steps=9, seed=2**32),
      'seed must be .* got 4294967296',
    ),
    (
      lambda: pr.schedules.with_probability(0.5, num_steps=9, seed=-1),
      'seed must be .* got -1',
    ),
    (
      lambda: pr.schedules.doubling(1, num_steps=10**9, rounds_each=10**9),
      r'more than 2\*\*24',
    ),
    (
      lambda: pr.schedules.theory_schedule(8, 10**9),
      r'epochs would have more than 2',
    ),
    (
      lambda: pr.schedules.qsr(
        lambda t: 1, alpha=1, base_period=1, num_steps=2**31
      ),
      'num_steps must be at most',
    ),
    (
      lambda: pr.schedules.with_probability(np.nan, num_steps=9),
      'probability must be',
    ),
    (
      lambda: pr.schedules.qsr(
        lambda t: 1, alpha=np.nan, base_period=1, num_steps=9
      ),
      'alpha must be > 0, got nan',
    ),
    (
      lambda: pr.schedules.theory_schedule(8, 9, smoothness=np.inf),
      'smoothness must be > 0 and finite, got inf',
    ),
  )
  def test_a_table_of_a_run_that_is_too_long_is_one_line(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_latest(self):
    for schedule in (
      pr.schedules.every(7), pr.schedules.at_steps([0, 3, 900]),
      pr.schedules.never(), pr.schedules.always(),
      pr.schedules.every(2**40),
    ):  # fmt: skip
      steps = np.arange(1200)
      fired = np.where(schedule(steps), steps, 0)
      want = np.maximum.accumulate(fired)
      find = schedules.latest(schedule)  # remembers an earlier answer
      for asked in (
        [7], [8, 9], steps, [1000], [1001], [5, 5, 2], [1100, 3, 4, 300], [],
      ):  # fmt: skip
        asked = np.array(asked, int)
        np.testing.assert_array_equal(find(asked), want[asked])

  def test_latest_looks_at_each_step_of_a_run_once(self):
    asked = 0

    def never(step):
      nonlocal asked
      asked += np.size(step)
      return np.zeros(np.shape(step), bool)

    find = schedules.latest(never)
    for first in range(0, 100_000, 1000):
      find(np.arange(first, first + 1000))
    self.assertEqual(asked, 100_000)


class IntervalsTest(parameterized.TestCase):
  def test_the_last_interval_repeats_for_ever(self):
    schedule = pr.schedules.intervals([2, 5])
    late = 2 + 5 * 10**8
    fires = [
      bool(jax.jit(schedule)(jnp.asarray(late + i))) for i in range(-1, 5)
    ]
    self.assertEqual(fires, [True] + [False] * 4 + [True])
    np.testing.assert_array_equal(schedule(late + np.arange(-1, 5)), fires)

  def test_constant_intervals_are_every(self):
    np.testing.assert_array_equal(
      pr.schedules.intervals([7] * 4)(STEPS), pr.schedules.every(7)(STEPS)
    )

  def test_callers_list_is_copied(self):
    lengths = [3, 4]
    schedule = pr.schedules.intervals(lengths)
    lengths[0] = 1
    np.testing.assert_array_equal(
      schedule(STEPS), pr.schedules.intervals([3, 4])(STEPS)
    )


class WithProbabilityTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, 100)
  def test_how_many_are_drawn_at_once_changes_nothing(self, drawn):
    with mock.patch.object(schedules, 'DRAWN', drawn):
      found = pr.schedules.with_probability(0.3, num_steps=100, seed=4)
    want = np.random.default_rng(4).random(100) < 0.3
    steps = np.arange(250)
    np.testing.assert_array_equal(found(steps), want[steps % 100])
    traced = jax.jit(found)(jnp.asarray(steps))
    np.testing.assert_array_equal(traced, found(steps))

  @parameterized.parameters(0.01, 0.2, 0.9)
  def test_fires_as_often(self, probability):
    n = 100_000
    fires = pr.schedules.with_probability(probability, num_steps=n)(
      np.arange(n)
    )
    # Five standard deviations.
    delta = 5 * np.sqrt(probability * (1 - probability) / n)
    self.assertAlmostEqual(fires.mean(), probability, delta=delta)

  def test_is_a_function_of_its_seed(self):
    one, same, other = (
      pr.schedules.with_probability(0.5, num_steps=40, seed=seed)(STEPS)
      for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    self.assertTrue((one != other).any())


def qsr_steps(learning_rate, *, num_steps, **rest):
  schedule = pr.schedules.qsr(learning_rate, num_steps=num_steps, **rest)
  return np.flatnonzero(schedule(np.arange(num_steps + 50))).tolist()


class QsrTest(parameterized.TestCase):
  def test_changes_only_just_after_an_average(self):
    # 0.2 for 5 steps: H = 1 throughout, then (0.2 / 0.05)^2 = 16; the drop at
    # step 30 is inside a round, and the next rounds are 64 long.
    rate = np.select([STEPS < 5, STEPS < 30], [0.2, 0.05], 0.025)
    late = np.append(rate, np.full(200, 0.025))
    got = qsr_steps(lambda s: late[s], alpha=0.2, base_period=1, num_steps=200)
    self.assertEqual(got, [0, 1, 2, 3, 4, 20, 36, 100, 164, 199])

  def test_reads_the_optimizers_own_schedule(self):
    # Cosine decay, in single precision, against the rule in double.
    t, total, alpha = 0, 300, 0.31
    want = []
    while t < total:
      eta = 0.1 * (1 + np.cos(np.pi * t / total)) / 2
      t = min(t + max(4, int((alpha / eta) ** 2)), total)
      want.append(t - 1)
    got = qsr_steps(
      optax.cosine_decay_schedule(0.1, total),
      alpha=alpha,
      base_period=4,
      num_steps=total,
    )
    self.assertEqual(got, want)

  def test_single_precision_does_not_miss_an_integer(self):
    got = qsr_steps(
      lambda s: np.float32(0.1), alpha=0.3, base_period=1, num_steps=27
    )
    self.assertEqual(got, [8, 17, 26])

  def test_no_step_at_all_is_one_round(self):
    for eta in (0.0, 1e-300):
      got = qsr_steps(lambda s, e=eta: e, alpha=1, base_period=3, num_steps=30)
      self.assertEqual(got, [29])

  def test_warm_up_has_the_interval_that_comes_after_it(self):
    def rate(step):
      return min(0.1, 0.01 * (step + 1))

    arguments = {'alpha': 0.2, 'base_period': 1, 'num_steps': 20}
    self.assertEqual(
      qsr_steps(rate, warmup_steps=10, **arguments), [3, 7, 11, 15, 19]
    )
    self.assertEqual(qsr_steps(rate, **arguments)[0], 19)

  @parameterized.parameters(
    ({'learning_rate': 0.1}, 'learning_rate must be a function of the step'),
    ({'learning_rate': lambda s: -1.0}, 'must be >= 0, got -1.0 at step 0'),
    ({'learning_rate': lambda s: np.nan}, 'must be >= 0, got nan at step 0'),
    ({'alpha': 0}, 'alpha must be > 0, got 0'),
    ({'base_period': 0}, 'base_period must be an integer >= 1, got 0'),
    ({'num_steps': 2.5}, 'num_steps must be an integer >= 1, got 2.5'),
    ({'warmup_steps': -1}, 'warmup_steps must be an integer >= 0, got -1'),
  )
  def test_refused(self, wrong, message):
    good = {
      'learning_rate': lambda s: 0.1,
      'alpha': 0.2,
      'base_period': 2,
      'num_steps': 10,
    }
    with self.assertRaisesRegex(ValueError, message):
      pr.schedules.qsr(**{**good, **wrong})


class TheoryScheduleTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 8)
  def test_epoch_lengths(self, n):
    # K = max(1, floor(s^(1/3) / N)), in integers: (K N)^3 <= s < ((K + 1) N)^3.
    lengths = pr.schedules.theory_schedule(n, 5000).epoch_lengths
    self.assertLen(lengths, 5000)
    for s, k in enumerate(lengths, start=1):
      self.assertLess(s, ((k + 1) * n) ** 3)
      if k > 1:
        self.assertGreaterEqual(s, (k * n) ** 3)

  @parameterized.product(n=(1, 2, 8), num_steps=(1, 7, 511, 512, 4095, 40_000))
  def test_epochs_that_cover_a_run(self, n, num_steps):
    epochs = pr.schedules.theory_epochs(n, num_steps)
    lengths = pr.schedules.theory_schedule(n, epochs).epoch_lengths
    self.assertGreaterEqual(sum(lengths), num_steps)
    self.assertLess(sum(lengths[:-1]), num_steps)

  def test_the_slides_would_have_empty_epochs(self):
    # N = 8: floor(s^(1/3) / N) = 0 in the first 511 epochs, then 1 up to 16^3.
    lengths = pr.schedules.theory_schedule(8, 16**3).epoch_lengths
    self.assertEqual(lengths, (1,) * (16**3 - 1) + (2,))

  @parameterized.parameters(1.0, 7.5)
  def test_learning_rate_of_every_step(self, smoothness):
    n = 2
    theory = pr.schedules.theory_schedule(n, 300, smoothness=smoothness)
    want = [
      min(1 / smoothness, n / s ** (2 / 3))
      for s, k in enumerate(theory.epoch_lengths, start=1)
      for _ in range(k)
    ]
    want += want[-1:] * 20  # because the last rate remains
    steps = np.arange(len(want))
    got = theory.learning_rate(steps)
    np.testing.assert_allclose(got, want, rtol=1e-14)
    self.assertLess(max(want), 1 / smoothness + 1e-15)
    self.assertGreater(len(set(want)), 100)
    traced = jax.jit(jax.vmap(theory.learning_rate))(jnp.asarray(steps))
    self.assertEqual(traced.dtype, jnp.float32)
    np.testing.assert_allclose(traced, want, rtol=1e-6)
    self.assertEqual(float(theory.learning_rate(5)), got[5])

  def test_averages_end_the_epochs_of_the_learning_rate(self):
    # The clock of Algorithm 2: gamma changes in the step after an average.
    theory = pr.schedules.theory_schedule(1, 200)
    ends = pr.schedules.intervals(theory.epoch_lengths)
    steps = np.arange(sum(theory.epoch_lengths))
    rate = theory.learning_rate(steps)
    changed = 1 + np.flatnonzero(np.diff(rate))
    self.assertTrue(ends(changed - 1).all())
    self.assertEqual(ends(steps).sum(), 200)

  @parameterized.parameters(
    ((0, 5), {}, 'num_replicas must be an integer >= 1, got 0'),
    ((2, 1.5), {}, 'num_epochs must be an integer >= 1, got 1.5'),
    ((2, 5), {'smoothness': 0}, 'smoothness must be > 0, got 0'),
    ((2, 5), {'smoothness': np.nan}, 'smoothness must be > 0, got nan'),
  )
  def test_refused(self, arguments, keywords, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.schedules.theory_schedule(*arguments, **keywords)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -3, 2.0, True, None, '4', np.float64(3))
  def test_periods_are_positive_integers(self, period):
    with self.assertRaisesRegex(
      ValueError, 'period must be an integer >= 1, got '
    ):
      pr.schedules.every(period)
    with self.assertRaisesRegex(
      ValueError, 'period must be an integer >= 1, got '
    ):
      pr.schedules.post_local(3, period=period)

  @parameterized.parameters(-1, 1.5, None)
  def test_switch_step_is_not_negative(self, switch_step):
    with self.assertRaisesRegex(
      ValueError, f'switch_step must be an integer >= 0, got {switch_step}'
    ):
      pr.schedules.post_local(switch_step, period=2)

  @parameterized.parameters(
    (
      lambda: pr.schedules.after(-1, pr.schedules.every(2)),
      'start_step must be an integer >= 0',
    ),
    (
      lambda: pr.schedules.after(True, pr.schedules.every(2)),
      'start_step must be .*got True',
    ),
    (lambda: pr.schedules.after(1, 4), 'after expects a schedule .* got 4'),
    (
      lambda: pr.schedules.intervals([]),
      'lengths must have at least one .*got none',
    ),
    (
      lambda: pr.schedules.intervals([2, 0]),
      'lengths must be an integer >= 1, got 0',
    ),
    (lambda: pr.schedules.doubling(0, num_steps=9), 'first must be .* got 0'),
    (
      lambda: pr.schedules.doubling(1, num_steps=0),
      'num_steps must be .* got 0',
    ),
    (
      lambda: pr.schedules.doubling(1, num_steps=9, rounds_each=0),
      'rounds_each must be .* got 0',
    ),
    (
      lambda: pr.schedules.linear_growth(1, increment=0, num_steps=9),
      'increment must be an integer >= 1, got 0',
    ),
    (
      lambda: pr.schedules.linear_growth(1.5, increment=1, num_steps=9),
      'first must be an integer >= 1, got 1.5',
    ),
    (
      lambda: pr.schedules.with_probability(1.5, num_steps=9),
      r'probability must be in \[0, 1\], got 1.5',
    ),
    (
      lambda: pr.schedules.with_probability(0.5, num_steps=-9),
      'num_steps must be .* got -9',
    ),
  )
  def test_refused(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_any_of_something(self):
    with self.assertRaisesRegex(ValueError, 'at least one schedule, got none'):
      pr.schedules.any_of()


if __name__ == '__main__':
  absltest.main()

"""WHEN replicas communicate: pure functions from the step to a bool.

A schedule is plain arithmetic. The training program calls it with a traced
step; the ledger calls it with a NumPy array of steps. Steps are 0-based:
`every(4)` fires at steps 3, 7, 11, which papers write as t = 4, 8, 12.

Coin flips, and intervals that follow a learning rate, are not arithmetic. They
are computed in advance for the `num_steps` of a run, into a table of bounded
size.

A run has at most 2^31 - 1 steps, because traced steps are int32. A schedule
that would first fire later never fires, in the program and in the ledger.
"""

from collections.abc import Callable, Iterable, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Schedule, Step
from prsgd_jax.checks import (
  MAX_STEPS,
  check_length,
  check_listed,
  check_positive,
  check_positive_int,
  check_positive_ints,
  check_probability,
  check_schedule,
  check_seed,
  check_step,
)

__all__ = (
  'TheorySchedule',
  'after',
  'always',
  'any_of',
  'at_steps',
  'doubling',
  'every',
  'intervals',
  'linear_growth',
  'never',
  'post_local',
  'qsr',
  'rounds',
  'starts',
  'theory_epochs',
  'theory_schedule',
  'with_probability',
)

# Maximum number of entries in a table, which the compiled program contains.
MOST_LISTED = 2**24
# Maximum number of calls of a learning rate before the run.
MOST_RATES = 2**17
# Number of random numbers that are in memory at once.
DRAWN = 2**16


def always() -> Schedule:
  """Return the schedule that fires at every step.

  It is known while tracing, so no conditional is compiled.

  Example:
    >>> import numpy as np
    >>> always()(np.arange(3)).tolist()
    [True, True, True]
  """
  return lambda step: np.ones(np.shape(step), bool)


def never() -> Schedule:
  """Return the schedule that never fires.

  It is known while tracing, so the stages under it are not compiled.

  Example:
    >>> import numpy as np
    >>> never()(np.arange(3)).tolist()
    [False, False, False]
  """
  return lambda step: np.zeros(np.shape(step), bool)


def every(period: int) -> Schedule:
  """Return the schedule that fires once a period: t mod I = 0, t = step + 1.

  Args:
    period: I, in steps, >= 1. A period above 2^31 - 1 never fires, because no
      run has more steps.

  Raises:
    ValueError: if `period` is not an integer >= 1.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(every(4)(np.arange(12))).tolist()
    [3, 7, 11]
  """
  period = check_positive_int('period', period)
  if period == 1:
    return always()
  if period > MAX_STEPS:
    return never()
  return lambda step: (step + 1) % period == 0


def rounds(period: int | Schedule) -> Schedule:
  """Return the schedule of the ends of rounds.

  Args:
    period: length of a round in steps, an integer >= 1; or a schedule, such as
      `doubling(4, num_steps=1000)`, which is returned as it is.

  Raises:
    ValueError: if `period` is not a schedule or an integer >= 1.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(rounds(4)(np.arange(12))).tolist()
    [3, 7, 11]
  """
  return period if callable(period) else every(period)


def starts(ends: Schedule) -> Schedule:
  """Return the schedule of the first steps of rounds.

  Args:
    ends: the schedule of the last steps of rounds.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(starts(every(4))(np.arange(12))).tolist()
    [0, 4, 8]
  """

  def schedule(step: Step) -> jax.Array | np.ndarray:
    before = ends(_not_negative(step - 1))
    # Rounds of one step are known while tracing: return NumPy, so that no
    # conditional is compiled.
    if not isinstance(before, jax.Array) and np.all(before):
      return before
    return (step == 0) | before

  return schedule


def at_steps(steps: Sequence[int] | np.ndarray) -> Schedule:
  """Return the schedule that fires at the given steps.

  The steps are a constant of the compiled program: a table with one byte for
  each step up to the last. If the last step is 2^24 or later, the constant is a
  sorted list, which is searched.

  Args:
    steps: 0-based steps in any order, at most 2^24.

  Raises:
    ValueError: if an element is not an integer >= 0, or if there are more than
      2^24.

  Example:
    >>> import numpy as np
    >>> at_steps([1, 5])(np.arange(6)).tolist()
    [False, True, False, False, False, True]
  """
  if not isinstance(steps, np.ndarray):
    # Drop these first, because NumPy makes no integer array beyond int64.
    given = check_listed('at_steps(steps)', steps)
    steps = [step for step in given if not _is_beyond(step)]
  listed = np.asarray(steps)
  if listed.size and (
    not np.issubdtype(listed.dtype, np.integer) or listed.min() < 0
  ):
    raise ValueError(
      f'at_steps(steps) expects integers >= 0, got {_short(steps)}'
    )
  within = np.unique(listed[listed < MAX_STEPS])
  _check_listed('steps', within.size)
  if within.max(initial=-1) >= MOST_LISTED:
    return _searched(within.astype(np.int32))
  # The additional last entry, False, serves all later steps.
  table = np.zeros(int(within.max(initial=-1)) + 2, bool)
  table[within.astype(int)] = True
  return _looked_up(table)


def _looked_up(table: np.ndarray) -> Schedule:
  """Return the schedule of a bool[n], n > 0, whose last entry continues."""

  def schedule(step: Step) -> jax.Array | np.ndarray:
    if isinstance(step, jax.Array):
      return jnp.asarray(table)[jnp.minimum(step, table.size - 1)]
    return table[np.minimum(step, table.size - 1)]

  return schedule


def _searched(listed: np.ndarray) -> Schedule:
  """Return the schedule that fires at the steps of a sorted int32[n], n > 0."""
  last = listed.size - 1

  def schedule(step: Step) -> jax.Array | np.ndarray:
    if isinstance(step, jax.Array):
      table = jnp.asarray(listed)
      return table[jnp.minimum(jnp.searchsorted(table, step), last)] == step
    found = np.minimum(np.searchsorted(listed, step), last)
    return listed[found] == np.asarray(step)

  return schedule


def _is_beyond(step: object) -> bool:
  return isinstance(step, int | np.integer) and int(step) >= MAX_STEPS


def _short(values: object) -> str:
  """Return a value as text of bounded length, for a message."""
  text = repr(values)
  return text if len(text) < 80 else f'{text[:60]} ...'


def _check_listed(name: str, count: int) -> None:
  if count > MOST_LISTED:
    raise ValueError(
      f'{name} would have more than 2**24 = {MOST_LISTED} entries, the maximum '
      'in a compiled program; use longer periods or fewer steps, or a '
      'schedule that is arithmetic, such as pr.schedules.every(4)'
    )


def latest(schedule: Schedule) -> Callable[[np.ndarray], np.ndarray]:
  """Return a function that finds when a schedule last fired.

  The function runs on the host and looks back no further than needed. It
  remembers its answer for the last step of a call, because the ledger asks for
  one part of a run after the other.

  Args:
    schedule: the schedule, called with NumPy arrays.

  Returns:
    `int[n] -> int[n]`, from steps in any order to the latest step so far at
    which the schedule fired; 0 before the first.

  Example:
    >>> import numpy as np
    >>> latest(every(4))(np.array([2, 3, 6, 9])).tolist()
    [0, 3, 3, 7]
  """
  remembered = (-1, 0)  # a step, and the answer for it

  def find(steps: np.ndarray) -> np.ndarray:
    nonlocal remembered
    asked, place = np.unique(np.asarray(steps, int), return_inverse=True)
    if not len(asked):
      return np.zeros(np.shape(steps), int)
    found = np.zeros(len(asked), int)
    before, known = remembered if remembered[0] < asked[0] else (-1, 0)
    cuts = np.flatnonzero(np.diff(asked) > 1) + 1
    begin = 0
    for part in np.split(asked, cuts):
      first = _fired(schedule, before + 1, int(part[0]), known)
      fires = np.broadcast_to(np.asarray(schedule(part), bool), part.shape)
      own = np.maximum(np.where(fires, part, 0), first)
      found[begin : begin + len(part)] = np.maximum.accumulate(own)
      begin += len(part)
      before, known = int(part[-1]), int(found[begin - 1])
    remembered = (before, known)
    return found[place].reshape(np.shape(steps))

  return find


def _fired(schedule: Schedule, begin: int, end: int, known: int) -> int:
  """Return the last of the steps begin .. end - 1 that fires, or `known`."""
  size = 64
  while end > begin:
    window = np.arange(max(begin, end - size), end)
    fires = np.broadcast_to(np.asarray(schedule(window), bool), window.shape)
    if fires.any():
      return int(window[fires][-1])
    end, size = int(window[0]), min(2 * size, 2**20)
  return known


def after(start_step: int, schedule: Schedule) -> Schedule:
  """Return the schedule shifted so that its step 0 is `start_step`.

  Args:
    start_step: the first step of the schedule, >= 0. It never fires before.
    schedule: the schedule to shift.

  Raises:
    ValueError: if `start_step` is not an integer >= 0, or if `schedule` is not
      a schedule.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(after(5, every(4))(np.arange(16))).tolist()
    [8, 12]
  """
  start_step = check_step('start_step', start_step)
  check_schedule('after', schedule)
  if start_step > MAX_STEPS:
    return never()

  def shifted(step: Step) -> jax.Array | np.ndarray:
    begun = step >= start_step
    return begun & schedule(_not_negative(step - start_step))

  return shifted


def intervals(lengths: Sequence[int]) -> Schedule:
  """Return the schedule that fires at the end of each of the intervals.

  Args:
    lengths: K^1, K^2, ..., the steps from one average to the next, >= 1. The
      last interval repeats.

  Raises:
    ValueError: if `lengths` is empty, or if a length is not an integer >= 1.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(intervals([1, 3, 4])(np.arange(16))).tolist()
    [0, 3, 7, 11, 15]
  """
  ends = _ends(lengths)
  if ends[-1] > MAX_STEPS:
    return at_steps([end - 1 for end in ends])
  last = ends[-1] - (ends[-2] if len(ends) > 1 else 0)
  every_last = after(ends[-1], every(last))
  return any_of(at_steps([end - 1 for end in ends]), every_last)


def doubling(first: int, *, num_steps: int, rounds_each: int = 1) -> Schedule:
  """Return the schedule with intervals H, 2 H, 4 H, ...

  Args:
    first: H, steps before the first average, >= 1.
    num_steps: T, the steps during which the intervals grow. After them, the
      interval reached repeats.
    rounds_each: number of averages after which the interval doubles. Default:
      1.

  Raises:
    ValueError: if an argument is not an integer >= 1.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(doubling(1, num_steps=16)(np.arange(16))).tolist()
    [0, 2, 6, 14]
  """
  first = check_positive_int('first', first)
  rounds_each = check_positive_int('rounds_each', rounds_each)
  num_steps = check_positive_int('num_steps', num_steps)
  _check_listed('intervals', min(rounds_each, num_steps // first))
  lengths = (first * 2 ** (i // rounds_each) for i in itertools.count())
  return intervals(_until(num_steps, lengths))


def linear_growth(first: int, *, increment: int, num_steps: int) -> Schedule:
  """Return the schedule with intervals H, H + a, H + 2 a, ...

  Args:
    first: H, steps before the first average, >= 1.
    increment: a, steps by which each interval is longer than the previous one,
      >= 1.
    num_steps: T, the steps during which the intervals grow. After them, the
      interval reached repeats.

  Raises:
    ValueError: if an argument is not an integer >= 1.

  Example:
    >>> import numpy as np
    >>> schedule = linear_growth(1, increment=2, num_steps=16)
    >>> np.flatnonzero(schedule(np.arange(16))).tolist()
    [0, 3, 8, 15]
  """
  first = check_positive_int('first', first)
  increment = check_positive_int('increment', increment)
  return intervals(_until(num_steps, itertools.count(first, increment)))


def with_probability(
  probability: float, *, num_steps: int, seed: int = 0
) -> Schedule:
  """Return the schedule that fires at each step with probability zeta.

  NumPy draws all steps in advance, so that the ledger knows the communication
  before the run. All replicas use one draw.

  Args:
    probability: zeta, the probability of an average at a step, in [0, 1].
    num_steps: T, the number of draws, at most 2^24. After them, the draws
      repeat.
    seed: seed of the draws, an integer in 0 .. 2^32 - 1. Default: 0.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import numpy as np
    >>> with_probability(1.0, num_steps=3)(np.arange(3)).tolist()
    [True, True, True]

  Reference:
    Zhang, De Sa, Mitliagkas, Re 2016, Parallel SGD: when does averaging help?
    (arXiv 1606.07365).
  """
  probability = check_probability('probability', probability)
  num_steps = check_positive_int('num_steps', num_steps)
  if num_steps > MOST_LISTED:
    raise ValueError(
      f'with_probability draws at most 2**24 = {MOST_LISTED} steps, got '
      f'num_steps={num_steps}; give fewer, because the draws repeat'
    )
  seed = check_seed('seed', seed)
  draw = np.random.default_rng(seed)
  tosses = np.empty(num_steps, bool)
  # In parts, because a draw is eight times as large as what is kept of it.
  for first in range(0, num_steps, DRAWN):
    part = tosses[first : first + DRAWN]
    # Uniform in [0, 1), so that probability 0 never fires and 1 always does.
    part[:] = draw.random(part.size) < probability
  fires = _looked_up(tosses)
  return lambda step: fires(step % num_steps)


def qsr(
  learning_rate: Callable[[int], Any],
  *,
  alpha: float,
  base_period: int,
  num_steps: int,
  warmup_steps: int = 0,
) -> Schedule:
  """Return the quadratic synchronization rule (QSR).

    H = max(H_base, floor((alpha / eta)^2))

  H is chosen after each average, from the learning rate of the next step. The
  last interval is shortened, so that the run ends with an average.

  Args:
    learning_rate: eta, the function of the 0-based step that is given to `tx`.
    alpha: the growth coefficient, > 0.
    base_period: H_base, the shortest interval in steps, >= 1.
    num_steps: T, the length of the run in steps. Later steps have no averages.
    warmup_steps: number of steps in which the learning rate rises. During them,
      H is computed from the learning rate just after them. Default: 0.

  Raises:
    ValueError: if an argument is out of its range, if `learning_rate` is not a
      function or is negative at a step, or if the run would have more than 2^17
      averages.

  Example:
    >>> import numpy as np
    >>> rule = qsr(lambda step: 0.5, alpha=1.0, base_period=2, num_steps=8)
    >>> np.flatnonzero(rule(np.arange(8))).tolist()
    [3, 7]

  Reference:
    Gu, Lyu, Arora, Zhang, Huang 2024, A quadratic synchronization rule for
    distributed deep learning (arXiv 2310.14423), Algorithm 2. Not verified in
    the paper: the treatment of warm-up and of the last interval, and the number
    of the algorithm.
  """
  if not callable(learning_rate):
    raise ValueError(
      'learning_rate must be a function of the step such as '
      f'optax.cosine_decay_schedule(0.1, 1000), got {learning_rate!r}'
    )
  alpha = check_positive('alpha', alpha)
  base_period = check_positive_int('base_period', base_period)
  num_steps = check_length('num_steps', num_steps)
  warmup_steps = check_step('warmup_steps', warmup_steps)
  ends: list[int] = []
  done = 0
  while done < num_steps:
    eta = float(learning_rate(max(done, warmup_steps)))
    if not eta >= 0:
      raise ValueError(f'learning_rate must be >= 0, got {eta} at step {done}')
    # The whole run if eta is 0 or tiny. The factor 1 + 1e-6 below is there
    # because a learning rate in single precision may just miss an integer.
    longest = (alpha / eta) ** 2 if eta * num_steps > alpha else num_steps
    if len(ends) == MOST_RATES:
      raise ValueError(
        f'qsr would have more than 2**17 = {MOST_RATES} averages in '
        f'num_steps={num_steps}, and calls learning_rate once for each before '
        'the run; use a longer base_period, a larger alpha or fewer steps'
      )
    period = max(base_period, int(longest * (1 + 1e-6)))
    done = min(done + period, num_steps)
    ends.append(done)
  return at_steps(np.array(ends) - 1)


def post_local(switch_step: int, period: int) -> Schedule:
  """Return the schedule of post-local SGD: every step, then once a period.

  Post-local SGD (Lin et al. 2018, arXiv 1808.07217) is synchronous for the
  first t' steps. After them, it averages after every H local steps.

  Args:
    switch_step: t', the number of synchronous steps, >= 0.
    period: H, the period after them in steps, >= 1.

  Raises:
    ValueError: if `period` is not an integer >= 1, or if `switch_step` is
      negative.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(post_local(3, period=4)(np.arange(12))).tolist()
    [0, 1, 2, 6, 10]
  """
  switch_step = check_step('switch_step', switch_step)
  local = after(switch_step, every(period))
  if switch_step > MAX_STEPS:
    return always()
  return lambda step: (step < switch_step) | local(step)


def any_of(*schedules: Schedule) -> Schedule:
  """Return the schedule that fires when any of the given schedules fires.

  Args:
    *schedules: at least one schedule.

  Raises:
    ValueError: if no schedule is given.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(any_of(every(2), every(3))(np.arange(6))).tolist()
    [1, 2, 3, 5]
  """
  if not schedules:
    raise ValueError('any_of expects at least one schedule, got none')

  def schedule(step: Step) -> jax.Array | np.ndarray:
    fires = schedules[0](step)
    for other in schedules[1:]:
      fires = fires | other(step)
    return fires

  return schedule


class TheorySchedule(NamedTuple):
  """Schedule of Algorithm 2, for `pr_sgd_time_varying` and its optimizer.

  Attributes:
    epoch_lengths: K^s, local steps in epoch s = 1 .. S.
    learning_rate: gamma^s, as a function of the 0-based step.
  """

  epoch_lengths: tuple[int, ...]
  learning_rate: Callable[[Step], Any]


def theory_schedule(
  num_replicas: int, num_epochs: int, *, smoothness: float = 1.0
) -> TheorySchedule:
  """Return the growing epochs and shrinking rates of the theory of PR-SGD.

    K^s = max(1, floor(s^(1/3) / N)),  gamma^s = min(1 / L, N / s^(2/3))

  Args:
    num_replicas: N, >= 1.
    num_epochs: S, in 1 .. 2^24. After the last epoch, its K and gamma continue.
    smoothness: L, the Lipschitz constant of the gradient, > 0. Default: 1.

  Returns:
    The lengths K^s of the epochs and the learning rate gamma^s.

  Raises:
    ValueError: if an argument is out of its range.

  Differences from the paper:
    The authors' slides have neither the max nor the min. Without the max, the
    N^3 - 1 epochs s < N^3 would be empty. Without the min, the first steps
    would be as long as N, but the theorems require gamma <= 1 / L.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> theory = pr.schedules.theory_schedule(num_replicas=2, num_epochs=100)
    >>> algorithm = pr.pr_sgd_time_varying(
    ...     optax.sgd(theory.learning_rate), epoch_lengths=theory.epoch_lengths)

  Reference:
    Yu, Yang, Zhu 2019, Parallel restarted SGD with faster convergence and less
    communication (arXiv 1807.06629), Algorithm 2 and its theorem.
  """
  n = check_positive_int('num_replicas', num_replicas)
  num_epochs = check_positive_int('num_epochs', num_epochs)
  _check_listed('epochs', num_epochs)
  smoothness = check_positive('smoothness', smoothness)
  s = np.arange(1, num_epochs + 1)
  root = np.rint(np.cbrt(s)).astype(int)
  root -= root**3 > s  # an exact floor, because floats may miss cubes
  lengths = np.maximum(1, root // n)
  ends = np.minimum(np.cumsum(lengths), MAX_STEPS).astype(np.int32)
  gamma = np.minimum(1 / smoothness, n / np.cbrt(s) ** 2)

  def learning_rate(step: Step) -> jax.Array | np.ndarray:
    if isinstance(step, jax.Array):
      epoch = jnp.searchsorted(jnp.asarray(ends), step, side='right')
      return jnp.asarray(gamma)[jnp.minimum(epoch, num_epochs - 1)]
    index = np.searchsorted(ends, step, side='right')
    return gamma[np.minimum(index, num_epochs - 1)]

  return TheorySchedule(tuple(lengths.tolist()), learning_rate)


def theory_epochs(num_replicas: int, num_steps: int) -> int:
  """Return the number of epochs of `theory_schedule` that cover a run.

  Args:
    num_replicas: N, >= 1.
    num_steps: T, the length of the run in steps, >= 1.

  Raises:
    ValueError: if an argument is not an integer >= 1.

  Example:
    >>> theory_epochs(num_replicas=2, num_steps=100)
    82
    >>> sum(theory_schedule(2, 82).epoch_lengths)
    101
  """
  n = check_positive_int('num_replicas', num_replicas)
  left = check_positive_int('num_steps', num_steps)
  done, length = 0, 1
  while True:
    # The epochs s of this length are those below (N (K + 1))^3.
    count = (n * (length + 1)) ** 3 - 1 - done
    needed = -(-left // length)
    if needed <= count:
      return done + needed
    done, left, length = done + count, left - count * length, length + 1


def _not_negative(step: Step) -> jax.Array | np.ndarray:
  return (jnp if isinstance(step, jax.Array) else np).maximum(step, 0)


def _ends(lengths: Sequence[int]) -> list[int]:
  """Return the number of steps done at the end of each interval."""
  checked = check_positive_ints('lengths', lengths)
  if not checked:
    raise ValueError('lengths must have at least one interval, got none')
  return list(itertools.accumulate(checked))


def _until(num_steps: int, lengths: Iterable[int]) -> list[int]:
  """Return the shortest prefix of lengths that covers `num_steps`."""
  num_steps = check_positive_int('num_steps', num_steps)
  taken: list[int] = []
  total = 0
  for length in lengths:
    taken.append(length)
    _check_listed('intervals', len(taken))
    total += length
    if total >= num_steps:
      break
  return taken

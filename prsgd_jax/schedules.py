"""WHEN replicas communicate: pure functions from the step to a bool.

A schedule is arithmetic alone, so that it runs on a traced step inside the
training program and on a NumPy array of steps in the ledger alike. Steps are
0-based: `every(4)` fires at steps 3, 7, 11, the papers' t = 4, 8, 12.

What is not arithmetic (coin flips, intervals that follow a learning rate) is
computed beforehand for the `num_steps` of a run, into a table of bounded size.

A run has at most 2^31 - 1 steps, which are int32 where they are traced. A later
step is never reached: what would first fire there never does, on both sides.
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

# Entries of a table that is part of the compiled program.
MOST_LISTED = 2**24
# Learning rates that are asked for one by one.
MOST_RATES = 2**17


def always() -> Schedule:
  """At every step; known when tracing, so that no conditional is compiled."""
  return lambda step: np.ones(np.shape(step), bool)


def never() -> Schedule:
  """At no step; known when tracing, so that nothing is compiled."""
  return lambda step: np.zeros(np.shape(step), bool)


def every(period: int) -> Schedule:
  """At every `period`-th step: t mod I = 0 with t = step + 1.

  A period above 2^31 - 1, the steps that a run can have, never fires.

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
  """Returns the schedule of the ends of rounds.

  Args:
    period: steps of a round, an integer >= 1; or the schedule itself, such as
      `doubling(4, num_steps=1000)`.

  Raises:
    ValueError: if it is neither.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(rounds(4)(np.arange(12))).tolist()
    [3, 7, 11]
  """
  return period if callable(period) else every(period)


def starts(ends: Schedule) -> Schedule:
  """Returns the schedule of the first steps of rounds, from that of their ends.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(starts(every(4))(np.arange(12))).tolist()
    [0, 4, 8]
  """

  def schedule(step: Step) -> jax.Array | np.ndarray:
    before = ends(_not_negative(step - 1))
    # Rounds of one step: known when tracing, so that nothing is compiled.
    if not isinstance(before, jax.Array) and np.all(before):
      return before
    return (step == 0) | before

  return schedule


def at_steps(steps: Sequence[int] | np.ndarray) -> Schedule:
  """At the given 0-based steps and no others.

  They are a constant of the compiled program: a table of one byte for each step
  up to the last or, if that is 2^24 or later, a sorted list that is searched.

  Raises:
    ValueError: if `steps` has anything but integers >= 0, or more than 2^24 of
      them.
  """
  if not isinstance(steps, np.ndarray):
    # Beyond int64 they would not make an array of integers.
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
  # One entry more than the last step, False: where later steps are looked up.
  table = np.zeros(int(within.max(initial=-1)) + 2, bool)
  table[within.astype(int)] = True

  def schedule(step: Step) -> jax.Array | np.ndarray:
    if isinstance(step, jax.Array):
      return jnp.asarray(table)[jnp.minimum(step, table.size - 1)]
    return table[np.minimum(step, table.size - 1)]

  return schedule


def _searched(listed: np.ndarray) -> Schedule:
  """At the steps of a sorted list, int32[n] with n > 0."""
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
  """What came, in a message of bounded length."""
  text = repr(values)
  return text if len(text) < 80 else f'{text[:60]} ...'


def _check_listed(name: str, count: int) -> None:
  if count > MOST_LISTED:
    raise ValueError(
      f'{name} would have more than 2**24 = {MOST_LISTED} entries, which the '
      'compiled program holds; use longer periods or fewer steps, or a '
      'schedule that is arithmetic, such as pr.schedules.every(4)'
    )


def latest(schedule: Schedule, steps: np.ndarray) -> np.ndarray:
  """Returns for each step the last one, up to it, at which a schedule fires.

  It looks back no further than needed.

  Args:
    schedule: asked with NumPy arrays.
    steps: int[n] of any order, for the host.

  Returns:
    int[n]; 0 where the schedule has not fired yet.

  Example:
    >>> import numpy as np
    >>> latest(every(4), np.array([2, 3, 6, 9])).tolist()
    [0, 3, 3, 7]
  """
  asked, place = np.unique(np.asarray(steps, int), return_inverse=True)
  found = np.zeros(len(asked), int)
  cuts = np.flatnonzero(np.diff(asked) > 1) + 1
  begin, before = 0, -1  # the step before, whose answer is known
  for part in np.split(asked, cuts) if len(asked) else ():
    known = int(found[begin - 1]) if begin else 0
    first = _fired(schedule, before + 1, int(part[0]), known)
    fires = np.broadcast_to(np.asarray(schedule(part), bool), part.shape)
    own = np.maximum(np.where(fires, part, 0), first)
    found[begin : begin + len(part)] = np.maximum.accumulate(own)
    begin, before = begin + len(part), int(part[-1])
  return found[place].reshape(np.shape(steps))


def _fired(schedule: Schedule, begin: int, end: int, known: int) -> int:
  """The last of the steps begin .. end - 1 that fires, else `known`."""
  size = 64
  while end > begin:
    window = np.arange(max(begin, end - size), end)
    fires = np.broadcast_to(np.asarray(schedule(window), bool), window.shape)
    if fires.any():
      return int(window[fires][-1])
    end, size = int(window[0]), min(2 * size, 2**20)
  return known


def after(start_step: int, schedule: Schedule) -> Schedule:
  """The schedule with `start_step` for its step 0; never before.

  Raises:
    ValueError: if `start_step` is not an integer >= 0, or `schedule` no
      schedule.

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
  """After each of the given numbers of steps, the last of which repeats.

  Args:
    lengths: K^1, K^2, ..., steps from one average to the next.

  Raises:
    ValueError: if there are no lengths, or one is not an integer >= 1.

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
  """Intervals H, 2 H, 4 H, ..., each of them `rounds_each` times.

  The interval reached at `num_steps` repeats from there on.

  Args:
    first: H, steps before the first average.
    num_steps: T, how far the intervals grow.
    rounds_each: averages after which the interval doubles.

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
  """Intervals H, H + a, H + 2 a, ...

  The interval reached at `num_steps` repeats from there on.

  Args:
    first: H, steps before the first average.
    increment: a, by which each interval is longer than the one before.
    num_steps: T, how far the intervals grow.

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
  """At each step with probability zeta, the same for all replicas.

  The coins are tossed here, by NumPy, so that what a run will send is known
  before it; after `num_steps` the same tosses begin again.

  Args:
    probability: zeta, of an average at a step.
    num_steps: T, the number of tosses, at most 2^24.
    seed: of the tosses, an integer in 0 .. 2^32 - 1.

  Raises:
    ValueError: if an argument is out of its range.

  Reference:
    Zhang, De Sa, Mitliagkas, Re 2016, Parallel SGD: when does averaging help?
    (arXiv 1606.07365).
  """
  probability = check_probability('probability', probability)
  num_steps = check_positive_int('num_steps', num_steps)
  if num_steps > MOST_LISTED:
    raise ValueError(
      f'with_probability tosses at most 2**24 = {MOST_LISTED} coins, got '
      f'num_steps={num_steps}; give fewer, which begin again after the last'
    )
  seed = check_seed('seed', seed)
  # Uniform in [0, 1): never for 0, always for 1.
  tosses = np.random.default_rng(seed).random(num_steps) < probability
  fires = at_steps(np.flatnonzero(tosses))
  return lambda step: fires(step % num_steps)


def qsr(
  learning_rate: Callable[[int], Any],
  *,
  alpha: float,
  base_period: int,
  num_steps: int,
  warmup_steps: int = 0,
) -> Schedule:
  """The quadratic synchronization rule: H = max(H_base, floor((alpha/eta)^2)).

  H is chosen only just after an average, from the learning rate of the step
  that comes next. The last interval is cut, so that the run ends with an
  average; after it there are none.

  Args:
    learning_rate: eta, a function of the 0-based step: the one given to `tx`.
    alpha: the growth coefficient.
    base_period: H_base, the shortest interval.
    num_steps: T, the length of the run.
    warmup_steps: steps in which the learning rate rises; until then the H of
      the step just after them is used.

  Raises:
    ValueError: if `learning_rate` is no function or below 0 somewhere, `alpha`
      is not above 0, or another argument is not an integer of at least 1 (of
      at least 0 for `warmup_steps`), or there would be more than 2^17 averages.

  Reference:
    Gu, Lyu, Arora, Zhang, Huang 2024, A quadratic synchronization rule for
    distributed deep learning (arXiv 2310.14423), Algorithm 2. What is done
    during warm-up and with the last interval was not verified in the paper, nor
    was the number of the algorithm.
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
    # The whole run where eta is 0, or next to it. A millionth more, so that a
    # learning rate in single precision does not miss an integer.
    longest = (alpha / eta) ** 2 if eta * num_steps > alpha else num_steps
    if len(ends) == MOST_RATES:
      raise ValueError(
        f'qsr would have more than 2**17 = {MOST_RATES} averages in '
        f'num_steps={num_steps}, each with a call of learning_rate before the '
        'run; use a longer base_period, a larger alpha or fewer steps'
      )
    period = max(base_period, int(longest * (1 + 1e-6)))
    done = min(done + period, num_steps)
    ends.append(done)
  return at_steps(np.array(ends) - 1)


def post_local(switch_step: int, period: int) -> Schedule:
  """At every step before `switch_step`, then at every `period`-th one.

  Post-local SGD (Lin et al. 2018, arXiv 1808.07217): synchronous until t' steps
  are done, then an average after every H local steps counted from there.

  Raises:
    ValueError: if `period` is not an integer >= 1 or `switch_step` is negative.

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
  """At the steps at which any of the schedules fires.

  Raises:
    ValueError: if no schedule is given.
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
  """Algorithm 2's choices, for `pr_sgd_time_varying` and its optimizer.

  Attributes:
    epoch_lengths: K^s, local steps in epoch s = 1 .. S.
    learning_rate: gamma^s, as a function of the engine's 0-based step.
  """

  epoch_lengths: tuple[int, ...]
  learning_rate: Callable[[Step], Any]


def theory_schedule(
  num_replicas: int, num_epochs: int, *, smoothness: float = 1.0
) -> TheorySchedule:
  """Epochs that grow and steps that shrink, as the theory of PR-SGD has them.

  K^s = max(1, floor(s^(1/3) / N)), gamma^s = min(1 / L, N / s^(2/3)).

  The authors' slides have neither the max nor the min. Without the first, the
  N^3 - 1 epochs s < N^3 would be empty; without the second, the first steps
  would be as long as N, where the theorems want gamma <= 1 / L. In the steps
  after the last epoch its K and gamma remain.

  Args:
    num_replicas: N.
    num_epochs: S, at most 2^24.
    smoothness: L, the Lipschitz constant of the gradient.

  Raises:
    ValueError: if a number is not an integer >= 1 or `smoothness` not above 0.

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
  root -= root**3 > s  # the floor, also of cubes, which floats may miss
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


def _not_negative(step: Step) -> jax.Array | np.ndarray:
  return (jnp if isinstance(step, jax.Array) else np).maximum(step, 0)


def _ends(lengths: Sequence[int]) -> list[int]:
  """The steps done when each of the intervals ends."""
  checked = check_positive_ints('lengths', lengths)
  if not checked:
    raise ValueError('lengths must have at least one interval, got none')
  return list(itertools.accumulate(checked))


def _until(num_steps: int, lengths: Iterable[int]) -> list[int]:
  """The first lengths, whose sum is `num_steps` or more."""
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

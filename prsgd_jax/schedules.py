"""WHEN replicas communicate: pure functions from the step to a bool.

A schedule is arithmetic alone, so that it runs on a traced step inside the
training program and on a NumPy array of steps in the ledger alike. Steps are
0-based: `every(4)` fires at steps 3, 7, 11, the papers' t = 4, 8, 12.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Schedule, Step, check_positive_int


def always() -> Schedule:
  """At every step; known when tracing, so that no conditional is compiled."""
  return lambda step: np.ones(np.shape(step), bool)


def never() -> Schedule:
  """At no step; known when tracing, so that nothing is compiled."""
  return lambda step: np.zeros(np.shape(step), bool)


def every(period: int) -> Schedule:
  """At every `period`-th step: t mod I = 0 with t = step + 1.

  Raises:
    ValueError: if `period` is not an integer >= 1.

  Example:
    >>> import numpy as np
    >>> np.flatnonzero(every(4)(np.arange(12))).tolist()
    [3, 7, 11]
  """
  period = check_positive_int('period', period)
  return lambda step: (step + 1) % period == 0


def at(steps: Sequence[int]) -> Schedule:
  """At the given 0-based steps and no others.

  The table of steps is a constant of the compiled program, one byte for each
  step up to the last.

  Raises:
    ValueError: if `steps` has anything but integers >= 0.
  """
  listed = np.asarray(steps)
  if listed.size and (
    not np.issubdtype(listed.dtype, np.integer) or listed.min() < 0
  ):
    raise ValueError(f'at(steps) expects integers >= 0, got {steps!r}')
  # One entry more than the last step, False: where later steps are looked up.
  table = np.zeros(int(listed.max(initial=-1)) + 2, bool)
  table[listed.astype(int)] = True

  def schedule(step: Step) -> jax.Array | np.ndarray:
    if isinstance(step, jax.Array):
      return jnp.asarray(table)[jnp.minimum(step, table.size - 1)]
    return table[np.minimum(step, table.size - 1)]

  return schedule


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
  period = check_positive_int('period', period)
  if switch_step != 0:
    switch_step = check_positive_int('switch_step', switch_step)
  return lambda step: (
    (step < switch_step) | ((step - switch_step + 1) % period == 0)
  )


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

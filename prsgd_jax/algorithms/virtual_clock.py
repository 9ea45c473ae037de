"""VIRTUAL CLOCK: asynchronous replicas, simulated in ticks.

A step of the engine is one tick. A gradient (or a round) of replica i takes D_i
ticks: it begins at ticks 0, D_i, 2 D_i, ... and ends at ticks D_i - 1,
2 D_i - 1, ... No replica waits for a slower one, so slow replicas apply old
gradients. The run is a function of the step and the keys. So it can be repeated
and resumed, unlike a run on real clocks.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Schedule
from prsgd_jax.checks import MAX_STEPS, check_positive_int
from prsgd_jax.schedules import any_of, every
from prsgd_jax.stages.rules import Rule


def durations(speeds: Sequence[int]) -> tuple[int, ...]:
  """Return D_i = lcm(speeds) / speeds[i], the ticks of one unit of work.

  Args:
    speeds: int[N], units of work per unit of time, each >= 1.

  Raises:
    ValueError: if `speeds` is empty, if a speed is not an integer >= 1, or if
      the least common multiple is more than 2^31 - 1 ticks.

  Example:
    >>> durations((1, 2, 4))
    (4, 2, 1)
  """
  counts = [check_positive_int('speeds', s) for s in speeds]
  if not counts:
    raise ValueError('speeds must have one number per replica, got none')
  ticks = math.lcm(*counts)
  if ticks > MAX_STEPS:
    raise ValueError(
      f'speeds must have a least common multiple of at most {MAX_STEPS}, the '
      f'maximum number of steps in a run, got {ticks}; use smaller numbers'
    )
  return tuple(ticks // s for s in counts)


def begins(ticks: Sequence[int]) -> Rule:
  """Return the rule, for `where`, that replica i begins its work at this tick.

  Args:
    ticks: D_i, int[N], from `durations`.

  Raises:
    ValueError: from `init`, if the number of entries is not N.

  Example:
    >>> import numpy as np
    >>> rule = begins((1, 3))
    >>> rule.fn(step=np.arange(4)[:, None], replica=np.arange(2)).tolist()
    [[True, True], [True, False], [True, False], [True, True]]
  """
  return _rule(ticks, lambda step, own: step % own == 0)


def ends(ticks: Sequence[int]) -> Rule:
  """Return the rule, for `where`, that replica i ends its work at this tick.

  Args:
    ticks: D_i, int[N], from `durations`.

  Raises:
    ValueError: from `init`, if the number of entries is not N.

  Example:
    >>> import numpy as np
    >>> rule = ends((1, 3))
    >>> rule.fn(step=np.arange(4)[:, None], replica=np.arange(2)).tolist()
    [[True, False], [True, False], [True, True], [True, False]]
  """
  return _rule(ticks, lambda step, own: (step + 1) % own == 0)


def any_ends(ticks: Sequence[int]) -> Schedule:
  """Return the schedule of the ticks at which any replica ends its work.

  Example:
    >>> import numpy as np
    >>> any_ends((2, 3))(np.arange(6)).tolist()
    [False, True, True, True, False, True]
  """
  return any_of(*map(every, sorted(set(ticks))))


def _rule(ticks: Sequence[int], holds: Callable[[Any, Any], Any]) -> Rule:
  table = np.asarray(ticks, np.int32)

  def fn(step: Any, replica: Any) -> Any:
    # NumPy, because the ledger calls it with NumPy arrays.
    traced = isinstance(replica, jax.Array)
    return holds(step, (jnp.asarray(table) if traced else table)[replica])

  def check(num_replicas: int) -> None:
    if len(table) != num_replicas:
      raise ValueError(
        f'speeds must have one number for each of the {num_replicas} '
        f'replicas, got {len(table)}'
      )

  return Rule(fn, ('step', 'replica'), check)

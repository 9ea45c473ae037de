"""Checks of arguments, shared by all factories.

Each check returns the argument in its plain Python type, or raises a ValueError
that names what was expected, what came, and what to type instead.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np
import optax

from prsgd_jax.names import CLOCK
from prsgd_jax.tree_types import describe

# The largest int32, because compiled programs count steps and rounds in int32.
MAX_STEPS = 2**31 - 1


def check_positive_int(name: str, value: Any) -> int:
  """Return `value` as an int.

  Raises:
    ValueError: if it is not an integer >= 1.
  """
  if not _is_int(value) or value < 1:
    raise ValueError(f'{name} must be an integer >= 1, got {value!r}')
  return int(value)


def check_step(name: str, value: Any) -> int:
  """Return a number of steps as an int; 0 is allowed.

  Raises:
    ValueError: if it is not an integer >= 0.
  """
  if not _is_int(value) or value < 0:
    raise ValueError(f'{name} must be an integer >= 0, got {value!r}')
  return int(value)


def check_length(name: str, value: Any) -> int:
  """Return the length of a run or of one of its parts, in steps.

  Raises:
    ValueError: if it is not an integer in 1 .. 2^31 - 1, the maximum number of
      steps in a run.
  """
  if check_positive_int(name, value) > MAX_STEPS:
    raise ValueError(
      f'{name} must be at most 2**31 - 1 = {MAX_STEPS}, because steps are '
      f'counted in int32, got {value!r}'
    )
  return int(value)


def check_num_steps(value: Any) -> int:
  """Return the number of steps of a dispatch as an int; 0 is allowed.

  Raises:
    ValueError: if it is not an integer in 0 .. 2^31 - 1.
  """
  if check_step('num_steps', value):
    check_length('num_steps', value)
  return int(value)


def check_seed(name: str, value: Any) -> int:
  """Return a random seed as an int.

  Raises:
    ValueError: if it is not an integer in 0 .. 2^32 - 1.
  """
  if not _is_int(value) or not 0 <= value < 2**32:
    raise ValueError(
      f'{name} must be an integer in 0 .. 2**32 - 1, got {value!r}'
    )
  return int(value)


def check_positive_ints(name: str, values: Any) -> list[int]:
  """Return a list of integers >= 1.

  Raises:
    ValueError: if it is not a list, or if an element is not an integer >= 1.
  """
  return [check_positive_int(name, x) for x in check_listed(name, values)]


def check_listed(name: str, values: Any) -> list[Any]:
  """Return the elements of a list, a tuple or an array.

  Raises:
    ValueError: if the argument is not iterable, or is a string.
  """
  try:
    listed = None if isinstance(values, str) else list(values)
  except TypeError:  # raised by arrays without axes, too
    listed = None
  if listed is None:
    raise ValueError(f'{name} must be a list of numbers, got {values!r}')
  return listed


def check_bool(name: str, value: Any) -> bool:
  """Return a flag as a bool.

  Raises:
    ValueError: if it is not True or False.
  """
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f'{name} must be True or False, got {value!r}')
  return bool(value)


def check_number(
  name: str,
  value: Any,
  holds: Callable[[float], bool],
  expected: str,
  *,
  infinite: bool = False,
) -> float:
  """Return `value` as a float.

  Args:
    name: the name of the argument, for the message.
    value: the argument.
    holds: the condition that the value must meet.
    expected: the condition in words, such as '> 0'.
    infinite: whether infinity is allowed, for example as a threshold that is
      never reached. Default: False.

  Raises:
    ValueError: if it is not a number, is NaN or infinite, or `holds` is false
      for it.
  """
  is_number = isinstance(value, float | int | np.floating | np.integer)
  if not is_number or isinstance(value, bool):
    raise ValueError(f'{name} must be {expected}, got {value!r}')
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if math.isnan(number) or not holds(number):
    raise ValueError(f'{name} must be {expected}, got {value!r}')
  if math.isinf(number) and not infinite:
    raise ValueError(f'{name} must be {expected} and finite, got {value!r}')
  return number


def check_positive(name: str, value: Any) -> float:
  """Return a finite number > 0 as a float.

  Raises:
    ValueError: if it is not a finite number > 0.
  """
  return check_number(name, value, lambda x: x > 0, '> 0')


def check_not_negative(name: str, value: Any) -> float:
  """Return a finite number >= 0 as a float.

  Raises:
    ValueError: if it is not a finite number >= 0.
  """
  return check_number(name, value, lambda x: x >= 0, '>= 0')


def check_fraction(name: str, value: Any) -> float:
  """Return a number in (0, 1] as a float.

  Raises:
    ValueError: if it is not a number in (0, 1].
  """
  return check_number(name, value, lambda x: 0 < x <= 1, 'in (0, 1]')


def check_probability(name: str, value: Any) -> float:
  """Return a number in [0, 1] as a float.

  Raises:
    ValueError: if it is not a number in [0, 1].
  """
  return check_number(name, value, lambda x: 0 <= x <= 1, 'in [0, 1]')


def check_optax(name: str, tx: Any) -> None:
  """Raise ValueError unless `tx` is an optax transformation."""
  if not isinstance(tx, optax.GradientTransformation):
    raise ValueError(
      f'{name} expects an optax transformation such as optax.sgd(0.1), got '
      f'{describe(tx)}{what_to_type(tx)}'
    )


def what_to_type(tx: Any) -> str:
  """Return a hint for an argument that is not an optimizer, or ''."""
  if isinstance(tx, float | int) and not isinstance(tx, bool):
    return f'; write optax.sgd({tx})'
  if hasattr(tx, 'gradient_transformation'):
    return '; append .gradient_transformation()'
  name = getattr(tx, '__name__', '')
  if callable(getattr(optax, name, None)):
    return f'; call it, as in optax.{name}(0.1)'
  if isinstance(tx, list | tuple):
    return '; combine them with optax.chain(...)'
  return ''


def check_register(name: str, value: Any) -> str:
  """Return the name of a register.

  Raises:
    ValueError: if `value` is not a string, or is a name of the clock.
  """
  if not isinstance(value, str) or value in CLOCK:
    raise ValueError(f'{name} must be the name of a register, got {value!r}')
  return value


def check_schedule(name: str, when: Any) -> None:
  """Raise ValueError unless `when` is a function of the step."""
  if not callable(when):
    raise ValueError(
      f'{name} expects a schedule such as pr.schedules.every(4), got {when!r}'
    )


def check_live(x: Any) -> None:
  """Raise ValueError if the array was donated to an earlier dispatch."""
  if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
    return
  if x.is_deleted():
    raise ValueError(
      'this state was used up by the call that trained it; use the state that '
      'the call returned'
    )


def _is_int(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)

"""Checks of arguments: what was expected, what came, what to type."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from prsgd_jax.names import CLOCK


def check_positive_int(name: str, value: Any) -> int:
  """Returns `value` as an int.

  Raises:
    ValueError: if it is not an integer of at least 1.
  """
  if not _is_int(value) or value < 1:
    raise ValueError(f'{name} must be an integer >= 1, got {value!r}')
  return int(value)


def check_step(name: str, value: Any) -> int:
  """Returns a number of steps as an int; 0 is allowed.

  Raises:
    ValueError: if it is not an integer of at least 0.
  """
  if not _is_int(value) or value < 0:
    raise ValueError(f'{name} must be an integer >= 0, got {value!r}')
  return int(value)


def check_number(
  name: str, value: Any, holds: Callable[[float], bool], expected: str
) -> float:
  """Returns `value` as a float.

  Args:
    name: of the argument.
    value: the argument.
    holds: the condition that it must meet.
    expected: the condition in words, such as '> 0'.

  Raises:
    ValueError: if it is not a number, or `holds` is false for it.
  """
  is_number = isinstance(value, float | int | np.floating | np.integer)
  if not is_number or isinstance(value, bool) or not holds(float(value)):
    raise ValueError(f'{name} must be {expected}, got {value!r}')
  return float(value)


def check_optax(name: str, tx: Any) -> None:
  """Raises ValueError unless `tx` is an optax transformation."""
  if not isinstance(tx, optax.GradientTransformation):
    raise ValueError(
      f'{name} expects an optax transformation such as optax.sgd(0.1), got '
      f'{tx!r}'
    )


def check_register(name: str, value: Any) -> str:
  """Returns the name of a register.

  Raises:
    ValueError: if `value` is not a string, or a name of the clock.
  """
  if not isinstance(value, str) or value in CLOCK:
    raise ValueError(f'{name} must be the name of a register, got {value!r}')
  return value


def check_schedule(name: str, when: Any) -> None:
  """Raises ValueError unless `when` is a function of the step."""
  if not callable(when):
    raise ValueError(
      f'{name} expects a schedule such as pr.every(4), got {when!r}'
    )


def _is_int(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)

"""RULES: how a register is computed from other registers.

A rule is a function whose parameters name its inputs. Shorthands for a rule are
a register's name, a number, `reading(fn, ...)` and `per_replica([...])`. A rule
is called on the values of one replica, without the block axis.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.checks import MAX_STEPS, check_positive_int


class Rule(NamedTuple):
  """A function of registers and of the clock.

  Attributes:
    fn: the function, called by keyword with the values of one replica.
    reads: the names of the parameters of `fn`.
    check: `num_replicas -> None`; raises ValueError if the rule does not fit
      this number of replicas.
  """

  fn: Callable[..., Any]
  reads: tuple[str, ...]
  check: Callable[[int], None] = lambda num_replicas: None


def as_rule(name: str, given: Any) -> Rule:
  """Return a rule, made from a function or a shorthand.

  Args:
    name: the assignment, such as 'let(u=...)', for messages.
    given: a function whose parameters without defaults name its inputs; the
      name of a register to copy; a number; or a `Rule`.

  Raises:
    ValueError: if `given` is none of these, or if its parameters have no names.
  """
  if isinstance(given, Rule):
    return given
  if isinstance(given, str):
    return Rule(lambda **values: values[given], (given,))
  if isinstance(given, bool | int | float | np.number):
    return Rule(lambda: given, ())
  if not callable(given):
    raise ValueError(
      f'{name} expects a function of registers such as lambda params: params, '
      f"a register's name or a number, got {given!r}"
    )
  try:
    parameters = inspect.signature(given).parameters.values()
  except (TypeError, ValueError):
    raise ValueError(
      f'{name}: the parameters of {given!r} are unknown; name its inputs with '
      'pr.stages.reading(fn, ...)'
    ) from None
  for parameter in parameters:
    if parameter.kind not in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    ):
      raise ValueError(
        f'{name}: the parameters of a rule name registers, got {parameter}; '
        'name its inputs with pr.stages.reading(fn, ...)'
      )
  required = [p.name for p in parameters if p.default is p.empty]
  return Rule(given, tuple(required))


def reading(fn: Callable[..., Any], *reads: str) -> Rule:
  """Return the rule that calls `fn` with the named registers, in this order.

  Use it for functions whose parameters are not named after registers.

  Args:
    fn: a function of positional arguments.
    *reads: names of registers or of the clock, in the order of the arguments.

  Raises:
    ValueError: if `fn` is not callable or a name is not a string.

  Example:
    >>> import jax.numpy as jnp, prsgd_jax as pr
    >>> stage = pr.let(delta=pr.stages.reading(jnp.subtract, 'x0', 'params'))
  """
  if not callable(fn) or not all(isinstance(name, str) for name in reads):
    raise ValueError(
      "reading expects a function and names, such as reading(jnp.subtract, 'a',"
      f" 'b'), got {(fn, *reads)!r}"
    )
  return Rule(lambda **values: fn(*(values[r] for r in reads)), reads)


def per_replica(values: Sequence[float] | np.ndarray) -> Rule:
  """Return the rule that gives each replica a different number.

  Args:
    values: [N], one number for each replica.

  Raises:
    ValueError: if `values` is not a list of numbers; from `init`, if its length
      is not N.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(weight=pr.per_replica([1.0, 2.0, 0.5, 1.0]))
  """
  table = np.asarray(values)
  if table.ndim != 1 or table.dtype.kind not in 'iuf':
    raise ValueError(
      f'per_replica expects one number for each replica, got {values!r}'
    )

  def check(num_replicas: int) -> None:
    if len(table) != num_replicas:
      raise ValueError(
        f'expected one number for each of the {num_replicas} replicas, got '
        f'{len(table)}'
      )

  return Rule(lambda replica: jnp.asarray(table)[replica], ('replica',), check)


def first_steps(local_steps: Sequence[int]) -> Rule:
  """Return the rule for `where` that activates replica i for I_i steps.

  A round is max_i I_i steps. Replica i is active in the first I_i of them.

  Args:
    local_steps: [N], I_i, one integer >= 1 for each replica. A round of more
      than 2^31 - 1 steps never ends.

  Raises:
    ValueError: if `local_steps` is empty, or if an element is not an integer
      >= 1; from `init`, if its length is not N.

  Example:
    >>> import numpy as np
    >>> active = first_steps([1, 3]).fn
    >>> active(step=np.arange(3)[:, None], replica=np.arange(2)).tolist()
    [[True, True], [False, True], [False, True]]
  """
  if np.ndim(local_steps) != 1:
    raise ValueError(
      f'local_steps expects one number per replica, got {local_steps!r}'
    )
  # Clipped, because no run has more steps.
  checked = [check_positive_int('local_steps', c) for c in local_steps]
  counts = np.array([min(c, MAX_STEPS) for c in checked], np.int32)
  if not counts.size:
    raise ValueError('local_steps expects one number per replica, got none')
  round_length = counts.max()

  def active(step: Any, replica: Any) -> Any:
    table = jnp.asarray(counts) if isinstance(replica, jax.Array) else counts
    return step % round_length < table[replica]

  def check(num_replicas: int) -> None:
    if len(counts) != num_replicas:
      raise ValueError(
        f'local_steps must have one number for each of the {num_replicas} '
        f'replicas, got {len(counts)}'
      )

  return Rule(active, ('step', 'replica'), check)


def zeros(params: Array) -> Array:
  """Return zeros like the parameters; a rule for `remember`.

  Args:
    params: a leaf of the parameters.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.remember(u=pr.zeros)
  """
  return jnp.zeros_like(params)

"""Compile a loop, time it, and read what its program needs."""

from collections import Counter
from collections.abc import Callable
import re
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.extend.core


class Budget(NamedTuple):
  """How long a loop is timed.

  Attributes:
    seconds: time after which no further dispatch is timed.
    least: smallest number of timed dispatches.
    most: largest number of timed dispatches.
  """

  seconds: float
  least: int
  most: int


LONG = Budget(3.0, 3, 50)
SHORT = Budget(0.05, 2, 3)


def measure(
  begin: Callable[[], tuple[Callable[[], Any], dict[str, Any]]],
  num_steps: int,
  budget: Budget,
) -> dict[str, Any]:
  """Time a loop.

  Args:
    begin: function that compiles the loop and returns `run`, one dispatch of
      `num_steps` steps, and further numbers of the program.
    num_steps: steps in a dispatch.
    budget: how long to time it.

  Returns:
    `seconds_to_first_step`, `step_seconds` (median), `quartiles`,
    `dispatches`, and the further numbers.
  """
  begun = time.perf_counter()
  run, numbers = begin()
  jax.block_until_ready(run())
  first = time.perf_counter() - begun
  jax.block_until_ready(run())
  seconds: list[float] = []
  until = time.perf_counter() + budget.seconds
  while len(seconds) < budget.most and (
    len(seconds) < budget.least or time.perf_counter() < until
  ):
    begun = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append((time.perf_counter() - begun) / num_steps)
  low, median, high = statistics.quantiles(seconds, n=4)
  return {
    'seconds_to_first_step': first,
    'step_seconds': median,
    'quartiles': [low, high],
    'dispatches': len(seconds),
    **numbers,
  }


def program(compiled: jax.stages.Compiled) -> dict[str, Any]:
  """Return what a compiled program needs, where the platform tells it.

  Returns:
    `memory`, bytes of arguments, results and temporaries; `bytes_per_step`,
    those that the program reads and writes in a step; and `layouts`, the number
    of convolutions by their dimension labels and groups.
  """
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis() or {}
  return {
    'memory': memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
    # XLA counts the body of a loop over the steps once.
    'bytes_per_step': costs.get('bytes accessed'),
    'layouts': layouts(compiled.as_text() or ''),
  }


def layouts(text: str) -> dict[str, int]:
  """Count the convolutions of a compiled program by layout and groups.

  Args:
    text: HLO of the program.

  Example:
    >>> layouts('a = convolution(x, w), dim_labels=b01f_01io->b01f, '
    ...         'feature_group_count=8\\n')
    {'b01f_01io->b01f feature_group_count=8': 1}
  """
  found: Counter[str] = Counter()
  for line in text.splitlines():
    if labels := re.search(r'dim_labels=([\w?]+_[\w?]+->[\w?]+)', line):
      groups = re.findall(r'(?:feature|batch)_group_count=\d+', line)
      found[' '.join([labels[1], *groups])] += 1
  return dict(sorted(found.items()))


def convolutions(jaxpr: Any) -> dict[str, int]:
  """Count the convolutions that JAX traced by their numbers of groups.

  Args:
    jaxpr: the traced program.
  """
  found: Counter[str] = Counter()

  def visit(inner: Any) -> None:
    for equation in inner.eqns:
      if equation.primitive.name == 'conv_general_dilated':
        own = equation.params
        found[
          f'feature groups {own["feature_group_count"]}, '
          f'batch groups {own["batch_group_count"]}'
        ] += 1
      for nested in jax.extend.core.jaxprs_in_params(equation.params):
        visit(nested)

  visit(jaxpr)
  return dict(sorted(found.items()))

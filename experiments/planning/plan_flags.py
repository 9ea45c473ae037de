"""Flags of a plan, and the goal that they describe."""

import math

from absl import flags

from experiments.planning.choices import Goal
from prsgd_jax.checks import check_positive, check_seed

FLAGS = flags.FLAGS

flags.DEFINE_bool(
  'plan',
  False,
  'Train a short pilot of each --run and point of --grid on this machine, and '
  'print which reaches --target_loss soonest, or the lowest loss within '
  '--budget_seconds and --budget_bytes. A pilot has the length of the run.',
)
flags.DEFINE_float(
  'target_loss',
  None,
  'Loss of the averaged model on training examples that --plan should reach.',
)
flags.DEFINE_float(
  'budget_seconds',
  None,
  'Largest modeled time of a run for --plan, > 0. Default: unlimited.',
)
flags.DEFINE_float(
  'budget_bytes',
  None,
  'Largest number of bytes that one replica may send in a run for --plan, > 0. '
  'Default: unlimited.',
)
flags.DEFINE_integer(
  'pilot_seeds',
  3,
  'Number of pilots of each run for --plan, 1 to 1000. The first has --seed, '
  'and each other one the next seed.',
)
flags.DEFINE_integer(
  'pilot_every',
  None,
  'Steps between two evaluations of a pilot, >= 1. Default: about a fiftieth '
  'of the run.',
)
# Flags that have no effect without --plan.
OWN = (
  'target_loss', 'budget_seconds', 'budget_bytes', 'pilot_seeds',
  'pilot_every', 'grid',
)  # fmt: skip
# Number of evaluations of a pilot, by default.
_EVALUATIONS = 50
_MOST_SEEDS = 1000


def check_absent(values: flags.FlagValues) -> None:
  """Raise ValueError if a flag of a plan is given without --plan."""
  for name in OWN:
    if values[name].present:
      raise ValueError(f'--{name} has no effect without --plan; add --plan')


def goal(values: flags.FlagValues) -> Goal:
  """Return the goal that the flags describe.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if there is none, or a value is out of range.
  """
  names = ('target_loss', 'budget_seconds', 'budget_bytes')
  target, seconds, size = (values[name].value for name in names)
  if target is None and seconds is None and size is None:
    raise ValueError(
      '--plan requires a goal; add --target_loss, --budget_seconds or '
      '--budget_bytes'
    )
  for name in names:
    if values[name].value is not None:
      check_positive(f'--{name}', values[name].value)
  return Goal(
    target,
    math.inf if seconds is None else seconds,
    math.inf if size is None else size,
  )


def seeds(values: flags.FlagValues) -> list[int]:
  """Return the seeds of the pilots.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if their number or a seed is out of range.
  """
  count = values.pilot_seeds
  if not 1 <= count <= _MOST_SEEDS:
    raise ValueError(f'--pilot_seeds must be 1 to {_MOST_SEEDS}, got {count}')
  check_seed('--seed', values.seed)
  check_seed('--seed of the last pilot', values.seed + count - 1)
  return [values.seed + i for i in range(count)]


def every(values: flags.FlagValues, num_steps: int) -> int:
  """Return the steps between two evaluations of a pilot.

  Args:
    values: the parsed flags.
    num_steps: length of the run in steps.

  Raises:
    ValueError: if the flag is not >= 1.
  """
  if values.pilot_every is None:
    return max(1, math.ceil(num_steps / _EVALUATIONS))
  if values.pilot_every < 1:
    raise ValueError(f'--pilot_every must be >= 1, got {values.pilot_every}')
  return int(values.pilot_every)

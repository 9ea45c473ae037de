"""Flags that select the learning rate schedule of a run."""

import itertools
import math

from absl import flags
import jax.numpy as jnp
import optax

from experiments.running.flags.run_config import (
  RunConfig,
  steps_of_epochs,
  total_steps,
  warmup_steps,
)

# Schedules that end with the run, so that they depend on its length.
DECAYS = ('cosine', 'linear')

flags.DEFINE_float(
  'learning_rate',
  0.1,
  'Initial learning rate gamma (after any warm-up), > 0.',
)
flags.DEFINE_list(
  'learning_rate_drops',
  [],
  'Epochs after which the learning rate is divided by 10: increasing numbers '
  '> 0, such as 40,80. Default: none.',
)
flags.DEFINE_float(
  'warmup_epochs',
  0.0,
  'Number of epochs at the start in which the learning rate rises linearly '
  'from near 0 to --learning_rate; >= 0.',
)
flags.DEFINE_enum(
  'lr_schedule',
  None,
  ['constant', *DECAYS],
  'Decay of the learning rate from the end of the warm-up to the end of the '
  'run; cosine and linear exclude --learning_rate_drops. Default: constant.',
)
flags.DEFINE_float(
  'lr_end',
  None,
  'Learning rate at the end of --lr_schedule=cosine or linear, >= 0. '
  'Default: 0.',
)


def check(config: RunConfig) -> None:
  """Check the flags of the learning rate.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  if not 0 < config.learning_rate < math.inf:
    raise ValueError(f'--learning_rate must be > 0, got {config.learning_rate}')
  grid = (0.0, *config.learning_rate_drops, math.inf)
  if not all(a < b for a, b in itertools.pairwise(grid)):
    raise ValueError(
      '--learning_rate_drops must be increasing epochs > 0, got '
      f'{",".join(map(str, config.learning_rate_drops))}'
    )
  if not 0 <= config.warmup_epochs < grid[1]:
    raise ValueError(
      '--warmup_epochs must be >= 0 and end before the first of '
      f'--learning_rate_drops, got {config.warmup_epochs}'
    )
  schedule, end = config.lr_schedule, config.lr_end
  if schedule in DECAYS and config.learning_rate_drops:
    raise ValueError(
      f'--lr_schedule={schedule} and --learning_rate_drops exclude each other; '
      'give one'
    )
  if end is None:
    return
  if schedule not in DECAYS:
    raise ValueError(
      '--lr_end does nothing for a constant learning rate; add '
      f'--lr_schedule={" or ".join(DECAYS)}'
    )
  if not 0 <= end < math.inf:
    raise ValueError(f'--lr_end must be >= 0, got {end}')


def build(config: RunConfig, num_examples: int) -> optax.Schedule:
  """Return the learning rate as a function of the step.

  The rate reaches `lr_end` one step after the last step. In a warm-up of w
  steps, step t has (t + 1) / w times the scheduled rate.

  Args:
    config: the run.
    num_examples: number of training examples.

  Raises:
    ValueError: if the rate decays, and the warm-up is as long as the run.
  """
  rise = warmup_steps(config, num_examples)
  whole = _falling(config, num_examples, rise)
  if not rise:
    return whole
  return lambda step: whole(step) * jnp.minimum((step + 1) / rise, 1)


def _falling(config: RunConfig, num_examples: int, rise: int) -> optax.Schedule:
  """Return the learning rate without its warm-up."""
  first, end = config.learning_rate, config.lr_end or 0.0
  if config.lr_schedule in DECAYS:
    steps = total_steps(config, num_examples) - rise
    if steps < 1:
      raise ValueError(
        f'--warmup_epochs={config.warmup_epochs} are {rise} steps, as long as '
        f'the run; --lr_schedule={config.lr_schedule} has no step left'
      )
    if config.lr_schedule == 'linear':
      return optax.linear_schedule(first, end, steps, rise)
    cosine = optax.cosine_decay_schedule(first, steps, end / first)
    return lambda step: cosine(jnp.maximum(step - rise, 0))
  drops: dict[int, float] = {}
  for epochs in config.learning_rate_drops:
    step = steps_of_epochs(config, num_examples, epochs)
    drops[step] = 0.1 * drops.get(step, 1.0)
  return optax.piecewise_constant_schedule(first, drops)

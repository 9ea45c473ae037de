"""Flags that select the optimizer of every replica."""

import math

from absl import flags
import optax

from experiments.running.flags import algorithm_flags
from experiments.running.flags.run_config import RunConfig

OPTIMIZERS = ('sgd', 'adam', 'adamw', 'muon')
# Optimizers that add weight decay to the step, not to the loss.
DECOUPLED = ('adamw', 'muon')

flags.DEFINE_enum(
  'optimizer',
  'sgd',
  OPTIMIZERS,
  'Optimizer of every replica. muon orthogonalizes the updates of matrices and '
  'uses adamw for all other parameters.',
)
flags.DEFINE_float(
  'momentum', 0.9, 'Momentum of --optimizer=sgd, in [0, 1); 0 disables it.'
)
flags.DEFINE_bool(
  'nesterov', False, 'Use Nesterov momentum in --optimizer=sgd.'
)
flags.DEFINE_float(
  'adam_b1',
  None,
  'Decay rate of the first moment in adam, adamw and muon, in [0, 1). Default: '
  '0.9.',
)
flags.DEFINE_float(
  'adam_b2',
  None,
  'Decay rate of the second moment in adam, adamw and muon, in [0, 1). '
  'Default: 0.999.',
)
flags.DEFINE_float(
  'adam_eps',
  None,
  'Constant added to the root of the second moment in adam, adamw and muon, '
  '> 0. Default: 1e-8.',
)
flags.DEFINE_float(
  'clip_norm',
  None,
  'Global norm to which each replica clips its gradient before the optimizer, '
  '> 0. The gradient includes coupled weight decay. Default: no clipping.',
)
flags.DEFINE_float(
  'weight_decay',
  0.0,
  'Weight decay, >= 0: an L2 term in the loss for sgd and adam, decoupled (in '
  'the step) for adamw and muon.',
)


def check(config: RunConfig) -> None:
  """Check the flags of the optimizer.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  if config.optimizer not in OPTIMIZERS:
    raise ValueError(
      f'unknown --optimizer={config.optimizer}; use one of '
      f'{", ".join(OPTIMIZERS)}'
    )
  if not 0 <= config.momentum < 1:
    raise ValueError(f'--momentum must be in [0, 1), got {config.momentum}')
  if not 0 <= config.weight_decay < math.inf:
    raise ValueError(f'--weight_decay must be >= 0, got {config.weight_decay}')
  if config.clip_norm is not None and not 0 < config.clip_norm < math.inf:
    raise ValueError(f'--clip_norm must be > 0, got {config.clip_norm}')
  if config.optimizer == 'sgd':
    _check_sgd(config)
  else:
    _check_adam(config)


def _check_sgd(config: RunConfig) -> None:
  for name in ('adam_b1', 'adam_b2', 'adam_eps'):
    if getattr(config, name) is not None:
      raise ValueError(
        f'--{name} does nothing for --optimizer=sgd; leave it out, or use '
        '--optimizer=adam'
      )
  for name, given in (
    ('buffers', config.options.get('buffers', 'keep') != 'keep'),
    ('nesterov', config.nesterov),
  ):
    if given and not config.momentum:
      raise ValueError(f'--{name} does nothing without --momentum')
  if config.nesterov and _has_own_momentum(config):
    raise ValueError(
      f'--nesterov does nothing for --algorithm={config.algorithm}, whose '
      'momentum has its own form; leave it out'
    )


def _check_adam(config: RunConfig) -> None:
  for name in ('momentum', 'nesterov'):
    if getattr(config, name):
      raise ValueError(
        f'--{name} does nothing for --optimizer={config.optimizer}; '
        'leave it out'
      )
  if _has_own_momentum(config):
    raise ValueError(
      f'--algorithm={config.algorithm} has its own momentum, which requires '
      f'--optimizer=sgd, got {config.optimizer}'
    )
  for name in ('adam_b1', 'adam_b2'):
    decay = getattr(config, name)
    if decay is not None and not 0 <= decay < 1:
      raise ValueError(f'--{name} must be in [0, 1), got {decay}')
  if config.adam_eps is not None and not 0 < config.adam_eps < math.inf:
    raise ValueError(f'--adam_eps must be > 0, got {config.adam_eps}')


def _has_own_momentum(config: RunConfig) -> bool:
  return 'momentum' in algorithm_flags.keywords(config.algorithm)


def build(
  config: RunConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Return the optimizer of every replica.

  The optimizer has no momentum if the algorithm has a momentum argument,
  because such an algorithm applies the momentum itself.

  Args:
    config: the run.
    schedule: learning rate as a function of the step.
  """
  tx = _unclipped(config, schedule)
  if config.clip_norm is None:
    return tx
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)


def _unclipped(
  config: RunConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  decay = config.weight_decay
  if config.optimizer == 'sgd':
    momentum = 0.0 if _has_own_momentum(config) else config.momentum
    return optax.sgd(schedule, momentum or None, config.nesterov)
  moments = {
    name: value
    for name in ('b1', 'b2', 'eps')
    if (value := getattr(config, f'adam_{name}')) is not None
  }
  if config.optimizer == 'adam':
    return optax.adam(schedule, **moments)
  if config.optimizer == 'adamw':
    return optax.adamw(schedule, weight_decay=decay, **moments)
  renamed = {n if n == 'eps' else f'adam_{n}': v for n, v in moments.items()}
  return optax.contrib.muon(
    schedule, weight_decay=decay, adam_weight_decay=decay, **renamed
  )

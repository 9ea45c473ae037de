"""Build the `average` argument of an algorithm from the flags of an average.

The argument is a stage, by default `sync(mean())`, or a function that makes a
stage of each mixing, by default `sync`. The flags are --average_mixing,
--average_codec, --average_robust, --buffers and --batch_stats.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, get_origin

import optax

from experiments.running.flags import algorithm_flags, named
import prsgd_jax as pr

OPTIONS = (
  'average_mixing',
  'average_codec',
  'average_robust',
  'buffers',
  'batch_stats',
)
# Algorithms whose only average ends the run, so that buffers have no effect.
AT_THE_END = ('one_shot_averaging',)


def check(algorithm: str, options: Mapping[str, Any]) -> None:
  """Check that each option of an average has an effect.

  Args:
    algorithm: name of the algorithm.
    options: flag -> value, of the run.

  Raises:
    ValueError: if an option does nothing for the algorithm, or two options
      exclude each other.
  """
  keyword = algorithm_flags.keywords(algorithm).get('average')
  for flag in OPTIONS:
    if flag not in options or options[flag] == 'reestimate':
      continue  # because evaluation estimates statistics for any algorithm
    unused = flag == 'buffers' and algorithm in AT_THE_END
    if keyword is None or unused:
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}; leave it out'
      )
    if flag.startswith('average_') and _is_of_mixing(keyword):
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}, whose averages '
        'have their own mixings; leave it out'
      )
  if 'average_codec' in options and 'average_mixing' in options:
    raise ValueError(
      '--average_codec and --average_mixing exclude each other: a codec needs '
      'a point that all replicas share, and gossip leaves none; for both, use '
      '--algorithm=choco_sgd'
    )
  for flag in ('average_codec', 'average_mixing'):
    if 'average_robust' in options and flag in options:
      raise ValueError(
        f'--average_robust and --{flag} exclude each other: a robust average '
        f'is of the values of all replicas; leave out --{flag}'
      )


def build(
  algorithm: str, tx: optax.GradientTransformation, options: Mapping[str, Any]
) -> Any:
  """Return the `average` argument, None for the algorithm's default.

  Args:
    algorithm: name of the algorithm.
    tx: optimizer of every replica.
    options: flag -> value, of the run.

  Raises:
    ValueError: if a name or a number in a value is wrong.
  """
  keyword = algorithm_flags.keywords(algorithm).get('average')
  given = {n: options[n] for n in OPTIONS if n in options}
  if given.get('batch_stats') in ('local', 'reestimate'):
    del given['batch_stats']
  if keyword is None or not given:
    return None
  # A default of None means reset, because federated clients restart.
  default = 'reset' if keyword.default is None else 'keep'
  buffers = given.get('buffers', default)
  besides = ['opt_state'] * (buffers == 'average')
  besides += ['model_state'] * ('batch_stats' in given)
  after: tuple[pr.base.ReplicaTransformation, ...] = ()
  if buffers == 'reset':
    after = (pr.restart(_whole_optimizer(algorithm, tx, options)),)

  def average(mixing: pr.mixing.Mixing) -> pr.base.ReplicaTransformation:
    return _chained(pr.sync(mixing, ('params', *besides)), *after)

  if _is_of_mixing(keyword):
    return average
  if 'average_codec' in given:
    codec = named.codec('average_codec', given['average_codec'])
    others = (pr.sync(pr.mixing.mean(), besides),) if besides else ()
    return _chained(pr.stages.average_differences(codec), *others, *after)
  if 'average_robust' in given:
    robust = given['average_robust']
    stage = named.robust('average_robust', robust, ('params', *besides))
    return _chained(stage, *after)
  if 'average_mixing' in given:
    return average(named.mixing('average_mixing', given['average_mixing']))
  return average(pr.mixing.mean())


def check_codec(
  algorithm: str,
  made: pr.base.ReplicaTransformation,
  options: Mapping[str, Any],
) -> None:
  """Check that an algorithm stores the point that --average_codec requires.

  Args:
    algorithm: name of the algorithm.
    made: the built algorithm.
    options: flag -> value, of the run.

  Raises:
    ValueError: if --average_codec is set and the algorithm does not store the
      start of the round.
  """
  reads = made.names.reads if made.names else ()
  if 'average_codec' in options and 'x0' in reads:
    raise ValueError(
      '--average_codec sends differences from x0, the start of the round, '
      f'which --algorithm={algorithm} does not store; use an algorithm that '
      'does, such as diloco, slowmo or fedavg'
    )


def _is_of_mixing(keyword: inspect.Parameter) -> bool:
  return get_origin(keyword.annotation) is Callable


def _chained(
  *stages: pr.base.ReplicaTransformation,
) -> pr.base.ReplicaTransformation:
  return stages[0] if len(stages) == 1 else pr.chain(*stages)


def _whole_optimizer(
  algorithm: str, tx: optax.GradientTransformation, options: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Return the optimizer of the local step, which may contain `tx`."""
  if algorithm != 'natural_gradient_averaging':
    return tx
  names = ('rank', 'smoothing', 'update_rate')
  natural = pr.optimizers.scale_by_natural_gradient(
    **{name: options[name] for name in names if name in options}
  )
  # Any cap, because limit_change has no state.
  return optax.chain(natural, tx, pr.optimizers.limit_change(1.0))

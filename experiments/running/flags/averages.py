"""The `average` of an algorithm, from the flags that say what it does.

An algorithm takes a stage, by default `sync(mean())`, or makes one of each of
its own mixings, by default by `sync`. Here the flags --average_mixing,
--average_codec, --buffers and --batch_stats become either.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, get_origin

import optax

from experiments.running.flags import algorithm_flags, named
import prsgd_jax as pr

OPTIONS = ('average_mixing', 'average_codec', 'buffers', 'batch_stats')
# Algorithms whose only average ends the run, after which no buffers are used.
AT_THE_END = ('one_shot_averaging',)


def check(algorithm: str, options: Mapping[str, Any]) -> None:
  """Checks that each of the options does something.

  Args:
    algorithm: its name.
    options: of the run, by flag.

  Raises:
    ValueError: if one of these does nothing for the algorithm, or two exclude
      each other.
  """
  keyword = algorithm_flags.keywords(algorithm).get('average')
  for flag in OPTIONS:
    if flag not in options or options[flag] == 'reestimate':
      continue  # statistics are estimated at evaluation, after any algorithm
    unused = flag == 'buffers' and algorithm in AT_THE_END
    if keyword is None or unused:
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}; leave it out'
      )
    if flag.startswith('average_') and _is_of_mixing(keyword):
      raise ValueError(
        f'--{flag} does nothing for --algorithm={algorithm}, whose averages '
        'have mixings of their own; leave it out'
      )
  if 'average_codec' in options and 'average_mixing' in options:
    raise ValueError(
      '--average_codec and --average_mixing exclude each other: codes are of '
      'the differences from a point that all replicas share, and gossip leaves '
      'none; for both there is --algorithm=choco_sgd'
    )


def build(
  algorithm: str, tx: optax.GradientTransformation, options: Mapping[str, Any]
) -> Any:
  """Returns the `average` argument, None where the default is meant.

  Args:
    algorithm: its name.
    tx: the optimizer of every replica.
    options: of the run, by flag.

  Raises:
    ValueError: if a name or a number is wrong.
  """
  keyword = algorithm_flags.keywords(algorithm).get('average')
  given = {n: options[n] for n in OPTIONS if n in options}
  if given.get('batch_stats') in ('local', 'reestimate'):
    del given['batch_stats']
  if keyword is None or not given:
    return None
  # The clients of federated averages start again unless told otherwise.
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
  if 'average_mixing' in given:
    return average(named.mixing('average_mixing', given['average_mixing']))
  return average(pr.mixing.mean())


def check_codec(
  algorithm: str,
  made: pr.base.ReplicaTransformation,
  options: Mapping[str, Any],
) -> None:
  """Checks that an algorithm has what codes of differences need.

  Args:
    algorithm: its name.
    made: what was built of it.
    options: of the run, by flag.

  Raises:
    ValueError: if codes were asked for, and it does not remember where a round
      began.
  """
  reads = made.names.reads if made.names else ()
  if 'average_codec' in options and 'x0' in reads:
    raise ValueError(
      '--average_codec sends differences from x0, the point where a round '
      f'began, which --algorithm={algorithm} does not remember; use one that '
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
  """The optimizer of an algorithm's local step, of which `tx` may be a part."""
  if algorithm != 'natural_gradient_averaging':
    return tx
  names = ('rank', 'smoothing', 'update_rate')
  natural = pr.optimizers.scale_by_natural_gradient(
    **{name: options[name] for name in names if name in options}
  )
  # The cap on a step has no state; its value does not matter here.
  return optax.chain(natural, tx, pr.optimizers.limit_change(1.0))

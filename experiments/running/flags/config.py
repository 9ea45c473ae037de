"""The flags of a run, and the run that they describe."""

import dataclasses
import math
from typing import Any

from absl import flags

from experiments.running.flags import (
  algorithm_flags,
  averages,
  cli,
  data,
  dotted,
  learning_rates,
  named,
  network,
  optimizers,
  tasks,
  typed_options,
)
from experiments.running.flags.run_config import OPTIONS, RunConfig
from prsgd_jax.checks import (
  MAX_STEPS,
  check_length,
  check_positive,
  check_seed,
)

# Replicas are rows of every array.
MOST_REPLICAS = 2**16
PARTITIONS = ('shared', 'sharded', 'dirichlet')
# Flags that fingers type -> the flags.
ALIASES = {
  'lr': 'learning_rate',
  'epochs': 'num_epochs',
  'steps': 'num_steps',
  'bs': 'batch_size',
  'wd': 'weight_decay',
  'replicas': 'num_replicas',
}
DEFAULT_PERIOD = 4  # of the default algorithm
_PARTS = (algorithm_flags, data, learning_rates, network, optimizers, tasks)

algorithm_flags.define_flags()
for _module in _PARTS:
  flags.adopt_module_key_flags(_module)
flags.DEFINE_string(
  'algorithm',
  'pr_sgd',
  'Name of an algorithm (--help lists them), or MODULE:NAME of your own: a '
  'function fn(tx, *, ...) of an optimizer that returns an algorithm.',
)
flags.DEFINE_list(
  'algorithm_options',
  None,
  'Keywords of an --algorithm of your own that no flag has, such as '
  'alpha=0.1,steps=4.',
)
flags.DEFINE_string(
  'when',
  None,
  'Schedule of the averages, in place of --period or --check_period. One of '
  f'{", ".join(named.SCHEDULES)}, with numbers: every:PERIOD, '
  'doubling:FIRST[:ROUNDS_EACH], linear_growth:FIRST:INCREMENT, '
  'with_probability:P, qsr:ALPHA:BASE_PERIOD, post_local:SWITCH_STEP:PERIOD, '
  'at:STEP+STEP+... with 0-based steps, intervals:LENGTH+LENGTH+... of which '
  'the last repeats.',
)
flags.DEFINE_string(
  'local',
  None,
  'Algorithm that is the local step of the algorithm, in place of a step of '
  f'the optimizer. One of {", ".join(named.LOCAL)}; its period and its mixing '
  'may follow: sgp:one_peer_exponential, k_avg:2:group_mean:4.',
)
flags.DEFINE_string(
  'average_mixing',
  None,
  'Mixing of an average, in place of the mean of all replicas [mean]. One of '
  f'{", ".join(named.MIXINGS)}.',
)
flags.DEFINE_string(
  'average_codec',
  None,
  'Codec in which an average sends what the replicas moved since the last '
  'one; for algorithms that remember where a round began. One of '
  f'{", ".join(named.COMPRESSORS)}, or of {", ".join(named.CODECS)} with one '
  'of them behind: feedback:top_k:0.1, with a decay feedback:0.9:top_k:0.1. In '
  'top_k:0.1:e3m0 the second one codes what the first one keeps.',
)
flags.DEFINE_enum(
  'buffers',
  None,
  ['keep', 'average', 'reset'],
  'What an average does to the buffers of the optimizer [keep; reset for '
  'fedavg and fedprox].',
)
flags.DEFINE_enum(
  'batch_stats',
  None,
  ['local', 'average', 'reestimate'],
  'What an average does to the batch statistics [local]; reestimate: they stay '
  'local, and every evaluation takes those of the averaged model from '
  'training batches.',
)
flags.DEFINE_integer('num_replicas', 8, 'N, replicas of the model.')
flags.DEFINE_integer(
  'num_devices',
  None,
  'D, devices that hold the replicas; must divide N [the largest number of '
  'available devices that does]. On a CPU, D fake devices are made.',
)
flags.DEFINE_integer('batch_size', 32, 'Examples per replica and step.')
flags.DEFINE_enum(
  'partition',
  'shared',
  PARTITIONS,
  'Who gets which examples: a shared pool, disjoint shards, or shards with '
  'label skew.',
)
flags.DEFINE_float(
  'dirichlet_alpha', None, 'Skew of --partition=dirichlet; small is skewed.'
)
flags.DEFINE_bool(
  'augment', False, 'Pad by 4 and crop at random, flip left to right.'
)
flags.DEFINE_integer(
  'seed', 0, 'Seed of the first point, data order and augmentation.'
)
flags.DEFINE_float(
  'num_epochs', 20, 'Length: passes over the data, all replicas together.'
)
flags.DEFINE_integer(
  'num_steps', None, 'Length in steps, in place of num_epochs.'
)
flags.DEFINE_integer(
  'log_every', 50, 'Steps between records, whose losses are means over them.'
)
flags.DEFINE_integer(
  'eval_every', 100, 'Steps between evaluations, a multiple of log_every.'
)
flags.DEFINE_integer(
  'checkpoint_every',
  500,
  'Steps between checkpoints, a multiple of log_every.',
)
flags.DEFINE_string(
  'keep',
  '3',
  'Number of checkpoints to keep, the newest ones, or all. A finished run '
  'keeps them, too.',
)
flags.DEFINE_string(
  'init_from',
  None,
  'Directory of a run (or of one checkpoint) whose parameters the new run '
  'starts from; its newest checkpoint is read. The algorithm, the optimizer '
  'and, with --init_replicas=mean, the number of replicas may differ.',
)
flags.DEFINE_enum(
  'init_replicas',
  'mean',
  ['mean', 'each'],
  'Start of the replicas with --init_from: mean, all at the average of the '
  'replicas there; each, every replica at its own point.',
)
flags.DEFINE_bool(
  'progress',
  True,
  'Show a progress bar on a terminal, else a line for each record.',
)
flags.DEFINE_list(
  'logger',
  [],
  'Functions that make a Logger of a run, such as my_module:my_logger; it gets '
  'each record (experiments/running/logs/loggers.py).',
)


for _alias, _name in ALIASES.items():
  flags.DEFINE_alias(_alias, _name)


def fill_in(values: flags.FlagValues) -> str:
  """Gives the default algorithm a period, where no flag says when it averages.

  Returns:
    The flags that are the default, as they would be typed; '' for none.
  """
  if any(values[n].present for n in ('algorithm', 'period', 'when')):
    return ''
  values['period'].parse(str(DEFAULT_PERIOD))
  return f'--algorithm={values.algorithm} --period={DEFAULT_PERIOD}'


def from_flags(values: flags.FlagValues, *, algorithm: str) -> RunConfig:
  """The run that the flags describe, with this algorithm.

  Raises:
    ValueError: if a flag has no sense, or does nothing for this run.
  """
  algorithm = algorithm_flags.find(algorithm)
  names = [field.name for field in dataclasses.fields(RunConfig)]
  fields: dict[str, Any] = {n: values[n].value for n in names if n != 'options'}
  fields['algorithm'] = algorithm
  if values['num_steps'].present and values['num_epochs'].present:
    raise ValueError('--num_steps and --num_epochs are two lengths; give one')
  drops = [
    _number('learning_rate_drops', d) for d in values.learning_rate_drops
  ]
  fields['learning_rate_drops'] = tuple(drops)
  if values.optimizer != 'sgd' and not values['momentum'].present:
    fields['momentum'] = 0.0
  if values.text_file is not None and not values['dataset'].present:
    fields['dataset'] = data.TEXT
  if fields['dataset'] == data.TEXT and not values['model'].present:
    fields['model'] = 'transformer'
  if values.model_options is not None:
    parsed = typed_options.parse('model_options', values.model_options)
    fields['model_options'] = parsed
  options = _options(values, algorithm)
  return check(RunConfig(**fields, options=options))


def _options(values: flags.FlagValues, algorithm: str) -> dict[str, Any]:
  """The options of an algorithm that flags give."""
  given = {n: values[n].value for n in OPTIONS if values[n].present}
  if values.algorithm_options is None:
    return algorithm_flags.canonical(algorithm, given)
  own = typed_options.parse('algorithm_options', values.algorithm_options)
  if not dotted.is_dotted(algorithm):
    raise ValueError(
      f'--algorithm_options does nothing for --algorithm={algorithm}, whose '
      'options are flags; write '
      + ' '.join(f'--{name}={text}' for name, text in own.items())
    )
  for name in own:
    if name in given:
      raise ValueError(f'--algorithm_options: --{name} gives it, too')
  return algorithm_flags.canonical(algorithm, {**given, **own})


def check(config: RunConfig) -> RunConfig:
  """Returns the config.

  Raises:
    ValueError: if a value has no sense, or does nothing for this run.
  """
  algorithm_flags.find(config.algorithm)
  data.check(config)
  tasks.check(config)
  _check_kind(config)
  averages.check(config.algorithm, config.options)
  own = {n: v for n, v in config.options.items() if n not in averages.OPTIONS}
  algorithm_flags.check(config.algorithm, own)
  if (config.partition == 'dirichlet') != (config.dirichlet_alpha is not None):
    raise ValueError(
      '--partition=dirichlet and --dirichlet_alpha go together, got '
      f'--partition={config.partition} and '
      f'--dirichlet_alpha={config.dirichlet_alpha}'
    )
  _in_range('num_replicas', config.num_replicas, MOST_REPLICAS)
  _in_range('batch_size', config.batch_size, MAX_STEPS)
  if config.num_steps is not None:
    check_length('--num_steps', config.num_steps)
  if config.dirichlet_alpha is not None:
    check_positive('--dirichlet_alpha', config.dirichlet_alpha)
  if not 0 < config.num_epochs < math.inf:
    raise ValueError(f'--num_epochs must be > 0, got {config.num_epochs}')
  check_seed('--seed', config.seed)
  learning_rates.check(config)
  optimizers.check(config)
  return config


def _check_kind(config: RunConfig) -> None:
  """Raises ValueError if the dataset is of another kind than the model.

  Where one is the user's own, it is known when there are data.
  """
  is_text = config.dataset == data.TEXT
  fitting = tasks.LANGUAGE_MODELS if is_text else tasks.CLASSIFIERS
  own = map(dotted.is_dotted, (config.model, config.dataset))
  if config.model not in fitting and not any(own):
    raise ValueError(
      f'--model={config.model} does not read --dataset={config.dataset}; use '
      f'--model={" or ".join(fitting)}'
    )
  if is_text and config.augment:
    raise ValueError(f'--augment is of images; leave it out with {data.TEXT}')
  if is_text and config.partition == 'dirichlet':
    raise ValueError(
      f'--partition=dirichlet skews labels, which --dataset={data.TEXT} has '
      'not; use shared or sharded'
    )


def _in_range(name: str, value: int, most: int) -> None:
  if value < 1:
    raise ValueError(f'--{name} must be >= 1, got {value}')
  if value > most:
    raise ValueError(f'--{name} must be <= {most}, got {value}')


def _number(name: str, text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise ValueError(f'--{name} expects numbers, got {text!r}') from None


def all_flags() -> dict[str, Any]:
  """Every flag of a run, resolved: what its directory keeps."""
  defined = flags.FLAGS.flags_by_module_dict()
  owners = [__name__, *(m.__name__ for m in (*_PARTS, cli))]
  return {
    flag.name: flag.value
    for owner in owners
    for flag in defined[owner]
    if flag.name not in ALIASES
  }

"""Flags that describe a run, and their conversion to a checked `RunConfig`."""

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
  fault_flags,
  faults,
  learning_rates,
  named,
  network,
  optimizers,
  tasks,
  typed_options,
)
from experiments.running.flags.run_config import OPTIONS, RunConfig
from experiments.running.process import exit_codes, watchdog
from prsgd_jax.checks import (
  MAX_STEPS,
  check_length,
  check_positive,
  check_seed,
)
from prsgd_jax.engine import processes
from prsgd_jax.engine.block_mapping import BLOCKS

# A limit, because replicas are rows of every array.
MOST_REPLICAS = 2**16
PARTITIONS = ('shared', 'sharded', 'dirichlet')
# Short names to type -> flags.
ALIASES = {
  'lr': 'learning_rate',
  'epochs': 'num_epochs',
  'steps': 'num_steps',
  'bs': 'batch_size',
  'wd': 'weight_decay',
  'replicas': 'num_replicas',
}
DEFAULT_PERIOD = 4  # of the default algorithm
_PARTS = (
  algorithm_flags,
  data,
  fault_flags,
  learning_rates,
  network,
  optimizers,
  tasks,
)

algorithm_flags.define_flags()
for _module in _PARTS:
  flags.adopt_module_key_flags(_module)
flags.DEFINE_string(
  'algorithm',
  'pr_sgd',
  'Algorithm to train with: a name from the list in --help, or MODULE:NAME of '
  'your own function fn(tx, *, ...), which takes an optimizer and returns an '
  'algorithm.',
)
flags.DEFINE_list(
  'algorithm_options',
  None,
  'Arguments of your own --algorithm, as NAME=VALUE,NAME=VALUE, such as '
  'alpha=0.1,steps=4. A built-in algorithm has a flag for each argument.',
)
flags.DEFINE_string(
  'when',
  None,
  'Schedule of the averages; replaces --period or --check_period. One of '
  f'{", ".join(named.SCHEDULES)}, each with its numbers: every:PERIOD, '
  'doubling:FIRST[:ROUNDS_EACH], linear_growth:FIRST:INCREMENT, '
  'with_probability:P, qsr:ALPHA:BASE_PERIOD, post_local:SWITCH_STEP:PERIOD, '
  'at:STEP+STEP+... (steps count from 0), intervals:LENGTH+LENGTH+... (the '
  'last length repeats). Default: periodic.',
)
flags.DEFINE_string(
  'local',
  None,
  'Algorithm that replaces the optimizer step as the local step of '
  f'--algorithm. One of {", ".join(named.LOCAL)}, optionally followed by its '
  'period and its mixing: sgp:one_peer_exponential, k_avg:2:group_mean:4. '
  'Default: the optimizer step.',
)
flags.DEFINE_string(
  'average_mixing',
  None,
  'Weights with which an average combines the replicas: one of '
  f'{", ".join(named.MIXINGS)}. Default: mean, of all replicas.',
)
flags.DEFINE_string(
  'average_codec',
  None,
  'Codec that compresses what an average sends: the change of each replica '
  'since the last average. Requires an algorithm that stores the start of the '
  f'round. A compressor, one of {", ".join(named.COMPRESSORS)}; or one of '
  f'{", ".join(named.CODECS)} followed by a compressor, such as '
  'feedback:top_k:0.1, or with a decay feedback:0.9:top_k:0.1. In '
  'top_k:0.1:e3m0, e3m0 codes the values that top_k keeps. Default: no '
  'compression.',
)
flags.DEFINE_string(
  'average_robust',
  None,
  'Robust average in place of the mean, which leaves out replicas that are not '
  'finite. One of finite (their mean), median, trimmed:B (without the B '
  'smallest and the B largest values), geometric_median, krum:F[:M] (the mean '
  'of the M replicas nearest to the others, if F may be faulty). Default: the '
  'mean of all.',
)
flags.DEFINE_enum(
  'buffers',
  None,
  ['keep', 'average', 'reset'],
  'What an average does to the optimizer state of the replicas, such as their '
  'momentum: keep, average, or reset it to its initial value. Default: keep; '
  'reset for fedavg and fedprox.',
)
flags.DEFINE_enum(
  'batch_stats',
  None,
  ['local', 'average', 'reestimate'],
  'Treatment of batch-normalization statistics. local: each replica keeps its '
  'own. average: an average includes them. reestimate: each replica keeps its '
  'own, and every evaluation computes new ones for the averaged model from '
  'training batches. Default: local.',
)
flags.DEFINE_integer(
  'num_replicas', 8, f'Number N of model copies, 1 to {MOST_REPLICAS}.'
)
flags.DEFINE_integer(
  'num_devices',
  None,
  'Number of devices that hold the replicas, of all processes together; must '
  'divide --num_replicas. On a CPU, this number of devices is simulated. '
  'Default: the largest number of available devices that divides '
  '--num_replicas.',
)
flags.DEFINE_enum(
  'map_by',
  'pmap',
  ['pmap', 'shard_map'],
  'Function of JAX that maps over the devices. The results are equal bit for '
  'bit. Default: pmap.',
)
flags.DEFINE_enum(
  'block',
  None,
  list(BLOCKS),
  'How the replicas of a device are computed: by batched operations (vmap), by '
  'operations for each replica (unrolled), or one after the other (loop). The '
  'results are equal up to rounding. Default: the fastest known way for the '
  'model, which the program prints.',
)
flags.DEFINE_integer(
  'batch_size', 32, 'Number of examples per replica and step, >= 1.'
)
flags.DEFINE_enum(
  'partition',
  'shared',
  PARTITIONS,
  'Distribution of the training examples: all replicas draw from one pool '
  '(shared), each has its own random part (sharded), or each has its own part '
  'with skewed labels (dirichlet).',
)
flags.DEFINE_float(
  'dirichlet_alpha',
  None,
  'Concentration parameter of --partition=dirichlet, > 0, required with it. '
  'Smaller values skew the labels more.',
)
flags.DEFINE_bool(
  'augment',
  False,
  'Augment training images: pad by 4 pixels, crop at random, and flip left to '
  'right at random.',
)
flags.DEFINE_integer(
  'seed', 0, 'Seed of the initial parameters, data order and augmentation.'
)
flags.DEFINE_float(
  'num_epochs',
  20,
  'Length of the run in passes over the training data, counted over all '
  'replicas together; > 0.',
)
flags.DEFINE_integer(
  'num_steps',
  None,
  'Length of the run in steps, >= 1; replaces --num_epochs.',
)
flags.DEFINE_integer(
  'log_every',
  50,
  'Number of steps between records, >= 1. A recorded loss is the mean over '
  'these steps.',
)
flags.DEFINE_integer(
  'eval_every',
  100,
  'Number of steps between evaluations on the test split; a multiple of '
  '--log_every.',
)
flags.DEFINE_integer(
  'checkpoint_every',
  500,
  'Number of steps between checkpoints; a multiple of --log_every.',
)
flags.DEFINE_string(
  'keep',
  '3',
  'Checkpoints to keep, as terms joined by commas. 3: the three newest. all: '
  'all of them. every:1000: those at multiples of 1000 steps. lowest:test_loss '
  'or highest:test_accuracy: the one with the best value in its record. The '
  'newest one always stays.',
)
flags.DEFINE_float(
  'stall_seconds',
  None,
  'Seconds without a step after which the process prints its stacks and exits '
  f'with code {exit_codes.STALLED}; 0 for no limit. A compilation, an '
  f'evaluation and a checkpoint may take {watchdog.PATIENCE} times as long. '
  f'Default: {watchdog.DEFAULT_SECONDS:.0f} for several processes, else 0.',
)
flags.DEFINE_string(
  'init_from',
  None,
  'Directory of a run, of its checkpoints or of one checkpoint to take the '
  'initial parameters from; of several checkpoints, the newest is read. The '
  'algorithm and the optimizer may differ, and with --init_replicas=mean the '
  'number of replicas.',
)
flags.DEFINE_enum(
  'init_replicas',
  'mean',
  ['mean', 'each'],
  'Initial parameters with --init_from. mean: every replica starts from the '
  'average of the saved replicas. each: replica i starts from saved replica i.',
)
flags.DEFINE_bool(
  'progress',
  True,
  'Show progress on stderr: a bar on a terminal, otherwise a line per record.',
)
flags.DEFINE_list(
  'logger',
  [],
  'Your own loggers, MODULE:NAME,MODULE:NAME: functions that take a Run and '
  'return a Logger, which receives each record. See '
  'experiments/running/logs/loggers.py.',
)

for _alias, _name in ALIASES.items():
  flags.DEFINE_alias(_alias, _name)


def fill_in(values: flags.FlagValues) -> str:
  """Set flags that have a default only together with others.

  These are the period of the default algorithm if no flag schedules averages,
  and with several processes the size of a group: the replicas of a process,
  because the frequent averages then stay inside a host.

  Returns:
    The default flags as text for the command line; '' if none is used.
  """
  if not any(values[n].present for n in ('algorithm', 'period', 'when')):
    values['period'].parse(str(DEFAULT_PERIOD))
    return f'--algorithm={values.algorithm} --period={DEFAULT_PERIOD}'
  count, rest = divmod(values.num_replicas, processes.count())
  given = {n for n in ('group_size', 'algorithm_options') if values[n].present}
  if processes.count() == 1 or rest or given:
    return ''
  algorithm = algorithm_flags.find(values.algorithm)
  if 'group_size' not in algorithm_flags.keywords(algorithm):
    return ''
  values['group_size'].parse(str(count))
  return f'--group_size={count}, the replicas of one process'


def from_flags(values: flags.FlagValues, *, algorithm: str) -> RunConfig:
  """Return the run that the flags describe.

  Args:
    values: the parsed flags.
    algorithm: name of the algorithm, which replaces --algorithm.

  Raises:
    ValueError: if a value is invalid, or a flag has no effect on this run.
  """
  algorithm = algorithm_flags.find(algorithm)
  names = [field.name for field in dataclasses.fields(RunConfig)]
  names = [name for name in names if name not in ('options', 'sizes')]
  fields: dict[str, Any] = {n: values[n].value for n in names}
  fields['algorithm'] = algorithm
  if values['num_steps'].present and values['num_epochs'].present:
    raise ValueError(
      '--num_steps and --num_epochs both set the length; give one'
    )
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
  """Return the options of an algorithm that the flags set."""
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
      raise ValueError(
        f'--algorithm_options: {name} is already given by --{name}; give one'
      )
  return algorithm_flags.canonical(algorithm, {**given, **own})


def check(config: RunConfig) -> RunConfig:
  """Return the config after checking it.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  algorithm_flags.find(config.algorithm)
  data.check(config)
  tasks.check(config)
  _check_kind(config)
  averages.check(config.algorithm, config.options)
  faults.check(config.options)
  of_any = (*averages.OPTIONS, *faults.OPTIONS)
  own = {n: v for n, v in config.options.items() if n not in of_any}
  algorithm_flags.check(config.algorithm, own)
  if (config.partition == 'dirichlet') != (config.dirichlet_alpha is not None):
    raise ValueError(
      '--partition=dirichlet and --dirichlet_alpha require each other, got '
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
  """Raise ValueError if the model does not read this kind of dataset.

  A model or dataset of the user is checked later, because its kind is unknown
  until the data are loaded.
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
    raise ValueError(
      f'--augment requires images; leave it out with --dataset={data.TEXT}'
    )
  if is_text and config.partition == 'dirichlet':
    raise ValueError(
      f'--partition=dirichlet requires labels, but --dataset={data.TEXT} has '
      'none; use shared or sharded'
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
  """Return the value of every flag of a run, as saved in its directory."""
  defined = flags.FLAGS.flags_by_module_dict()
  owners = [__name__, *(m.__name__ for m in (*_PARTS, cli))]
  return {
    flag.name: flag.value
    for owner in owners
    for flag in defined[owner]
    if flag.name not in ALIASES
  }

"""A run as a value: its flags, and the objects that they name."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import itertools
import math
from typing import Any

from absl import flags
from flax import linen as nn
import jax.numpy as jnp

from experiments import algorithm_flags, averages, cli, named, network
from prsgd_jax import models
from prsgd_jax.datasets import Dataset

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
  'mlp': models.MLP,
  'lenet': models.LeNet5,
  'resnet20': models.ResNet20,
  'resnet18': models.ResNet18,
  'lstm': models.LSTMClassifier,
}
LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
  'transformer': models.Transformer,
}
MODELS = {**CLASSIFIERS, **LANGUAGE_MODELS}
# The dataset that language models read; the others are of images.
TEXT = 'text'
OPTIMIZERS = ('sgd', 'adam', 'adamw', 'muon')
# Optimizers whose weight decay is part of the step, not of the loss.
DECOUPLED = ('adamw', 'muon')
PARTITIONS = ('shared', 'sharded', 'dirichlet')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Flags of the algorithms, and those that stand for an argument of many: when
# they average, their local step, what an average does.
OPTIONS = (
  *algorithm_flags.define_flags(),
  'when',
  'local',
  *averages.OPTIONS,
)

flags.adopt_module_key_flags(algorithm_flags)
flags.adopt_module_key_flags(network)
flags.DEFINE_string(
  'algorithm', 'pr_sgd', f'One of {", ".join(algorithm_flags.ALGORITHMS)}.'
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
flags.DEFINE_string(
  'dataset',
  'digits',
  'digits, text, or cifar10, mnist, fashion_mnist in data_dir.',
)
flags.DEFINE_string('model', 'mlp', f'One of {", ".join(MODELS)}.')
flags.DEFINE_integer('num_replicas', 8, 'N, replicas of the model.')
flags.DEFINE_integer(
  'num_devices',
  None,
  'D, devices that hold them; must divide N [the most there are that do]. '
  'On a CPU that many fake devices are made.',
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
flags.DEFINE_float('learning_rate', 0.1, 'gamma, at the start.')
flags.DEFINE_list(
  'learning_rate_drops', [], 'Epochs after which it is divided by 10.'
)
flags.DEFINE_float(
  'warmup_epochs', 0.0, 'Epochs in which it rises, step by step from near 0.'
)
flags.DEFINE_enum(
  'optimizer',
  'sgd',
  OPTIMIZERS,
  'Of every replica. muon orthogonalizes the steps of matrices; the other '
  'parameters have those of adamw.',
)
flags.DEFINE_float('momentum', 0.9, 'Of --optimizer=sgd; 0 for none.')
flags.DEFINE_bool('nesterov', False, "Nesterov's form of the momentum.")
flags.DEFINE_float(
  'weight_decay',
  0.0,
  'Coupled L2, part of the gradient; with adamw and muon decoupled, part of '
  'the step.',
)
flags.DEFINE_enum(
  'dtype',
  'float32',
  list(DTYPES),
  'Of the computation; parameters are float32 always.',
)
flags.DEFINE_integer('seed', 0, 'Of initial point, data order, augmentation.')
flags.DEFINE_float(
  'num_epochs', 20, 'Length: passes over the data, all replicas together.'
)
flags.DEFINE_integer('num_steps', None, 'Length in steps, over num_epochs.')
flags.DEFINE_integer(
  'log_every', 50, 'Steps between records, whose losses are means over them.'
)
flags.DEFINE_integer(
  'eval_every', 100, 'Steps between evaluations, a multiple of log_every.'
)
flags.DEFINE_integer(
  'checkpoint_every', 500, 'Steps between checkpoints, likewise.'
)
flags.DEFINE_bool('progress', True, 'Show a progress bar.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """What determines the trajectory of a run, and how long it is.

  Attributes:
    options: of the algorithm, by the names of the flags; those given only.
  """

  algorithm: str
  options: Mapping[str, Any]
  dataset: str
  model: str
  num_replicas: int
  batch_size: int
  partition: str
  dirichlet_alpha: float | None
  augment: bool
  learning_rate: float
  learning_rate_drops: tuple[float, ...]
  warmup_epochs: float = 0.0
  optimizer: str
  momentum: float
  nesterov: bool
  weight_decay: float
  dtype: str
  seed: int
  num_epochs: float
  num_steps: int | None

  def description(self, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint is compared by: all but the length of the run.

    The length counts where the steps of the algorithm or of its schedule
    depend on it. The data count by their contents.
    """
    fields = dataclasses.asdict(self)
    of_length = named.depends_on_length(self.options.get('when', ''))
    of_length |= 'num_steps' in algorithm_flags.keywords(self.algorithm)
    if not of_length:
      del fields['num_epochs'], fields['num_steps']
    return {**fields, 'data': _fingerprint(dataset)}

  def label(self) -> str:
    """Short and telling, such as 'pr_sgd period=4'."""
    options = [f'{n}={self.options[n]}' for n in OPTIONS if n in self.options]
    return ' '.join([self.algorithm, *options]).replace(',', '+')

  def slug(self) -> str:
    """The label as the name of a directory."""
    return self.label().replace(' ', '-').replace('=', '')


def from_flags(values: flags.FlagValues, *, algorithm: str) -> RunConfig:
  """The run that the flags describe, with this algorithm.

  Raises:
    ValueError: if a flag has no sense, or does nothing for this run.
  """
  given = {n: values[n].value for n in OPTIONS if values[n].present}
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
  return check(RunConfig(**fields, options=given))


def check(config: RunConfig) -> RunConfig:
  """Returns the config.

  Raises:
    ValueError: if a value has no sense, or does nothing for this run.
  """
  algorithm_flags.check_name(config.algorithm)
  _choose('model', MODELS, config.model)
  _check_task(config)
  averages.check(config.algorithm, config.options)
  own = {n: v for n, v in config.options.items() if n not in averages.OPTIONS}
  algorithm_flags.check(config.algorithm, own)
  if (config.partition == 'dirichlet') != (config.dirichlet_alpha is not None):
    raise ValueError(
      '--partition=dirichlet and --dirichlet_alpha go together, got '
      f'--partition={config.partition} and '
      f'--dirichlet_alpha={config.dirichlet_alpha}'
    )
  for name in ('num_replicas', 'batch_size'):
    _at_least(name, getattr(config, name), 1)
  if config.num_steps is not None:
    _at_least('num_steps', config.num_steps, 1)
  if not 0 < config.num_epochs < math.inf:
    raise ValueError(f'--num_epochs must be > 0, got {config.num_epochs}')
  if not 0 < config.learning_rate < math.inf:
    raise ValueError(f'--learning_rate must be > 0, got {config.learning_rate}')
  if not 0 <= config.weight_decay < math.inf:
    raise ValueError(f'--weight_decay must be >= 0, got {config.weight_decay}')
  if not 0 <= config.seed < 2**32:
    raise ValueError(f'--seed must be in 0 .. 2**32 - 1, got {config.seed}')
  grid = (0.0, *config.learning_rate_drops, math.inf)
  if not all(a < b for a, b in itertools.pairwise(grid)):
    raise ValueError(
      '--learning_rate_drops must be epochs > 0 that increase, got '
      f'{",".join(map(str, config.learning_rate_drops))}'
    )
  if not 0 <= config.warmup_epochs < grid[1]:
    raise ValueError(
      '--warmup_epochs must be >= 0 and end before the first of '
      f'--learning_rate_drops, got {config.warmup_epochs}'
    )
  _check_optimizer(config)
  return config


def _check_task(config: RunConfig) -> None:
  """Raises ValueError if the dataset is of another kind than the model."""
  is_text = config.dataset == TEXT
  fitting = LANGUAGE_MODELS if is_text else CLASSIFIERS
  if config.model not in fitting:
    raise ValueError(
      f'--model={config.model} does not read --dataset={config.dataset}; use '
      f'--model={" or ".join(fitting)}'
    )
  if is_text and config.augment:
    raise ValueError(f'--augment is of images; leave it out with {TEXT}')
  if is_text and config.partition == 'dirichlet':
    raise ValueError(
      f'--partition=dirichlet skews labels, which --dataset={TEXT} has not; '
      'use shared or sharded'
    )


def _check_optimizer(config: RunConfig) -> None:
  """Raises ValueError if the flags of the optimizer do not fit together."""
  if config.optimizer not in OPTIMIZERS:
    raise ValueError(
      f'unknown --optimizer={config.optimizer}; use one of '
      f'{", ".join(OPTIMIZERS)}'
    )
  if not 0 <= config.momentum < 1:
    raise ValueError(f'--momentum must be in [0, 1), got {config.momentum}')
  if config.optimizer == 'sgd':
    for name, given in (
      ('buffers', config.options.get('buffers', 'keep') != 'keep'),
      ('nesterov', config.nesterov),
    ):
      if given and not config.momentum:
        raise ValueError(f'--{name} does nothing without --momentum')
    if config.nesterov and 'momentum' in algorithm_flags.keywords(
      config.algorithm
    ):
      raise ValueError(
        f'--nesterov does nothing for --algorithm={config.algorithm}, whose '
        'momentum is of that form; leave it out'
      )
    return
  for name in ('momentum', 'nesterov'):
    if getattr(config, name):
      raise ValueError(
        f'--{name} does nothing for --optimizer={config.optimizer}; '
        'leave it out'
      )
  if 'momentum' in algorithm_flags.keywords(config.algorithm):
    raise ValueError(
      f'--algorithm={config.algorithm} has momentum of its own, which goes '
      f'with --optimizer=sgd, not {config.optimizer}'
    )


def total_steps(config: RunConfig, num_examples: int) -> int:
  """Length of the run in steps."""
  if config.num_steps is not None:
    return config.num_steps
  return steps_of_epochs(config, num_examples, config.num_epochs)


def steps_of_epochs(config: RunConfig, num_examples: int, epochs: float) -> int:
  """Returns the first step by which that many epochs are done."""
  per_step = config.num_replicas * config.batch_size
  return max(1, math.ceil(round(epochs * num_examples / per_step, 6)))


def warmup_steps(config: RunConfig, num_examples: int) -> int:
  """Returns the number of steps in which the learning rate rises."""
  if not config.warmup_epochs:
    return 0
  return steps_of_epochs(config, num_examples, config.warmup_epochs)


def _fingerprint(dataset: Dataset) -> str:
  digest = hashlib.sha256()
  for split in (dataset.train, dataset.test):
    for name in sorted(split):
      digest.update(str(split[name].shape).encode())
      digest.update(split[name].tobytes())
  return digest.hexdigest()[:16]


def _choose(name: str, table: Mapping[str, Any], value: str) -> Any:
  if value not in table:
    raise ValueError(f'unknown --{name}={value}; use one of {", ".join(table)}')
  return table[value]


def _at_least(name: str, value: int, least: int) -> None:
  if value < least:
    raise ValueError(f'--{name} must be >= {least}, got {value}')


def _number(name: str, text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise ValueError(f'--{name} expects numbers, got {text!r}') from None


def all_flags() -> dict[str, Any]:
  """Every flag of a run, resolved: what its directory keeps."""
  values = flags.FLAGS
  owners = [m.__name__ for m in (algorithm_flags, cli, network)]
  defined = values.flags_by_module_dict()
  modules = [defined[owner] for owner in (__name__, *owners)]
  return {flag.name: flag.value for module in modules for flag in module}

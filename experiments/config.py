"""A run as a value: its flags, and the objects that they name."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import inspect
import itertools
import math
from typing import Any, NamedTuple

from absl import flags
from flax import linen as nn
import jax.numpy as jnp
import optax

from experiments import cli
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.classification import Classifier, classifier
from prsgd_jax.datasets import Dataset
from prsgd_jax.input_pipeline import Sampler, dirichlet, sharded, shared

ALGORITHMS: dict[str, Callable[..., pr.ReplicaTransformation]] = {
  'ssgd': pr.ssgd,
  'one_shot_averaging': pr.one_shot_averaging,
  'pr_sgd': pr.pr_sgd,
  'k_avg': pr.k_avg,
  'hier_avg': pr.hier_avg,
  'd_psgd': pr.d_psgd,
}
MODELS: dict[str, Callable[..., nn.Module]] = {
  'mlp': models.MLP,
  'lenet': models.LeNet5,
  'resnet20': models.ResNet20,
  'lstm': models.LSTMClassifier,
}
MIXINGS: dict[str, Callable[[], pr.Mixing]] = {'ring': pr.ring, 'mean': pr.mean}
PARTITIONS = ('shared', 'sharded', 'dirichlet')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Flags of the algorithms -> the keyword of theirs that each one sets.
OPTIONS = {
  'period': 'period',
  'local_period': 'local_period',
  'global_period': 'global_period',
  'group_size': 'group_size',
  'mixing': 'mixing',
  'buffers': 'reset',
  'batch_stats': 'what',
}


flags.DEFINE_string('algorithm', 'pr_sgd', f'One of {", ".join(ALGORITHMS)}.')
flags.DEFINE_integer(
  'period', None, 'Steps between averages: I of pr_sgd, K of k_avg.'
)
flags.DEFINE_integer(
  'local_period', None, 'hier_avg: K1, steps between averages of a group.'
)
flags.DEFINE_integer(
  'global_period', None, 'hier_avg: K2, steps between averages of all.'
)
flags.DEFINE_integer('group_size', None, 'hier_avg: S, replicas in a group.')
flags.DEFINE_string(
  'mixing', None, f'd_psgd: with whom, one of {", ".join(MIXINGS)} [ring].'
)
flags.DEFINE_enum(
  'buffers',
  None,
  ['keep', 'average', 'reset'],
  'What an average does to the momentum buffers [keep].',
)
flags.DEFINE_enum(
  'batch_stats',
  None,
  ['local', 'average'],
  'What an average does to the batch statistics [local].',
)
flags.DEFINE_string(
  'dataset', 'digits', 'digits, or cifar10, mnist, fashion_mnist in data_dir.'
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
flags.DEFINE_float('momentum', 0.9, 'Of every replica; 0 for none.')
flags.DEFINE_bool('nesterov', False, "Nesterov's form of the momentum.")
flags.DEFINE_float('weight_decay', 0.0, 'Coupled L2, part of the gradient.')
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
  momentum: float
  nesterov: bool
  weight_decay: float
  dtype: str
  seed: int
  num_epochs: float
  num_steps: int | None

  def description(self, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint is compared by: all but the length of the run.

    The length counts where the algorithm's own steps depend on it. The data
    count by their contents.
    """
    fields = dataclasses.asdict(self)
    if 'num_steps' not in _keywords(self.algorithm):
      del fields['num_epochs'], fields['num_steps']
    return {**fields, 'data': _fingerprint(dataset)}

  def label(self) -> str:
    """Short and telling, such as 'pr_sgd period=4'."""
    options = [f'{n}={self.options[n]}' for n in OPTIONS if n in self.options]
    return ' '.join([self.algorithm, *options])

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
  return check(RunConfig(**fields, options=given))


def check(config: RunConfig) -> RunConfig:
  """Returns the config.

  Raises:
    ValueError: if a value has no sense, or does nothing for this run.
  """
  _choose('algorithm', ALGORITHMS, config.algorithm)
  _choose('model', MODELS, config.model)
  keywords = _keywords(config.algorithm)
  for name in config.options:
    keyword = OPTIONS[name]
    if name == 'buffers' and config.options[name] == 'average':
      keyword = 'what'
    if keyword not in keywords:
      raise ValueError(
        f'--{name} does nothing for --algorithm={config.algorithm}; '
        'leave it out'
      )
  for name, parameter in keywords.items():
    required = parameter.default is inspect.Parameter.empty
    if required and name in OPTIONS and name not in config.options:
      raise ValueError(
        f'--algorithm={config.algorithm} needs --{name}; for example --{name}=4'
      )
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
  if not 0 <= config.momentum < 1:
    raise ValueError(f'--momentum must be in [0, 1), got {config.momentum}')
  if config.options.get('buffers', 'keep') != 'keep' and not config.momentum:
    raise ValueError('--buffers does nothing without --momentum')
  if config.nesterov and not config.momentum:
    raise ValueError('--nesterov does nothing without --momentum')
  return config


def total_steps(config: RunConfig, num_examples: int) -> int:
  """Length of the run in steps."""
  if config.num_steps is not None:
    return config.num_steps
  return steps_of_epochs(config, num_examples, config.num_epochs)


def steps_of_epochs(config: RunConfig, num_examples: int, epochs: float) -> int:
  """The first step by which so many epochs are done."""
  per_step = config.num_replicas * config.batch_size
  return max(1, math.ceil(round(epochs * num_examples / per_step, 6)))


def build_schedule(config: RunConfig, num_examples: int) -> optax.Schedule:
  """The learning rate, a function of the engine's step."""
  drops: dict[int, float] = {}
  for epochs in config.learning_rate_drops:
    step = steps_of_epochs(config, num_examples, epochs)
    drops[step] = 0.1 * drops.get(step, 1.0)
  return optax.piecewise_constant_schedule(config.learning_rate, drops)


class Plan(NamedTuple):
  """The chain that the flags name, its learning rate, and its length."""

  algorithm: pr.ReplicaTransformation
  schedule: optax.Schedule
  num_steps: int


def build_plan(config: RunConfig, num_examples: int) -> Plan:
  """Builds what does not depend on the data but for its size.

  Raises:
    ValueError: from the algorithm's factory.
  """
  num_steps = total_steps(config, num_examples)
  schedule = build_schedule(config, num_examples)
  tx = optax.sgd(schedule, config.momentum or None, config.nesterov)
  options = dict(config.options)
  buffers = options.pop('buffers', 'keep')
  batch_stats = options.pop('batch_stats', 'local')
  what = ['params']
  what += ['opt_state'] * (buffers == 'average')
  what += ['model_state'] * (batch_stats == 'average')
  if len(what) > 1:
    options['what'] = what
  if buffers == 'reset':
    interval = 'period' if 'period' in options else 'local_period'
    options['reset'] = pr.every(options[interval])
  if 'mixing' in options:
    options['mixing'] = _choose('mixing', MIXINGS, options['mixing'])()
  if 'num_steps' in _keywords(config.algorithm):
    options['num_steps'] = num_steps
  return Plan(ALGORITHMS[config.algorithm](tx, **options), schedule, num_steps)


def build_task(config: RunConfig, num_classes: int) -> Classifier:
  """The model and the loss that the flags name."""
  model = MODELS[config.model](num_classes, dtype=DTYPES[config.dtype])
  return classifier(model, weight_decay=config.weight_decay)


def build_sampler(config: RunConfig, dataset: Dataset) -> Sampler:
  """Who gets which examples.

  Raises:
    ValueError: if there are too few examples for the replicas and the batch.
  """
  sizes = (config.num_replicas, config.batch_size)
  labels = dataset.train['label']
  if config.partition == 'dirichlet':
    return dirichlet(
      labels, *sizes, alpha=config.dirichlet_alpha or 0, seed=config.seed
    )
  sampler = {'shared': shared, 'sharded': sharded}[config.partition]
  return sampler(len(labels), *sizes, seed=config.seed)


def _fingerprint(dataset: Dataset) -> str:
  digest = hashlib.sha256()
  for split in (dataset.train, dataset.test):
    for name in sorted(split):
      digest.update(str(split[name].shape).encode())
      digest.update(split[name].tobytes())
  return digest.hexdigest()[:16]


def _keywords(algorithm: str) -> dict[str, inspect.Parameter]:
  parameters = inspect.signature(ALGORITHMS[algorithm]).parameters
  return {n: p for n, p in parameters.items() if p.kind == p.KEYWORD_ONLY}


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
  modules = (values.flags_by_module_dict()[m] for m in (__name__, cli.__name__))
  return {flag.name: flag.value for module in modules for flag in module}

"""Flags that select the model and the loss of a run: built in, or your own."""

from collections.abc import Callable, Mapping
import difflib
import inspect
from typing import Any

from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.running.flags import (
  dotted,
  optimizers,
  own_data,
  typed_options,
)
from experiments.running.flags.run_config import RunConfig
from prsgd_jax import models
from prsgd_jax.models.classification import Task, classifier, mode
from prsgd_jax.models.language_modeling import language_model

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
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Parameters of a model that the data, another flag or flax set.
PROVIDED = (
  'num_classes', 'vocabulary_size', 'max_length', 'dtype', 'parent', 'name',
)  # fmt: skip

flags.DEFINE_string(
  'model',
  'mlp',
  f'Model to train: {", ".join(CLASSIFIERS)} (images), '
  f'{", ".join(LANGUAGE_MODELS)} (text), or MODULE:NAME of your own flax linen '
  'class or module, a function that returns one, or a Task. With '
  '--dataset=text the default is transformer.',
)
flags.DEFINE_list(
  'model_options',
  None,
  'Arguments of --model, as NAME=VALUE,NAME=VALUE, such as '
  'width=64,num_blocks=4 for transformer. A list has + between its values, '
  'such as hidden=64+32 for mlp.',
)
flags.DEFINE_float(
  'label_smoothing',
  None,
  'Fraction of each training label that is spread over all classes, in [0, 1). '
  'Reported losses do not include it. Default: 0.',
)
flags.DEFINE_enum(
  'dtype',
  'float32',
  list(DTYPES),
  'Floating-point type of the computation. Parameters are always float32.',
)


def check(config: RunConfig) -> None:
  """Check the flags of the model before any data are read.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  name, smoothing = config.model, config.label_smoothing
  if not dotted.is_dotted(name) and name not in MODELS:
    close = difflib.get_close_matches(name.lower(), MODELS, n=1)
    meant = f'did you mean {close[0]}? ' if close else ''
    raise ValueError(
      f'unknown --model={name}; {meant}use one of {", ".join(MODELS)}, or '
      'MODULE:NAME of your own'
    )
  if smoothing is not None and not 0 <= smoothing < 1:
    raise ValueError(f'--label_smoothing must be in [0, 1), got {smoothing}')
  make = _maker(name)
  taken = _parameters(make)
  if config.dtype != 'float32' and 'dtype' not in taken:
    raise ValueError(
      f'--dtype does nothing: --model={name} has no dtype; leave it out'
    )
  _options(config, taken)


def _maker(name: str) -> Any:
  """Return a model, or the function or class that makes it."""
  if not dotted.is_dotted(name):
    return MODELS[name]
  make = dotted.load('model', name)
  if callable(make) or isinstance(make, Task):
    return make
  raise ValueError(
    f'--model={name} is {type(make).__name__}; expected a flax linen class or '
    'module, a function that makes one, or a Task'
  )


def _is_made(make: Any) -> bool:
  """Whether this is a model, not a function or class that makes one."""
  return isinstance(make, nn.Module | Task)


def _parameters(make: Any) -> Mapping[str, inspect.Parameter]:
  return {} if _is_made(make) else typed_options.parameters(make)


def _options(
  config: RunConfig, taken: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
  """Return the checked values of --model_options."""
  open_ones = {n: p for n, p in taken.items() if n not in PROVIDED}
  given = config.model_options or {}
  what = f'--model={config.model}'
  typed_options.check_names('model_options', what, given, open_ones)
  for name, parameter in open_ones.items():
    if parameter.default is parameter.empty and name not in given:
      raise ValueError(f'{what} needs {name}; add --model_options={name}=VALUE')
  values = {
    name: typed_options.value(
      'model_options', name, typed_options.kind(open_ones[name]), text
    )
    for name, text in given.items()
  }
  if not dotted.is_dotted(config.model):
    for name, value in values.items():
      if not all(1 <= size < 2**31 for size in _listed(value)):
        raise ValueError(
          f'--model_options: {name} must be >= 1 and below 2**31, got '
          f'{given[name]}'
        )
  return values


def _listed(value: Any) -> tuple[Any, ...]:
  return value if isinstance(value, tuple) else (value,)


def build(
  config: RunConfig, num_classes: int, batch: Mapping[str, Any]
) -> Task:
  """Return the model and the loss that the flags select.

  Args:
    config: the run.
    num_classes: number of label classes, or of distinct characters.
    batch: example input arrays, or their shapes.

  Raises:
    ValueError: if a user's own model does not fit the data or is not a model.
  """
  make = _maker(config.model)
  is_text = _reads_text(config, batch)
  if not _is_made(make):
    taken = _parameters(make)
    provided = {
      'num_classes': num_classes,
      'vocabulary_size': num_classes,
      'dtype': DTYPES[config.dtype],
    }
    if is_text:
      provided['max_length'] = batch['text'].shape[1] - 1
    given = {n: v for n, v in provided.items() if n in taken}
    make = make(**given, **_options(config, taken))
  if isinstance(make, Task):
    _check_own_loss(config)
    return make
  if not isinstance(make, nn.Module):
    raise ValueError(
      f'--model={config.model} gave {type(make).__name__}; expected a flax '
      'linen module or a Task'
    )
  if dotted.is_dotted(config.model):
    _check_logits(config, make, num_classes, batch)
  elif config.model_options:
    try:
      _check_logits(config, make, num_classes, batch)
    except Exception as error:  # flax asserts, for example
      raise ValueError(
        f'--model_options do not fit --model={config.model}: {error}'
      ) from error
  decoupled = config.optimizer in optimizers.DECOUPLED
  decay = 0.0 if decoupled else config.weight_decay
  task = language_model if is_text else classifier
  smoothing = config.label_smoothing or 0.0
  return task(make, weight_decay=decay, label_smoothing=smoothing)


def _reads_text(config: RunConfig, batch: Mapping[str, Any]) -> bool:
  """Whether a model reads the text of data that may also have images."""
  return 'text' in batch and config.model not in CLASSIFIERS


def _check_own_loss(config: RunConfig) -> None:
  """Raise ValueError if a flag changes the loss, which a Task defines."""
  decoupled = config.optimizer in optimizers.DECOUPLED
  for flag, given in (
    ('label_smoothing', config.label_smoothing),
    ('weight_decay', config.weight_decay and not decoupled),
  ):
    if given:
      raise ValueError(
        f'--{flag} does nothing: --model={config.model} is a Task with its own '
        'loss; leave it out'
      )


def _check_logits(
  config: RunConfig, model: nn.Module, num_classes: int, batch: Any
) -> None:
  """Raise ValueError unless a model returns a logit for each class."""
  inputs = batch.get('image')
  wanted: tuple[int, ...] = (1, num_classes)
  if _reads_text(config, batch):
    text = batch['text']
    inputs = jax.ShapeDtypeStruct((1, text.shape[1] - 1), text.dtype)
    wanted = (1, text.shape[1] - 1, num_classes)
  elif 'image' not in batch or 'label' not in batch:
    raise ValueError(
      f'--model={config.model} is a flax module, which reads image and label, '
      f'or text; --dataset={config.dataset} has {", ".join(batch)}: give a Task'
    )
  elif not own_data.are_labels(batch['label']):
    label = batch['label']
    shape = ', '.join(['n', *map(str, label.shape[1:])])
    raise ValueError(
      f'--dataset={config.dataset}: label must be int[n], got {label.dtype}'
      f'[{shape}]; take the argmax of one-hot labels, or give a Task as --model'
    )
  logits, _ = jax.eval_shape(
    lambda x: model.init_with_output(
      jax.random.key(0), x, **mode(model, train=False)
    ),
    inputs,
  )
  shape = getattr(logits, 'shape', type(logits).__name__)
  if shape != wanted:
    raise ValueError(
      f'--model={config.model} must return logits {wanted} for one example of '
      f'--dataset={config.dataset}, got {shape}'
    )

"""Check before a run that the user's own model and data fit each other."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.running.flags import dotted, tasks
from experiments.running.flags.run_config import RunConfig
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.models.classification import Task


def check_fit(config: RunConfig, dataset: Dataset) -> None:
  """Check that the flags fit the data.

  Args:
    config: the run.
    dataset: its data.

  Raises:
    ValueError: if the model or a flag requires another kind of data.
  """
  train = dataset.example()
  is_text = 'text' in train
  is_labeled = 'image' in train and 'label' in train
  names = ', '.join(train)
  what = f'--dataset={config.dataset}, whose arrays are {names}'
  fitting = {
    **(tasks.LANGUAGE_MODELS if is_text else {}),
    **(tasks.CLASSIFIERS if is_labeled else {}),
  }
  if not dotted.is_dotted(config.model) and config.model not in fitting:
    use = (
      f'use --model={" or ".join(fitting)}'
      if fitting
      else ('they must be image and label, or text; or give a Task as --model')
    )
    raise ValueError(f'--model={config.model} does not read {what}; {use}')
  if config.partition == 'dirichlet' and 'label' not in train:
    raise ValueError(
      f'--partition=dirichlet requires labels; got {what}; use shared or '
      'sharded'
    )
  if config.augment and np.ndim(train.get('image', 0)) != 4:
    raise ValueError(
      '--augment requires images [n, height, width, channels]; leave it out '
      f'with {what}'
    )


def check_init(config: RunConfig, made: Any) -> None:
  """Raise ValueError unless `init` returned parameters and a model state."""
  if not isinstance(made, tuple) or len(made) != 2:
    raise ValueError(
      f'--model={config.model}: init must return (params, model_state), as in '
      f'(params, {{}}), got {_shapes(made)}'
    )


def check_task(
  config: RunConfig,
  task: Task,
  params: Any,
  model_state: Any,
  batch: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
  """Check the values that `loss_fn` and `eval_fn` of a user's Task return.

  Args:
    config: the run.
    task: the Task.
    params: shapes of the parameters.
    model_state: shapes of the model state.
    batch: shapes of a batch of one example.

  Raises:
    ValueError: if a function returns values of another form than `Task` states.
  """
  if not dotted.is_dotted(config.model):
    return
  who = f'--model={config.model}'
  key = jax.eval_shape(lambda: jax.random.key(0))
  returned = jax.eval_shape(task.loss_fn, params, model_state, batch, key)
  if not _is_loss(returned):
    raise ValueError(
      f'{who}: loss_fn must return (loss, (model_state, metrics)), a float '
      f'scalar and a dict, got {_shapes(returned)}'
    )
  if not callable(task.eval_fn):
    raise ValueError(f'{who}: eval_fn must be a function, got {task.eval_fn!r}')
  values = jax.eval_shape(task.eval_fn, params, model_state, batch)
  shapes = {n: x.shape for n, x in dict(values).items()}
  if set(shapes.values()) != {(1,)} or 'loss' not in shapes:
    raise ValueError(
      f'{who}: eval_fn must return loss and other values, one for each example '
      f'of the batch, got {shapes} for one example'
    )


def _is_loss(returned: Any) -> bool:
  try:
    loss, (_, metrics) = returned
  except (TypeError, ValueError):
    return False
  return getattr(loss, 'shape', None) == () and isinstance(metrics, dict)


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', tree)

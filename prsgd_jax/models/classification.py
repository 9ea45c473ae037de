"""Classifiers: a flax module as pure functions that the engine calls."""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.tree_types import describe

Batch = dict[str, Array]


class Task(NamedTuple):
  """Pure functions of a model and its loss, for training and evaluation.

  Attributes:
    init: `(key, batch) -> (params, model_state)`. The batch may omit the
      labels.
    loss_fn: `(params, model_state, batch, key) -> (loss, (model_state,
      metrics))` with the metrics `accuracy` and `loss`.
    eval_fn: `(params, model_state, batch) -> {'loss', 'accuracy'}`, `[batch]`.
  """

  init: Callable[[Array, Batch], tuple[ArrayTree, ArrayTree]]
  loss_fn: Callable[[ArrayTree, ArrayTree, Batch, Array], Any]
  eval_fn: Callable[[ArrayTree, ArrayTree, Batch], dict[str, Array]]


def classifier(
  model: nn.Module, *, weight_decay: float = 0.0, label_smoothing: float = 0.0
) -> Task:
  """Return the cross-entropy task of a flax image classifier.

  Args:
    model: a flax module from images to logits, called as `model(x, train=...)`,
      or as `model(x)` if it has no such argument. Its collections other than
      'params', such as batch statistics, become the `model_state`.
    weight_decay: strength of coupled L2, (weight_decay / 2) |x|^2 over all
      parameters, >= 0. It is not included in the reported loss. Default: 0.
    label_smoothing: fraction of a label that is spread over all classes, in
      [0, 1). It does not change the reported loss. Default: 0.

  Returns:
    The task, for batches `{'image': [batch, ...], 'label': int[batch]}`.

  Example:
    >>> from prsgd_jax.models.mlp import MLP
    >>> task = classifier(MLP(num_classes=10))
    >>> params, model_state = task.init(
    ...     jax.random.key(0), {'image': jnp.zeros((2, 8, 8, 1))})
  """
  return cross_entropy(
    model,
    lambda batch: batch['image'],
    lambda batch: batch['label'],
    weight_decay=weight_decay,
    label_smoothing=label_smoothing,
  )


def cross_entropy(
  model: nn.Module,
  inputs: Callable[[Batch], Array],
  labels: Callable[[Batch], Array],
  *,
  weight_decay: float = 0.0,
  label_smoothing: float = 0.0,
) -> Task:
  """Return the task of a flax module with the mean of -log p(label), in nats.

  Args:
    model: a flax module, called as `model(inputs, train=...)`, or as
      `model(inputs)` if it has no such argument. It returns logits
      `[batch, ..., classes]`. Its collections other than 'params' become the
      `model_state`.
    inputs: `batch -> inputs` of the model.
    labels: `batch -> int[batch, ...]`, one label for each prediction. The
      values of an example are means over its labels.
    weight_decay: strength of coupled L2, (weight_decay / 2) |x|^2 over all
      parameters, >= 0. Its gradient is taken at the point of the loss's
      gradient. It is not included in the reported loss.
    label_smoothing: fraction of a label that is spread over all classes, in
      [0, 1). It does not change the reported loss.
  """

  def init(key: Array, batch: Batch) -> tuple[ArrayTree, ArrayTree]:
    variables = dict(model.init(key, inputs(batch), **mode(model, train=False)))
    if 'params' not in variables:
      raise ValueError(f'{type(model).__name__} has no parameters to train')
    params = variables.pop('params')
    return params, variables

  def loss_fn(
    params: ArrayTree, model_state: ArrayTree, batch: Batch, key: Array
  ) -> Any:
    logits, new_state = _apply(
      model,
      params,
      model_state,
      inputs(batch),
      train=True,
      mutable=list(model_state or ()),
      rngs={'dropout': key},
    )
    # An empty state keeps its type, because the engine expects equal types.
    model_state = new_state if model_state else model_state
    logits = jnp.asarray(logits)
    values = _values(logits, labels(batch))
    loss = penalized = values['loss'].mean()
    if label_smoothing:
      penalized = _smooth(logits, labels(batch), label_smoothing)
    if weight_decay:
      squares = optax.tree.norm(params, squared=True)
      penalized += 0.5 * weight_decay * squares
    metrics = {'accuracy': values['accuracy'].mean(), 'loss': loss}
    return penalized, (model_state, metrics)

  def eval_fn(
    params: ArrayTree, model_state: ArrayTree, batch: Batch
  ) -> dict[str, Array]:
    logits = _apply(model, params, model_state, inputs(batch), train=False)
    return _values(jnp.asarray(logits), labels(batch))

  return Task(init, loss_fn, eval_fn)


def mode(model: nn.Module, *, train: bool) -> dict[str, Any]:
  """Return {'train': train} if the module has this argument, else {}.

  Args:
    model: a flax module.
    train: whether the module trains.
  """
  has = 'train' in inspect.signature(type(model).__call__).parameters
  return {'train': train} if has else {}


def _apply(
  model: nn.Module,
  params: ArrayTree,
  model_state: ArrayTree,
  x: Array,
  *,
  train: bool,
  **options: Any,
) -> Any:
  """Apply a module; an empty model state, (), has no collections.

  Raises:
    ValueError: if the state is not a dict, or lacks a collection.
  """
  if isinstance(model_state, Mapping) or not jax.tree.leaves(model_state):
    variables = {'params': params, **dict(model_state or {})}
  else:
    raise ValueError(
      f'model_state of {type(model).__name__} must be a dict, as returned by '
      f'init, got {describe(model_state)}'
    )
  try:
    return model.apply(variables, x, **mode(model, train=train), **options)
  except errors.ScopeCollectionNotFound:
    raise ValueError(
      f'{type(model).__name__} has a model_state, such as batch statistics; '
      'pass both results of init, as in trainer.init(params, model_state)'
    ) from None


def _smooth(logits: Array, labels: Array, smoothing: float) -> Array:
  """Return the mean loss with a fraction of labels spread over all classes."""
  classes = logits.shape[-1]
  smooth = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
  return optax.softmax_cross_entropy(logits, smooth).mean()


def _values(logits: Array, labels: Array) -> dict[str, Array]:
  """Return the loss and accuracy of each example, means over its labels."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = jnp.equal(logits.argmax(-1), labels) * 1.0
  own = tuple(range(1, labels.ndim))
  return {'loss': loss.mean(own), 'accuracy': correct.mean(own)}

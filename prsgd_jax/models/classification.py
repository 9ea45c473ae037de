"""A flax classifier as the pure functions that the engine knows."""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ArrayTree

Batch = dict[str, Array]


class Task(NamedTuple):
  """What `training` and `evaluation` ask of a model and of its loss.

  Attributes:
    init: `(key, batch) -> (params, model_state)`; what is to be predicted may
      be left out of the batch.
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
  """Cross-entropy of a flax module called as `model(x, train=...)`.

  Args:
    model: maps images to logits; its collections other than 'params' (batch
      statistics) become the `model_state`. It may be without `train`.
    weight_decay: as of `cross_entropy`.
    label_smoothing: as of `cross_entropy`.

  Returns:
    The task, for batches `{'image': [batch, ...], 'label': int[batch]}`.
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
  """The mean of -log p(label), in nats, of a flax module.

  Args:
    model: called as `model(inputs, train=...)`, or as `model(inputs)` if it has
      no such argument; gives logits `[batch, ..., classes]`. Its collections
      other than 'params' become the `model_state`.
    inputs: of a batch, what the model reads.
    labels: of a batch, int[batch, ...], one for each of the model's
      predictions. The values of an example are the means over its labels.
    weight_decay: coupled L2 of all parameters: (weight_decay / 2) |x|^2 is part
      of what is differentiated, so its gradient is taken at the point where the
      loss's is. The loss that is reported is without it.
    label_smoothing: share of a label that is spread over all classes where the
      loss is differentiated, in [0, 1). The loss that is reported is without
      it.
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
    logits, model_state = model.apply(
      {'params': params, **model_state},
      inputs(batch),
      **mode(model, train=True),
      mutable=list(model_state),
      rngs={'dropout': key},
    )
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
    variables = {'params': params, **model_state}
    logits = model.apply(variables, inputs(batch), **mode(model, train=False))
    return _values(jnp.asarray(logits), labels(batch))

  return Task(init, loss_fn, eval_fn)


def mode(model: nn.Module, *, train: bool) -> dict[str, Any]:
  """Returns the keyword that says whether a module trains, if it has one.

  Args:
    model: a flax module.
    train: whether it does.
  """
  has = 'train' in inspect.signature(type(model).__call__).parameters
  return {'train': train} if has else {}


def _smooth(logits: Array, labels: Array, smoothing: float) -> Array:
  """The mean loss of labels of which a share is spread over all classes."""
  classes = logits.shape[-1]
  smooth = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
  return optax.softmax_cross_entropy(logits, smooth).mean()


def _values(logits: Array, labels: Array) -> dict[str, Array]:
  """Loss and accuracy of each example, means over its labels."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = jnp.equal(logits.argmax(-1), labels) * 1.0
  own = tuple(range(1, labels.ndim))
  return {'loss': loss.mean(own), 'accuracy': correct.mean(own)}

"""A flax classifier as the pure functions that the engine knows."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array, ArrayTree

Batch = dict[str, Array]


class Classifier(NamedTuple):
  """What `training` asks of a model.

  Attributes:
    init: `(key, images) -> (params, model_state)`, images `[batch, ...]`.
    loss_fn: `(params, model_state, batch, key) -> (loss, (model_state,
      metrics))` with the metric `accuracy`.
    eval_fn: `(params, model_state, batch) -> {'loss', 'accuracy'}`, `[batch]`.
  """

  init: Callable[[Array, Array], tuple[ArrayTree, ArrayTree]]
  loss_fn: Callable[[ArrayTree, ArrayTree, Batch, Array], Any]
  eval_fn: Callable[[ArrayTree, ArrayTree, Batch], dict[str, Array]]


def classifier(model: nn.Module, *, weight_decay: float = 0.0) -> Classifier:
  """Cross-entropy of a flax module called as `model(x, train=...)`.

  Args:
    model: maps images to logits; its collections other than 'params' (batch
      statistics) become the `model_state`.
    weight_decay: coupled L2 of all parameters: (weight_decay / 2) |x|^2 is part
      of what is differentiated, so its gradient is taken at the point where the
      loss's is. The loss that is reported is without it.
  """

  def init(key: Array, images: Array) -> tuple[ArrayTree, ArrayTree]:
    variables = dict(model.init(key, images, train=False))
    params = variables.pop('params')
    return params, variables

  def loss_fn(
    params: ArrayTree, model_state: ArrayTree, batch: Batch, key: Array
  ) -> Any:
    logits, model_state = model.apply(
      {'params': params, **model_state},
      batch['image'],
      train=True,
      mutable=list(model_state),
      rngs={'dropout': key},
    )
    values = _values(jnp.asarray(logits), batch['label'])
    loss = values['loss'].mean()
    penalised = loss
    if weight_decay:
      squares = optax.tree.norm(params, squared=True)
      penalised = loss + 0.5 * weight_decay * squares
    metrics = {'accuracy': values['accuracy'].mean(), 'loss': loss}
    return penalised, (model_state, metrics)

  def eval_fn(
    params: ArrayTree, model_state: ArrayTree, batch: Batch
  ) -> dict[str, Array]:
    variables = {'params': params, **model_state}
    logits = model.apply(variables, batch['image'], train=False)
    return _values(jnp.asarray(logits), batch['label'])

  return Classifier(init, loss_fn, eval_fn)


def _values(logits: Array, label: Array) -> dict[str, Array]:
  """Loss and accuracy of each example."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  return {'loss': loss, 'accuracy': jnp.equal(logits.argmax(-1), label) * 1.0}

"""Small classifiers for `simulate`, and a period that is an argument."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.models import classification


class Problem(NamedTuple):
  """The functions of a problem that `simulate` calls.

  Attributes:
    loss_fn: the loss of one replica, on examples drawn with replacement.
    start: key -> the parameters of the model.
    observe: replicas -> `loss` on training examples and `test_accuracy` of
      their average.
  """

  loss_fn: Callable[..., jax.Array]
  start: Callable[[jax.Array], Any]
  observe: Callable[[Any], dict[str, jax.Array]]


def problem(
  model: nn.Module,
  dataset: Dataset,
  *,
  batch_size: int,
  num_train: int | None = None,
  num_observed: int | None = None,
  shards: Sequence[np.ndarray] | None = None,
) -> Problem:
  """Return the problem of a classifier of images.

  Args:
    model: a network without batch statistics.
    dataset: images with labels.
    batch_size: examples per replica and step.
    num_train: the number of training examples, the first ones [all].
    num_observed: the number of training and of test examples observed [all].
    shards: rows of the training examples of each replica. They are cut to the
      smallest size. Default: each replica draws from all examples.
  """
  statistics = augmentation.channel_statistics(dataset.train['image'])
  task = classification.classifier(model)

  def first(split: Mapping[str, np.ndarray], size: int | None) -> Any:
    images = jnp.asarray(split['image'][:size])
    return {
      'image': augmentation.normalize(images, *statistics),
      'label': jnp.asarray(split['label'][:size]),
    }

  examples = first(dataset.train, num_train)
  size, rows = len(examples['label']), None
  if shards is not None:
    size = min(map(len, shards))
    rows = jnp.asarray([shard[:size] for shard in shards])
  seen = jax.tree.map(lambda x: x[:num_observed], examples)
  unseen = first(dataset.test, num_observed)

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step
    row = jax.random.randint(key, (batch_size,), 0, size)
    row = row if rows is None else rows[replica, row]
    batch = jax.tree.map(lambda x: x[row], examples)
    return task.loss_fn(params, {}, batch, key)[0]

  def start(key: jax.Array) -> Any:
    return task.init(key, jax.tree.map(lambda x: x[:1], seen))[0]

  def observe(params: Any) -> dict[str, jax.Array]:
    average = jax.tree.map(lambda x: x.mean(axis=0), params)
    return {
      'loss': task.eval_fn(average, {}, seen)['loss'].mean(),
      'test_accuracy': task.eval_fn(average, {}, unseen)['accuracy'].mean(),
    }

  return Problem(loss_fn, start, observe)


def every(period: jax.Array) -> Callable[[Any], Any]:
  """Return `pr.schedules.every` of a period that is an argument of the program.

  One compiled program then serves all periods.
  """
  return lambda step: (step + 1) % period == 0

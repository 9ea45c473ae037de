"""Images as rows of numbers, and networks for them, for `simulation`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.target import Setting
from prsgd_jax import models
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.models.classification import classifier

CLASSES = 10


class Examples(NamedTuple):
  """The examples of a split: image float32[M, d], centered; label int32[M]."""

  image: jax.Array
  label: jax.Array

  def rows(self, at: Any) -> dict[str, jax.Array]:
    """Return the examples at the given rows as a batch."""
    return {'image': self.image[at], 'label': self.label[at]}

  def draw(self, key: jax.Array, size: int) -> dict[str, jax.Array]:
    """Draw a batch with replacement."""
    return self.rows(jax.random.randint(key, (size,), 0, len(self.label)))


class Network:
  """An MLP, or softmax regression if it has no hidden layers."""

  def __init__(self, hidden: tuple[int, ...] = ()):
    self._task = classifier(models.MLP(CLASSES, hidden))

  def start(self, examples: Examples) -> Any:
    """Return the function of a key that makes the parameters."""
    return lambda key: self._task.init(key, examples.rows(slice(1)))[0]

  def loss(self, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Return the mean cross-entropy, nats."""
    unused = jax.random.key(0, impl='threefry2x32')
    return self._task.loss_fn(params, {}, batch, unused)[0]

  def accuracy(self, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Return the fraction of correct labels."""
    return self._task.eval_fn(params, {}, batch)['accuracy'].mean()


def load(
  setting: Setting, name: str, num_train: int | None = None
) -> tuple[Examples, Examples]:
  """Load training and test images; 28 x 28 pixels are reduced to 14 x 14.

  Args:
    setting: its `data_dir` has the data.
    name: 'mnist', 'fashion_mnist' or 'digits'.
    num_train: the number of training images, the first ones [all].

  Raises:
    DatasetError: if the data are missing.
  """
  dataset = load_dataset(name, setting.data_dir)
  train = _rows(dataset.train['image'][:num_train])
  mean, deviation = train.mean(), train.std()
  return (
    Examples(
      jnp.asarray((train - mean) / deviation),
      jnp.asarray(dataset.train['label'][:num_train]),
    ),
    Examples(
      jnp.asarray((_rows(dataset.test['image']) - mean) / deviation),
      jnp.asarray(dataset.test['label']),
    ),
  )


def _rows(images: np.ndarray) -> np.ndarray:
  """Flatten uint8[M, h, w, 1] to float32[M, d]; 28 x 28 becomes 14 x 14."""
  size, height, width = images.shape[:3]
  pixels = images.reshape(size, height, width).astype(np.float32)
  if height == 28:
    pixels = pixels.reshape(size, 14, 2, 14, 2).mean(axis=(2, 4))
  return pixels.reshape(size, -1)


def mean_of(params: Any) -> Any:
  """Return the average of all replicas, leaves [N, ...]."""
  return jax.tree.map(lambda x: x.mean(axis=0), params)

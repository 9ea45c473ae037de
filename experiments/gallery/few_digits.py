"""Few digits for training, shifted at random, and many for the test.

A network overfits them, so that methods may differ in their generalization.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.simulation import simulate
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.models import classification
from prsgd_jax.science import landscape

NUM_TRAIN, NUM_VALIDATION, HIDDEN = 256, 512, 32
# Enough for the figures; the error of the eigenvalue is about its square.
TOLERANCE = 0.05

# place of a run -> its algorithm
Make = Callable[[jax.Array], pr.base.ReplicaTransformation]


class Problem(NamedTuple):
  """The examples of a seed and a network.

  Attributes:
    splits: 'train', 'validation' and 'test' examples, normalized.
    shifted: `[shifts, n, ...]`, the training images, shifted by up to a pixel.
    network: the task of the network.
  """

  splits: Mapping[str, Any]
  shifted: jax.Array
  network: classification.Task


def problem(dataset: Dataset, seed: int) -> Problem:
  """Draw the examples of each split, and return them with an MLP 64-32-10."""
  parts = split(dataset, seed)
  statistics = augmentation.channel_statistics(parts['train']['image'])

  def normalized(images: np.ndarray) -> jax.Array:
    return augmentation.normalize(jnp.asarray(images), *statistics)

  splits = {
    name: {
      'image': normalized(part['image']),
      'label': jnp.asarray(part['label']),
    }
    for name, part in parts.items()
  }
  model = models.MLP(dataset.num_classes, hidden=(HIDDEN,))
  return Problem(
    splits,
    normalized(shifts(parts['train']['image'])),
    classification.classifier(model),
  )


def split(dataset: Dataset, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Return disjoint examples for training, validation and test.

  The split of the data set is not used, because its test split is too small to
  show small differences.
  """
  both = {
    name: np.concatenate([dataset.train[name], dataset.test[name]])
    for name in ('image', 'label')
  }
  order = np.random.default_rng(seed).permutation(len(both['label']))
  ends = (NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION)
  names = ('train', 'validation', 'test')
  return {
    name: {key: values[rows] for key, values in both.items()}
    for name, rows in zip(names, np.split(order, ends), strict=True)
  }


def shifts(images: np.ndarray) -> np.ndarray:
  """Return the images shifted by -1, 0 or 1 pixels along both axes.

  Args:
    images: `[n, height, width, channels]`.

  Returns:
    `[9, n, height, width, channels]`, filled with zeros, which are black.
  """
  height, width = images.shape[1:3]
  wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return np.stack(
    [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
  )


def train(
  own: Problem,
  make: Make,
  count: int,
  seed: int,
  *,
  num_replicas: int,
  batch_size: int,
  num_steps: int,
) -> list[Any]:
  """Train by `count` algorithms in one program; return the averages.

  The parameters of a run that diverged are zeros, which guess.
  """

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return own.network.loss_fn(params, {}, draw(own, key, batch_size), key)[0]

  found = simulate(
    make,
    range(count),
    (seed,),
    loss_fn=loss_fn,
    start=lambda key: own.network.init(key, own.splits['train'])[0],
    num_replicas=num_replicas,
    num_steps=num_steps,
    observe=lambda params: jax.tree.map(lambda x: x.mean(axis=0), params),
    every=num_steps,
  )
  leaves, structure = jax.tree.flatten(found)
  return [
    finite_or_zero(jax.tree.unflatten(structure, [x[i, 0, 0] for x in leaves]))
    for i in range(count)
  ]


def finite_or_zero(params: Any) -> Any:
  """Return the parameters, or zeros if one of them is not finite."""
  leaves = jax.tree.leaves(params)
  if all(np.isfinite(x).all() for x in leaves):
    return params
  return jax.tree.map(np.zeros_like, params)


def draw(own: Problem, key: jax.Array, batch_size: int) -> dict[str, jax.Array]:
  """Return random training examples with random shifts."""
  shift_key, row_key = jax.random.split(key)
  shift = jax.random.randint(shift_key, (batch_size,), 0, len(own.shifted))
  labels = own.splits['train']['label']
  row = jax.random.randint(row_key, (batch_size,), 0, len(labels))
  return {'image': own.shifted[shift, row], 'label': labels[row]}


def measures(own: Problem, points: Sequence[Any]) -> list[dict[str, float]]:
  """Return errors in %, losses in nats and the sharpness at each point."""

  @jax.jit
  def evaluate(params: Any, batch: Any) -> Any:
    return jax.tree.map(jnp.mean, own.network.eval_fn(params, {}, batch))

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    value: jax.Array = own.network.loss_fn(params, {}, batch, key)[0]
    return value

  grad_fn, key = jax.grad(loss), jax.random.key(0, impl='threefry2x32')
  found = []
  for point in points:
    ends = {
      name: jax.tree.map(float, evaluate(point, part))
      for name, part in own.splits.items()
    }
    curved = landscape.curvature(
      grad_fn, point, own.splits['train'], key, tolerance=TOLERANCE
    )
    found.append(
      {
        'train_loss': ends['train']['loss'],
        'test_loss': ends['test']['loss'],
        'gap': ends['test']['loss'] - ends['train']['loss'],
        'validation_error': 100 * (1 - ends['validation']['accuracy']),
        'test_error': 100 * (1 - ends['test']['accuracy']),
        'sharpness': curved.sharpness,
      }
    )
  return found

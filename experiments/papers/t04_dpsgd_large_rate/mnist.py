"""The methods, with an MLP on raw pixels of MNIST at a total batch of 2000."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import optax

from experiments.papers.simulation import simulate
from experiments.tools import styles
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.models.classification import classifier

TOTAL_BATCH, NUM_STEPS = 2000, 240
SEEDS = tuple(range(8))
TASK = classifier(models.MLP(10, (50, 50)))
# Steps over which the rate of the control with a warm-up rises linearly.
WARMUP = 60
# Standard deviation of the noise that the control with constant noise adds to
# the parameters before the gradient. It is our choice, and was not tuned.
NOISE = 0.01

Make = Callable[[jax.Array], pr.base.ReplicaTransformation]

RING = 'DPSGD, ring'
PAIRS = 'DPSGD, random pairs'
WARMED, NOISY = 'SSGD, warm-up', 'SSGD, constant noise'


def _warmed_up(rate: jax.Array) -> optax.GradientTransformation:
  return optax.sgd(lambda step: rate * jnp.minimum(1.0, (step + 1) / WARMUP))


METHODS: dict[str, Make] = {
  'SSGD': lambda rate: pr.ssgd(optax.sgd(rate)),
  RING: lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.graphs.ring()),
  PAIRS: lambda rate: pr.d_psgd(
    optax.sgd(rate), mixing=pr.graphs.random_matching()
  ),
  'W = J, order A': lambda rate: pr.d_psgd(
    optax.sgd(rate), mixing=pr.mixing.mean()
  ),
  'ring, order C': lambda rate: pr.diffusion(
    optax.sgd(rate), mixing=pr.graphs.ring()
  ),
  'PR-SGD, I = 4': lambda rate: pr.pr_sgd(optax.sgd(rate), period=4),
  WARMED: lambda rate: pr.ssgd(_warmed_up(rate)),
  NOISY: lambda rate: pr.ssgd(optax.sgd(rate)),
}
CONTROLS = tuple(METHODS)[3:]
# The colors and markers of the algorithms.
LOOKS = {
  **styles.variants('ssgd', ('SSGD', WARMED)),
  **styles.variants('d_psgd', (RING, PAIRS, 'W = J, order A')),
  'ring, order C': styles.method('diffusion'),
  'PR-SGD, I = 4': styles.method('pr_sgd'),
  NOISY: styles.method('ssgd')._replace(marker='x', linestyle=':'),
}


class Pixels:
  """MNIST with raw pixels in [0, 1], not centered.

  Attributes:
    image: uint8[n, 784], `label`: int32[n].
    held_out: a batch for the losses along the runs.
  """

  def __init__(self, data_dir: str | None):
    dataset = load_dataset('mnist', data_dir)
    size = len(dataset.train['label'])
    self.image = jnp.asarray(dataset.train['image'].reshape(size, -1))
    self.label = jnp.asarray(dataset.train['label'])
    test = dataset.test['image'][:1000].reshape(1000, -1)
    self.held_out = {
      'image': jnp.asarray(test) / 255.0,
      'label': jnp.asarray(dataset.test['label'][:1000]),
    }

  def all(self, num_batches: int) -> dict[str, jax.Array]:
    """Return all examples in batches, leaves [num_batches, ...]."""
    whole = {'image': self.image / 255.0, 'label': self.label}
    return jax.tree.map(
      lambda x: x.reshape(num_batches, -1, *x.shape[1:]), whole
    )

  def draw(self, key: jax.Array, size: int) -> dict[str, jax.Array]:
    """Draw a batch with replacement."""
    rows = jax.random.randint(key, (size,), 0, len(self.label))
    return {'image': self.image[rows] / 255.0, 'label': self.label[rows]}


def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
  """Return the mean cross-entropy of a batch, nats."""
  return TASK.loss_fn(params, {}, batch, key)[0]


def noisy(params: Any, key: jax.Array) -> Any:
  """Add independent Gaussian noise to all parameters."""
  flat, unflatten = ravel_pytree(params)
  return unflatten(flat + NOISE * jax.random.normal(key, flat.shape))


def train(
  pixels: Pixels,
  method: str,
  num_replicas: int,
  rates: Sequence[float],
  observe: Callable[[Any], Any],
  every: int,
  *,
  num_steps: int = NUM_STEPS,
  seeds: Sequence[int] = SEEDS,
) -> Any:
  """Train a method at several learning rates; return the observations."""

  def batch_loss(
    params: Any, step: Any, replica: Any, key: jax.Array
  ) -> jax.Array:
    del step, replica
    batch_key, noise_key = jax.random.split(key)
    if method == NOISY:
      params = noisy(params, noise_key)
    return loss(
      params, pixels.draw(batch_key, TOTAL_BATCH // num_replicas), key
    )

  return simulate(
    METHODS[method],
    rates,
    seeds,
    loss_fn=batch_loss,
    start=lambda key: TASK.init(key, {'image': jnp.zeros((1, 784))})[0],
    num_replicas=num_replicas,
    num_steps=num_steps,
    observe=observe,
    every=every,
  )

"""The runs of T15: D-SGD and SSGD on MNIST at two total batches."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments.papers import images
from experiments.papers.simulation import simulate
from experiments.tools import styles
import prsgd_jax as pr

SEEDS = (0, 1, 2, 3, 4, 5)
N, HIDDEN = 16, (50, 50)
NUM_TRAIN, NUM_LANDSCAPE = 4096, 1024
NUM_CHOOSING = 4096  # other training images, which choose the rates
# Total batch -> learning rates, in proportion to its root; steps.
RATES = {128: (0.05, 0.1, 0.2), 2048: (0.2, 0.4, 0.8)}
STEPS = {128: 1200, 2048: 320}
# Points of a run with its parameters, and those with the direction of SAM.
OBSERVED, POINTS = 40, 8
# From no spread of the replicas to the largest.
METHODS: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'SSGD': lambda rate: pr.ssgd(optax.sgd(rate)),
  'full': lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.mixing.mean()),
  'exponential': lambda rate: pr.d_psgd(
    optax.sgd(rate), mixing=pr.graphs.exponential()
  ),
  'ring': lambda rate: pr.d_psgd(optax.sgd(rate), mixing=pr.graphs.ring()),
}
GRAPHS = tuple(METHODS)[1:]
LOOKS = {
  'SSGD': styles.method('ssgd'),
  **styles.variants('d_psgd', GRAPHS),
}


def train(
  network: images.Network, examples: images.Examples, method: str, batch: int
) -> Any:
  """Return parameters along the runs, leaves [rates, seeds, points, N, ...]."""

  def loss_fn(p: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return network.loss(p, examples.draw(key, batch // N))

  return simulate(
    METHODS[method],
    RATES[batch],
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(examples),
    num_replicas=N,
    num_steps=STEPS[batch],
    observe=lambda params: params,
    every=STEPS[batch] // OBSERVED,
  )


def at(points: Any, *index: int) -> Any:
  """Return the parameters at an index of rate, seed and point."""
  return jax.tree.map(lambda x: x[index], points)


def key() -> jax.Array:
  """Return the key of all measures of the landscape."""
  return jax.random.key(0, impl='threefry2x32')


def network_in_words() -> str:
  """Describe the network and its data."""
  return (
    f'MLP 196-{"-".join(map(str, HIDDEN))}-10 on {NUM_TRAIN} images of MNIST '
    'at 14 x 14, drawn with replacement; no momentum.'
  )


def in_words() -> str:
  """Describe the runs."""
  steps = ', '.join(f'{n} steps at batch {b}' for b, n in STEPS.items())
  return f'{N} workers; {steps}. {network_in_words()}'

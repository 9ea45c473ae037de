"""The runs of T5: Hier-AVG and K-AVG on MNIST, by every K1, S and K."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.papers import images
from experiments.papers.simulation import simulate
import prsgd_jax as pr

P, K2 = 16, 32
# K1 and S; K1 = K2 and S = 1 are both K-AVG(K2).
PAIRS = ((1, 4), (4, 4), (16, 4), (4, 2), (4, 8), (4, 16))
K_AVG = (1, 2, 4, 8, 32, 128)
# Of a Hier-AVG with rarer global averages.
RARE_K2 = 128
OURS_NAME, RARE_NAME = 'K1 = 4, S = 4', f'K1 = 4, S = 4, K2 = {RARE_K2}'
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
# The orders are judged at each of them; a method is judged at its best rate.
ORDER_RATES = RATES[:3]
SEEDS = (0, 1, 2, 3)
BATCH_SIZE, HIDDEN, HELD, TESTED = 4, (32,), 512, 2000
# One more than K2, because then every place of a round is observed once.
EVERY = K2 + 1
NUM_STEPS = K2 * EVERY

Make = Callable[[jax.Array], pr.base.ReplicaTransformation]


def methods() -> dict[str, Make]:
  """Return the algorithm of a learning rate, by label."""

  def hier_avg(k1: int, size: int, k2: int = K2) -> Make:
    return lambda rate: pr.hier_avg(
      optax.sgd(rate), local_period=k1, global_period=k2, group_size=size
    )

  def k_avg(period: int) -> Make:
    return lambda rate: pr.k_avg(optax.sgd(rate), period=period)

  return {
    **{f'K1 = {k1}, S = {s}': hier_avg(k1, s) for k1, s in PAIRS},
    RARE_NAME: hier_avg(4, 4, RARE_K2),
    **{f'K-AVG({k})': k_avg(k) for k in K_AVG},
  }


def train(
  make: Make, examples: images.Examples, test: images.Examples
) -> dict[str, Any]:
  """Return loss and test accuracy of the mean, and the drift.

  They are lists [rates][seeds][T / EVERY].
  """
  network = images.Network(HIDDEN)
  held, unseen = examples.rows(slice(HELD)), test.rows(slice(TESTED))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return network.loss(params, examples.draw(key, BATCH_SIZE))

  def observe(params: Any) -> Any:
    mean = images.mean_of(params)
    return {
      'loss': network.loss(mean, held),
      'drift': drift(params),
      'accuracy': network.accuracy(mean, unseen),
    }

  found = simulate(
    make,
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(examples),
    num_replicas=P,
    num_steps=NUM_STEPS,
    observe=observe,
    every=EVERY,
  )
  return {name: values.tolist() for name, values in found.items()}


def drift(params: Any) -> jax.Array:
  """Return (1/P) sum_i |x_i - xbar|^2 of leaves [P, ...]."""
  return sum(
    jnp.square(x - x.mean(axis=0)).sum() / x.shape[0]
    for x in jax.tree.leaves(params)
  )

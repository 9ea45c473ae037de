"""Simulated and exact risks of SGD on least squares, by b, N and length."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers import speed
from experiments.papers.simulation import simulate
import prsgd_jax as pr
from prsgd_jax.science import least_squares

SEEDS = (0, 1, 2, 3, 4)
DIMENSION = 20
SPECTRUM = np.linspace(1.0, 0.1, DIMENSION)
START = np.ones(DIMENSION)
NOISE = 1.0
# 14 is b_thresh = 1 + (tr H + 2 |H|) / |H|.
BATCHES = (1, 2, 8, 14, 32)
REPLICAS = (1, 4, 16)
# Independent copies per seed, by batch size: as many as cost about the same.
COPIES = {1: 256, 2: 256, 8: 64, 14: 32, 32: 16}
# And of the runs of several lengths, which take only one replica of each.
LONG_COPIES = 16
# Steps of a run -> the first step of its tail.
STEPS, FIRST, EVERY = 400, 200, 2
LENGTHS = (200, 800, 3200)
EACH = min(LENGTHS)
# Half of the largest rate of one example, for all batch sizes, and a smaller
# one, which is not run. Runs also have half of the largest of their batch size.
COMMON = least_squares.largest_rate(SPECTRUM, batch_size=1) / 2
SMALL = COMMON / 4
# Fraction of the first risk that the serial steps are counted to.
REACHED = 0.01


def _rates(batch_size: int) -> tuple[float, float]:
  largest = least_squares.largest_rate(SPECTRUM, batch_size=batch_size)
  return COMMON, largest / 2


def of_batch(batch_size: int) -> dict[str, Any]:
  """Summarize risks by rate; the replicas never communicate."""
  rates, copies = _rates(batch_size), COPIES[batch_size]
  # Both rates are equal for b = 1, where one run is enough.
  distinct = tuple(dict.fromkeys(rates))
  found = simulated_risks(distinct, batch_size, copies, STEPS, FIRST, EVERY)
  # Until its tail begins, the output is the last iterate.
  begin = FIRST // EVERY - 1
  return {
    'batch_size': batch_size,
    'rates': list(rates),
    'tail': [summarize(found, k, -1) for k in (0, -1)],
    'last': [summarize(found, k, begin) for k in (0, -1)],
    'exact': [exact_risks(rate, batch_size, FIRST, STEPS) for rate in rates],
    # The bias of one replica along the run at its own rate, by seed.
    'curve': found[1][-1, :, : begin + 1, 0].mean(axis=(-2, -1)).tolist(),
  }


def of_last_iterate() -> dict[int, np.ndarray]:
  """Return risks of the last iterate along the longest run, by N."""
  # The average starts after the run, so that the output is the last iterate.
  longest = max(LENGTHS)
  return simulated_risks((COMMON,), 1, LONG_COPIES, longest, longest, EACH)


def of_length(num_steps: int, last: Mapping[int, np.ndarray]) -> dict[str, Any]:
  """Summarize a run with one example per step, half of it tail.

  Args:
    num_steps: T.
    last: risks of the last iterate, every `EACH` steps.
  """
  first = num_steps // 2
  tail = simulated_risks((COMMON,), 1, LONG_COPIES, num_steps, first, num_steps)
  return {
    'steps': num_steps,
    'tail': summarize(tail, 0, -1),
    'last': summarize(last, 0, num_steps // EACH - 1),
    'exact': exact_risks(COMMON, 1, num_steps, num_steps, first),
  }


def simulated_risks(
  rates: Sequence[float],
  batch_size: int,
  copies: int,
  num_steps: int,
  first: int,
  every: int,
) -> dict[int, np.ndarray]:
  """Return excess risks by N: [rates, seeds, points, parts, copies, groups].

  The parts are the bias (no label noise) and the variance (from the optimum).
  The groups are independent runs of N replicas.
  """
  h = jnp.asarray(SPECTRUM, jnp.float32)
  most = max(REPLICAS)
  noisy = jnp.array([0.0, NOISE**0.5])[:, None, None]

  def loss(e: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    x_key, y_key = jax.random.split(key)
    shape = (copies, batch_size, DIMENSION)
    x = jnp.sqrt(h) * jax.random.normal(x_key, shape)
    noise = noisy * jax.random.normal(y_key, shape[:2])
    miss = jnp.einsum('cbd,pcd->pcb', x, e) - noise
    return (miss**2).sum() / batch_size / 2

  def observe(e: jax.Array) -> dict[str, jax.Array]:
    # e: [N, parts, copies, d]. Independent replicas, so any n of them are a
    # run of n.
    found = {}
    for n in REPLICAS:
      means = e.reshape(most // n, n, *e.shape[1:]).mean(axis=1)
      found[str(n)] = jnp.moveaxis((means**2 @ h) / 2, 0, -1)
    return found

  start = jnp.zeros((2, copies, DIMENSION)).at[0].set(START)
  found: dict[str, np.ndarray] = simulate(
    lambda rate: pr.tail_averaging(optax.sgd(rate), start_step=first),
    rates,
    SEEDS,
    loss_fn=loss,
    start=start,
    num_replicas=most,
    num_steps=num_steps,
    observe=observe,
    every=every,
  )
  return {int(n): risks for n, risks in found.items()}


def summarize(
  found: Mapping[int, np.ndarray], rate: int, point: int
) -> dict[str, Any]:
  """Return the mean by seed and its error, by part and N.

  All copies and groups of all seeds are independent.

  Args:
    found: the results of `simulated_risks`.
    rate: index of the rate.
    point: index of the point.
  """
  summary: dict[str, Any] = {'bias': {}, 'variance': {}}
  for n, risks in found.items():
    for part, own in zip(
      summary.values(), np.moveaxis(risks[rate, :, point], 1, 0), strict=True
    ):  # own: [seeds, copies, groups]
      part[f'N = {n}'] = {
        'seeds': own.mean(axis=(1, 2), dtype=float).tolist(),
        'error': float(own.std(ddof=1, dtype=float) / own.size**0.5),
      }
  return summary


def exact_risks(
  rate: float,
  batch_size: int,
  last: int,
  num_steps: int = STEPS,
  first: int = FIRST,
) -> dict[str, Any]:
  """Return the exact risks of the iterate after `last` steps, and of a tail."""

  def risks(n: int, num_steps: int, first: int) -> least_squares.Risks:
    return least_squares.excess_risks(
      eigenvalues=SPECTRUM,
      start=START,
      noise_variance=NOISE,
      learning_rate=rate,
      batch_size=batch_size,
      num_replicas=n,
      num_steps=num_steps,
      start_step=first,
    )

  return {
    f'N = {n}': {
      'last': risks(n, last, 0).last._asdict(),
      'tail': risks(n, num_steps, first).tail._asdict(),
    }
    for n in REPLICAS
  }


def serial_steps(row: Mapping[str, Any]) -> list[float]:
  """Return the steps to a fraction of the first risk, by seed."""
  begin = float(SPECTRUM @ START**2 / 2)
  steps = EVERY * np.arange(len(row['curve'][0]) + 1)
  return [
    speed.when_reached(steps, [begin, *curve], REACHED * begin)
    for curve in row['curve']
  ]

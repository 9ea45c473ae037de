"""DiLoCo and its kin: the methods of G6, their losses and their bytes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.gallery import characters, grids
from experiments.papers import classifying
import prsgd_jax as pr

SEEDS = (0, 1, 2)
RATES = (0.003, 0.01, 0.03)
# Outer momentum of 0.9 enlarges a step by 10, so that it needs a lower rate.
LOWER_RATES = (0.001, *RATES)
HIGHER_RATES = (0.01, 0.03, 0.1)
PERIODS = FEW, SOME, MANY = (4, 16, 64)
NUM_STEPS = 512
# All numbers of replicas share the examples of a step.
GLOBAL_BATCH, NUM_REPLICAS, OTHER_REPLICAS = 8, 4, (2, 8)
WEIGHT_DECAY, WARMUP = 0.1, 1 / 16
OUTER_RATE, MOMENTA = 0.7, (0.6, 0.9)
FRAGMENTS, DELAY, ALPHA = 2, 1, 0.5
# `optax.contrib.muon` recommends this size of a step, so that the rates of
# AdamW fit Muon, too.
MUON_STEP = 0.2

Make = Callable[..., pr.base.ReplicaTransformation]


class Method(NamedTuple):
  """A method of the figure.

  Attributes:
    make: function of the period, the inner optimizer and the outer momentum
      that returns an algorithm.
    muon: whether the inner optimizer is Muon. Default: AdamW.
    periods: periods of the runs.
    momenta: outer momenta to choose from.
    rates: inner rates to choose from.
    one_program: whether one program serves all periods.
    batches: whether an update takes the batches of a whole period, so that a
      run has fewer updates.
  """

  make: Make
  muon: bool = False
  periods: Sequence[int] = PERIODS
  momenta: Sequence[float] = (0.0,)
  rates: Sequence[float] = RATES
  one_program: bool = False
  batches: bool = False


def _diloco(
  period: Any, tx: optax.GradientTransformation, momentum: Any
) -> pr.base.ReplicaTransformation:
  return pr.diloco(tx, period=period, outer=_outer(momentum))


def _streaming(
  period: Any, tx: optax.GradientTransformation, momentum: Any
) -> pr.base.ReplicaTransformation:
  return pr.streaming_diloco(
    tx,
    period=period,
    fragments=FRAGMENTS,
    delay=DELAY,
    alpha=ALPHA,
    outer=_outer(momentum),
    codec=pr.codecs.e3m0(),
  )


def _outer(momentum: Any) -> optax.GradientTransformation:
  return optax.sgd(OUTER_RATE, momentum=momentum, nesterov=True)


SYNCHRONOUS = 'AdamW every step'
MUON = 'Muon every step'
LARGE = f'AdamW with {SOME} times the batch'
LOCAL = 'local AdamW'
DILOCO = 'DiLoCo'
MULOCO = 'MuLoCo'
SPARSE = 'SparseLoCo'
STREAMING = 'streaming at 4 bits'
ONE_MOMENTUM = Method(_diloco, momenta=MOMENTA[:1], one_program=True)
METHODS = {
  SYNCHRONOUS: Method(lambda period, tx, mu: pr.ssgd(tx), periods=(1,)),
  MUON: Method(
    lambda period, tx, mu: pr.ssgd(tx),
    periods=(1,),
    rates=HIGHER_RATES,
    muon=True,
  ),
  LARGE: Method(
    lambda period, tx, mu: pr.ssgd(tx),
    periods=(SOME,),
    rates=HIGHER_RATES,
    batches=True,
  ),
  LOCAL: Method(
    lambda period, tx, mu: pr.k_avg(tx, period=period), one_program=True
  ),
  DILOCO: ONE_MOMENTUM._replace(momenta=MOMENTA, rates=LOWER_RATES),
  MULOCO: Method(
    lambda period, tx, mu: pr.muloco(
      tx, period=period, outer_momentum=MOMENTA[0]
    ),
    momenta=MOMENTA[:1],
    rates=HIGHER_RATES,
    muon=True,
    one_program=True,
  ),
  SPARSE: Method(
    lambda period, tx, mu: pr.sparse_loco(tx, period=period),
    periods=PERIODS[:2],
  ),
  STREAMING: Method(_streaming, periods=PERIODS[:2], momenta=MOMENTA[:1]),
}


def losses(method: Method, num_replicas: int) -> np.ndarray:
  """Return the losses `[periods, momenta, rates, seeds]` at the end."""
  programs: Sequence[Sequence[int]] = [(period,) for period in method.periods]
  if method.one_program:
    programs = [method.periods]
  return np.concatenate(
    [_of_program(method, num_replicas, periods) for periods in programs]
  )


def _of_program(
  method: Method, num_replicas: int, periods: Sequence[int]
) -> np.ndarray:
  num_batches = periods[0] if method.batches else 1
  own = characters.problem(GLOBAL_BATCH // num_replicas, num_batches)

  def make(
    period: jax.Array, momentum: jax.Array, rate: jax.Array
  ) -> pr.base.ReplicaTransformation:
    when = classifying.every(period) if method.one_program else periods[0]
    tx = inner(rate, NUM_STEPS // num_batches, muon=method.muon)
    return method.make(when, tx, momentum)

  return grids.final_losses(
    make,
    {'period': periods, 'momentum': method.momenta, 'rate': method.rates},
    SEEDS,
    loss_fn=own.loss_fn,
    start=own.start,
    observe=own.observe,
    num_replicas=num_replicas,
    num_steps=NUM_STEPS // num_batches,
    ceiling=characters.GUESSING,
  )


def megabytes(method: Method, num_replicas: int) -> list[float]:
  """Return the megabytes that a replica sends in the run of each period."""
  params = jax.eval_shape(characters.problem(1).start, jax.random.key(0))
  shapes = pr.base.Replica(params=params)
  found = []
  for period in method.periods:
    num_steps = NUM_STEPS // (period if method.batches else 1)
    tx = inner(method.rates[0], num_steps, muon=method.muon)
    algorithm = method.make(period, tx, method.momenta[0])
    meter = pr.ledger.meter(algorithm, shapes, num_replicas, num_steps)
    end = meter.advance(meter.init(), num_steps)
    found.append(meter.spent(end).bytes_sent / 1e6)
  return found


def inner(
  rate: Any, num_steps: int, *, muon: bool
) -> optax.GradientTransformation:
  """Return the inner optimizer, with warm-up and a half cosine of the rate.

  Muon is for the matrices of the hidden layers, AdamW for other parameters.
  """

  def schedule(step: jax.Array) -> jax.Array:
    warm = jnp.minimum(1, (step + 1) / max(1, WARMUP * num_steps))
    return rate * warm * (1 + jnp.cos(jnp.pi * step / num_steps)) / 2

  if not muon:
    return optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
  return optax.contrib.muon(
    schedule,
    weight_decay=WEIGHT_DECAY,
    adam_weight_decay=WEIGHT_DECAY,
    muon_weight_dimension_numbers=hidden_matrices,
    consistent_rms=MUON_STEP,
  )


def hidden_matrices(params: Any) -> Any:
  """Return the axes of Muon's matrices, and None for other parameters.

  They are the kernels of the attention and of the two layers that follow. The
  embeddings and the readout are not included.
  """
  numbers = optax.contrib.MuonDimensionNumbers

  def of_leaf(path: Any, x: Any) -> Any:
    names = [entry.key for entry in path]
    if names[-1] != 'kernel' or names[0] == 'Dense_2':
      return None
    if x.ndim == 2:
      return numbers(0, 1)
    return numbers((0, 1), 2) if names[1] == 'out' else numbers(0, (1, 2))

  return jax.tree_util.tree_map_with_path(of_leaf, params)

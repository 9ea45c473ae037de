"""Control variates, weighted and tail averages, natural gradients."""

import functools

import optax

import prsgd_jax as pr
from tests import reference
from tests.rows.row import (
  LEARNING_RATE,
  LOCAL_STEPS,
  MOMENTUM,
  PLAIN,
  SGD,
  N,
  Row,
  multiples,
)

WEIGHTS = (1, 2, 3, 4, 1, 0.5, 7, 2)
EQUAL = (3,) * N
# x = (w, b) of `harness.to_tree`, in two layers.
LAYERS = ((0, (2, 2)), (4, (2,)))
NATURAL = {
  'period': 4,
  'rank': 3,
  'smoothing': 0.5,
  'update_rate': 0.3,
  'max_change': 1.0,
}


# The average, after which the preconditioner and the velocity begin again.
RESTARTED = pr.chain(
  pr.sync(pr.mixing.mean()),
  pr.restart(
    optax.chain(
      pr.optimizers.scale_by_natural_gradient(
        rank=3, smoothing=0.5, update_rate=0.3
      ),
      SGD,
      pr.optimizers.limit_change(1.0),
    )
  ),
)


def _scaffold(period, tx=PLAIN, momentum=0.0, **row):
  return Row(
    lambda: pr.scaffold(tx, period=period, learning_rate=LEARNING_RATE),
    functools.partial(reference.scaffold, period=period),
    'C',
    momentum=momentum,
    full_sync=multiples(period),
    **row,
  )


def _weighted(weights, **row):
  return Row(
    lambda: pr.weighted_averaging(SGD, period=4, weights=weights),
    functools.partial(reference.weighted_averaging, period=4, weights=weights),
    'C',
    full_sync=multiples(4),
    **row,
  )


def _natural(restart=False, **row):
  options = {'average': RESTARTED} if restart else {}
  return Row(
    lambda: pr.natural_gradient_averaging(SGD, **NATURAL, **options),
    functools.partial(
      reference.natural_gradient_averaging,
      layers=LAYERS,
      **NATURAL,
      restart=restart,
    ),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # a replica's direction depends on its past
    **row,
  )


TABLE = {
  'scaffold': _scaffold(5),  # does not divide T
  'scaffold_1': _scaffold(1, every_layout=False),
  'scaffold_momentum': _scaffold(4, SGD, MOMENTUM, every_layout=False),
  'weighted': _weighted(WEIGHTS, keeps_mean=False),
  'weighted_equally': _weighted(EQUAL, every_layout=False),
  'wp_sgd': Row(
    lambda: pr.wp_sgd(SGD, local_steps=LOCAL_STEPS, contraction=0.8),
    functools.partial(
      reference.weighted_averaging,
      period=8,
      weights=reference.delay_weights(LOCAL_STEPS, 0.8),
      local_steps=LOCAL_STEPS,
    ),
    'C',
    full_sync=multiples(8),
    keeps_mean=False,  # some sit out, and weigh less
  ),
  'tail_averaging': Row(
    lambda: pr.tail_averaging(SGD, start_step=10),
    reference.independent_runs,
    'C',
  ),
  'natural_gradient': _natural(),
  'natural_gradient_restarted': _natural(restart=True, every_layout=False),
}

"""Outer optimizers."""

import functools

import optax

import prsgd_jax as pr
from tests import reference
from tests.rows.row import SGD, Row, multiples


def _diloco():
  return pr.chain(
    pr.gradient(),
    pr.local_update(SGD),
    pr.sync(
      pr.mean(),
      when=pr.every(4),
      outer=optax.sgd(0.7, momentum=0.9, nesterov=True),
    ),
  )


TABLE = {
  'diloco': Row(
    _diloco,
    functools.partial(
      reference.diloco,
      period=4,
      outer_learning_rate=0.7,
      outer_momentum=0.9,
    ),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the outer optimizer moves it
  ),
}

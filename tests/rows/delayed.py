"""DiLoCo that does not wait."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.decentralized import DURATIONS, SPEEDS
from tests.rows.outer import NESTEROV
from tests.rows.row import SGD, Row, multiples

# DyLU of three steps of the fastest, at speeds of at most 4.
DYNAMIC_STEPS = (1, 1, 3, 3, 1, 1, 1, 3)
CLOCK = {'durations': DURATIONS, 'local_steps': DYNAMIC_STEPS}


def _delayed_nesterov(buffer_size, activation, rate, momentum, **row):
  options = {
    'buffer_size': buffer_size,
    'activation': activation,
    'outer_learning_rate': rate,
    'outer_momentum': momentum,
  }
  return Row(
    lambda: pr.delayed_nesterov(SGD, speeds=SPEEDS, period=3, **options),
    functools.partial(reference.delayed_nesterov, **CLOCK, **options),
    'C',
    keeps_mean=False,
    **row,
  )


TABLE = {
  'delayed_diloco': Row(
    lambda: pr.delayed_diloco(SGD, period=4),
    functools.partial(reference.delayed_diloco, period=4, **NESTEROV),
    'C',
    keeps_mean=False,
    full_sync=multiples(4),
    every_layout=False,
  ),
  'eager_diloco': Row(
    lambda: pr.eager_diloco(SGD, period=4),
    functools.partial(reference.eager_diloco, period=4, **NESTEROV),
    'C',
    keeps_mean=False,
  ),
  'delayed_nesterov': _delayed_nesterov(3, 0.2, 0.7, 0.9),
  'delayed_nesterov_1': _delayed_nesterov(1, 0.0, 0.1, 0.5, every_layout=False),
}

"""Averages of all replicas."""

import functools

import jax.numpy as jnp
import numpy as np
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
  T,
  multiples,
)

AVERAGED = pr.sync(pr.mixing.mean(), ('params', 'opt_state'))
RESET = pr.chain(pr.sync(pr.mixing.mean()), pr.restart(SGD))


def _k_avg(period, **row):
  return Row(
    lambda: pr.k_avg(SGD, period=period),
    functools.partial(reference.k_avg, period=period),
    'C',
    full_sync=multiples(period),
    **row,
  )


DYNAMIC_THRESHOLD = 6.0  # violated at 9 of 12 checks
EPOCHS = (1, 2, 4, 1, 3, 5, 8)
EPOCH_RATES = (0.05, 0.04, 0.05, 0.02, 0.03, 0.01, 0.02)
# With alpha = 0.1 these are H = 2, 2, 2, 4, 4, 6 and 6, of which 4 are left.
QSR_RATES = np.where(np.arange(T) < 5, 0.07, 0.049).astype(np.float32)
QSR_RATES[14:] = 0.04


def _times(lengths):
  return tuple(np.cumsum(lengths).tolist())


def _rate(rates):
  """A learning rate from a table over the steps, whose last repeats."""

  def learning_rate(step):
    return jnp.asarray(rates)[jnp.minimum(step, len(rates) - 1)]

  return learning_rate


def _time_varying(rates):
  tx = optax.sgd(_rate(np.repeat(rates, EPOCHS)), momentum=MOMENTUM)
  return pr.pr_sgd_time_varying(tx, epoch_lengths=EPOCHS)


def _qsr():
  when = pr.schedules.qsr(
    lambda step: QSR_RATES[step], alpha=0.1, base_period=2, num_steps=T
  )
  tx = optax.sgd(_rate(QSR_RATES), momentum=MOMENTUM)
  return pr.k_avg(tx, period=when)


def _dynamic(check_period, threshold, **row):
  arguments = {'check_period': check_period, 'threshold': threshold}
  oracle = functools.partial(reference.dynamic_averaging, **arguments)
  x = oracle(
    reference.make_problem(N, T), learning_rate=LEARNING_RATE, momentum=MOMENTUM
  )
  equal = [t for t in range(1, T + 1) if (x[t] == x[t][0]).all()]
  return Row(
    lambda: pr.dynamic_averaging(SGD, **arguments),
    oracle,
    'C',
    full_sync=tuple(equal),
    **row,
  )


TABLE = {
  'ssgd': Row(
    lambda: pr.ssgd(SGD), reference.ssgd, 'S', full_sync=multiples(1)
  ),
  'ssgd_plain': Row(
    lambda: pr.ssgd(PLAIN),
    reference.ssgd,
    'S',
    momentum=0.0,
    full_sync=multiples(1),
    every_layout=False,
  ),
  'one_shot': Row(
    lambda: pr.one_shot_averaging(SGD, num_steps=T),
    reference.one_shot_averaging,
    'C',
    full_sync=(T,),
  ),
  'pr_sgd': Row(
    lambda: pr.pr_sgd(SGD, period=4),
    functools.partial(reference.pr_sgd, period=4),
    'A',
    full_sync=multiples(4),
  ),
  'pr_sgd_plain': Row(
    lambda: pr.pr_sgd(PLAIN, period=4),
    functools.partial(reference.pr_sgd, period=4),
    'A',
    momentum=0.0,
    full_sync=multiples(4),
    every_layout=False,
  ),
  'pr_sgd_1': Row(
    lambda: pr.pr_sgd(SGD, period=1),
    functools.partial(reference.pr_sgd, period=1),
    'A',
    full_sync=multiples(1),
    every_layout=False,
  ),
  'pr_sgd_averaged_buffers': Row(
    lambda: pr.pr_sgd(SGD, period=4, average=AVERAGED),
    functools.partial(reference.pr_sgd, period=4, buffers='average'),
    'A',
    full_sync=multiples(4),
  ),
  'pr_sgd_reset_buffers': Row(
    lambda: pr.pr_sgd(SGD, period=4, average=RESET),
    functools.partial(reference.pr_sgd, period=4, buffers='reset'),
    'A',
    full_sync=multiples(4),
    keeps_mean=False,  # the buffers are dropped
  ),
  'k_avg': _k_avg(5),  # does not divide T
  'k_avg_1': _k_avg(1, every_layout=False),
  'k_avg_2': _k_avg(2, every_layout=False),
  'k_avg_4': _k_avg(4, every_layout=False),
  'k_avg_8': _k_avg(8, every_layout=False),
  'k_avg_averaged_buffers': Row(
    lambda: pr.k_avg(SGD, period=4, average=AVERAGED),
    functools.partial(reference.k_avg, period=4, buffers='average'),
    'C',
    full_sync=multiples(4),
  ),
  'k_avg_reset_buffers': Row(
    lambda: pr.k_avg(SGD, period=4, average=RESET),
    functools.partial(reference.k_avg, period=4, buffers='reset'),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the buffers are dropped
  ),
  'time_varying': Row(
    lambda: pr.pr_sgd_time_varying(SGD, epoch_lengths=EPOCHS),
    functools.partial(reference.pr_sgd_time_varying, epoch_lengths=EPOCHS),
    'C',
    full_sync=_times(EPOCHS),
  ),
  'time_varying_rates': Row(
    lambda: _time_varying(EPOCH_RATES),
    functools.partial(
      reference.pr_sgd_time_varying,
      epoch_lengths=EPOCHS,
      epoch_learning_rates=EPOCH_RATES,
    ),
    'C',
    full_sync=_times(EPOCHS),
    keeps_mean=False,  # its learning rate is not LEARNING_RATE
    every_layout=False,
  ),
  'heterogeneous': Row(
    lambda: pr.pr_sgd_heterogeneous(SGD, local_steps=LOCAL_STEPS),
    functools.partial(reference.pr_sgd_heterogeneous, local_steps=LOCAL_STEPS),
    'C',
    full_sync=multiples(8),
    keeps_mean=False,  # some sit out
  ),
  'heterogeneous_reset_buffers': Row(
    lambda: pr.pr_sgd_heterogeneous(
      SGD, local_steps=LOCAL_STEPS, average=RESET
    ),
    functools.partial(
      reference.pr_sgd_heterogeneous, local_steps=LOCAL_STEPS, buffers='reset'
    ),
    'C',
    full_sync=multiples(8),
    keeps_mean=False,  # some sit out
    every_layout=False,
  ),
  'heterogeneous_alike': Row(
    lambda: pr.pr_sgd_heterogeneous(SGD, local_steps=(4,) * N),
    functools.partial(reference.pr_sgd_heterogeneous, local_steps=(4,) * N),
    'C',
    full_sync=multiples(4),
    every_layout=False,
  ),
  'post_local': Row(
    lambda: pr.post_local_sgd(SGD, switch_step=5, period=4),
    functools.partial(reference.post_local_sgd, switch_step=5, period=4),
    'C',
    full_sync=(1, 2, 3, 4, 5, 9, 13, 17, 21),
  ),
  'qsr': Row(
    _qsr,
    functools.partial(reference.qsr, rates=QSR_RATES, alpha=0.1, base_period=2),
    'C',
    full_sync=(2, 4, 6, 10, 14, 20, 24),
    keeps_mean=False,  # its learning rate is not LEARNING_RATE
    every_layout=False,
  ),
  'dynamic': _dynamic(2, DYNAMIC_THRESHOLD),
  'dynamic_0': _dynamic(4, 0.0, every_layout=False),
}

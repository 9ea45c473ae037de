"""Outer optimizers and elastic averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import reference
from tests.rows.row import (
  LEARNING_RATE,
  MOMENTUM,
  PLAIN,
  SGD,
  N,
  Row,
  T,
  multiples,
)

NESTEROV = {'outer_learning_rate': 0.7, 'outer_momentum': 0.9}
# The coordinates of `b` and of `w`, in the order of the parameters' tree.
MEMBERS = (np.arange(4, 6), np.arange(4))
DECAY = 0.97
PULLS = {'probability': 0.3, 'pull': 5.0}


def decaying(step):
  return LEARNING_RATE * DECAY**step


def outer_row(make, oracle, period, **row):
  """The outer step moves the mean; all are equal after it."""
  return Row(
    make, oracle, 'C', keeps_mean=False, full_sync=multiples(period), **row
  )


def _slowmo(alpha, beta, period=4, **row):
  return outer_row(
    lambda: pr.slowmo(
      SGD,
      learning_rate=LEARNING_RATE,
      period=period,
      slow_learning_rate=alpha,
      slow_momentum=beta,
    ),
    functools.partial(
      reference.slowmo,
      period=period,
      slow_learning_rate=alpha,
      slow_momentum=beta,
    ),
    period,
    **row,
  )


def _slowmo_schedule():
  tx = optax.sgd(decaying, momentum=MOMENTUM)
  return pr.slowmo(
    tx,
    learning_rate=decaying,
    period=5,
    slow_learning_rate=0.8,
    slow_momentum=0.6,
    average=pr.chain(pr.sync(pr.mixing.mean()), pr.restart(tx)),
  )


def _bmuf(eta, zeta, nesterov=False, **row):
  options = {
    'block_momentum': eta,
    'block_learning_rate': zeta,
    'nesterov': nesterov,
  }
  return outer_row(
    lambda: pr.bmuf(SGD, period=4, **options),
    functools.partial(reference.bmuf, period=4, **options),
    4,
    **row,
  )


def _streaming(period, fragments, delay, alpha, **row):
  members = MEMBERS if fragments == 2 else (np.arange(6),)
  return Row(
    lambda: pr.streaming_diloco(
      SGD, period=period, fragments=fragments, delay=delay, alpha=alpha
    ),
    functools.partial(
      reference.streaming_diloco,
      period=period,
      members=members,
      delay=delay,
      alpha=alpha,
      **NESTEROV,
    ),
    'C',
    keeps_mean=False,
    **row,
  )


def coins(seed=0):
  """Which replicas `palsgd` pulls at each step, bool[T, N]."""
  root = jax.random.key(seed, impl='threefry2x32')

  def coin(step, replica):
    key = jax.random.fold_in(jax.random.fold_in(root, step), replica)
    return jax.random.uniform(key, dtype=jnp.float32)

  tossed = jax.vmap(jax.vmap(coin, (None, 0)), (0, None))
  return np.asarray(tossed(np.arange(T), np.arange(N))) < PULLS['probability']


def _palsgd(problem, **local):
  return reference.palsgd(
    problem, period=4, pulled=coins(), **PULLS, **NESTEROV, **local
  )


TABLE = {
  'slowmo': _slowmo(0.8, 0.6),
  'slowmo_local_sgd': _slowmo(1.0, 0.0, every_layout=False),
  'slowmo_schedule_reset': outer_row(
    _slowmo_schedule,
    functools.partial(
      reference.slowmo,
      period=5,
      slow_learning_rate=0.8,
      slow_momentum=0.6,
      buffers='reset',
      schedule=decaying,
    ),
    5,
    every_layout=False,
  ),
  'bmuf': _bmuf(0.6, 0.8),
  'bmuf_nesterov': _bmuf(0.6, 0.8, nesterov=True, every_layout=False),
  'diloco': outer_row(
    lambda: pr.diloco(SGD, period=4),
    functools.partial(reference.diloco, period=4, **NESTEROV),
    4,
  ),
  'palsgd': outer_row(
    lambda: pr.palsgd(SGD, period=4, learning_rate=LEARNING_RATE, **PULLS),
    _palsgd,
    4,
  ),
  'streaming_diloco': _streaming(6, 2, delay=4, alpha=0.3),
  'streaming_diloco_one': _streaming(
    4, 1, delay=0, alpha=0.0, full_sync=multiples(4), every_layout=False
  ),
  'easgd': Row(
    lambda: pr.easgd(SGD, period=3, alpha=0.9 / N),
    functools.partial(reference.easgd, period=3, alpha=0.9 / N),
    'A',
    keeps_mean=False,
  ),
  'eamsgd': Row(
    lambda: pr.eamsgd(PLAIN, period=3, alpha=0.9 / N, momentum=MOMENTUM),
    functools.partial(reference.eamsgd, period=3, alpha=0.9 / N),
    'A',
    keeps_mean=False,
  ),
}

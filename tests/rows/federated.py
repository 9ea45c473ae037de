"""Federated averages: clients drawn by chance, weighed, held back."""

import functools

import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import reference
from tests.rows.compressed import FRACTION, top_half
from tests.rows.row import (
  LOCAL_STEPS,
  MOMENTUM,
  SGD,
  N,
  Row,
  T,
  multiples,
)

WEIGHTS = (1.0, 4.0, 2.0, 0.5, 3.0, 1.5, 2.5, 6.0)
MU = 0.7
MEAN = pr.sync(pr.mixing.mean())
RESET = pr.chain(MEAN, pr.restart(SGD))
# How far heavy ball moves in I steps from rest, in units of one step of SGD.
MOVED = tuple(
  sum((1 - MOMENTUM**k) / (1 - MOMENTUM) for k in range(1, steps + 1))
  for steps in LOCAL_STEPS
)


def draws(begin, num_drawn, seed=0):
  """Whom the library draws in the rounds that begin at these steps."""
  root = jax.random.key(seed, impl='threefry2x32')
  ranks = [
    jax.random.permutation(jax.random.fold_in(root, step), N) for step in begin
  ]
  return [np.flatnonzero(np.asarray(r) < num_drawn).tolist() for r in ranks]


def row(make, oracle, period=4, **claims):
  """The server's step moves the mean; all are equal after it."""
  return Row(
    make, oracle, 'C', keeps_mean=False, full_sync=multiples(period), **claims
  )


def _fedavg(
  period, num_drawn, options=None, oracle=None, make=pr.fedavg, **claims
):
  options = {'participation': num_drawn / N, **(options or {})}

  def loop(problem, **local):
    return reference.fedavg(
      problem,
      period=period,
      draws=draws(range(0, T, period), num_drawn),
      **(oracle or {}),
      **local,
    )

  return row(
    lambda: make(SGD, period=period, **options), loop, period, **claims
  )


def _fedyogi(problem, **local):
  server = reference.Yogi(
    len(problem.start), 0.1, b1=0.9, b2=0.99, eps=1e-3, start=1e-6
  )
  begin = range(0, T, 4)
  return reference.fedavg(
    problem, period=4, draws=draws(begin, 2), server=server, **local
  )


def _codes():
  average = pr.stages.average_differences(pr.codecs.top_k(FRACTION))
  return pr.chain(average, pr.restart(SGD))


TABLE = {
  'fedavg': _fedavg(4, 3, {'weights': WEIGHTS}, {'weights': WEIGHTS}),
  'fedavg_everyone': _fedavg(4, N, every_layout=False),
  'fedavg_weighted_everyone': _fedavg(
    4, N, {'weights': WEIGHTS}, {'weights': WEIGHTS}, every_layout=False
  ),
  'fedavg_kept_buffers': _fedavg(
    5, 5, {'average': MEAN}, {'buffers': 'keep'}, every_layout=False
  ),
  'fedavg_codes': _fedavg(
    4,
    3,
    {'weights': WEIGHTS, 'average': _codes()},
    {'weights': WEIGHTS, 'compress': top_half},
    every_layout=False,
  ),
  'fedyogi': row(
    lambda: pr.fedavg(
      SGD,
      period=4,
      participation=0.25,
      server=optax.yogi(0.1, b1=0.9, b2=0.99, eps=1e-3),
    ),
    _fedyogi,
    every_layout=False,
  ),
  'fedprox': _fedavg(4, 3, {'mu': MU}, {'mu': MU}, pr.fedprox),
  'fednova': row(
    lambda: pr.fednova(SGD, local_steps=LOCAL_STEPS),
    functools.partial(reference.fednova, local_steps=LOCAL_STEPS),
    8,
  ),
  'fednova_restarted': row(
    lambda: pr.fednova(
      SGD, local_steps=LOCAL_STEPS, normalizers=MOVED, average=RESET
    ),
    functools.partial(
      reference.fednova,
      local_steps=LOCAL_STEPS,
      normalizers=MOVED,
      buffers='reset',
    ),
    8,
    every_layout=False,
  ),
}

"""Averages with graph neighbours only."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.row import SGD, J, N, Row, W, multiples

RING = reference.ring_weights(N)


def order_of(mixing, order, tx=SGD):
  step, local, mix = pr.gradient(), pr.local_update(tx), pr.sync(mixing)
  orders = {
    'A': (step, mix, local),
    'B': (mix, step, local),
    'C': (step, local, mix),
  }
  return pr.chain(*orders[order])


def _d_psgd(mixing, weights, **row):
  return Row(
    lambda: pr.d_psgd(SGD, mixing=mixing),
    functools.partial(reference.d_psgd, weights=weights),
    'A',
    **row,
  )


TABLE = {
  'd_psgd_ring': _d_psgd(None, RING),
  'd_psgd_dense': _d_psgd(pr.dense(W), W),
  'd_psgd_dense_mean': _d_psgd(
    pr.dense(J), J, full_sync=multiples(1), every_layout=False
  ),
  'd_psgd_mean': _d_psgd(
    pr.mean(), J, full_sync=multiples(1), every_layout=False
  ),
  'diffusion_ring': Row(
    lambda: order_of(pr.ring(0.5), 'C'),
    functools.partial(
      reference.adapt_then_combine, weights=reference.ring_weights(N, 0.5)
    ),
    'C',
  ),
  'diffusion_mean': Row(
    lambda: order_of(pr.mean(), 'C'),
    functools.partial(reference.adapt_then_combine, weights=J),
    'C',
    full_sync=multiples(1),
    every_layout=False,
  ),
  'combine_then_adapt_ring': Row(
    lambda: order_of(pr.ring(), 'B'),
    functools.partial(reference.combine_then_adapt, weights=RING),
    'B',
  ),
  'combine_then_adapt_mean': Row(
    lambda: order_of(pr.mean(), 'B'),
    functools.partial(reference.combine_then_adapt, weights=J),
    'B',
    full_sync=multiples(1),
    every_layout=False,
  ),
}

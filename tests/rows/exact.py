"""Decentralized methods with corrections."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.row import LEARNING_RATE, PLAIN, SGD, J, N, Row, multiples

RING = reference.ring_weights(N)
HALF_RING = reference.ring_weights(N, 0.5)  # eigenvalues from 0 to 1
PARENTS = (0, 0, 1, 1, 2, 2, 6)
EDGES = tuple((i, parent) for i, parent in enumerate(PARENTS, start=1))

TABLE = {
  'gradient_tracking': Row(
    lambda: pr.gradient_tracking(SGD),
    functools.partial(reference.gradient_tracking, weights=RING),
    'C',
  ),
  'gradient_tracking_mean': Row(
    lambda: pr.gradient_tracking(SGD, mixing=pr.mixing.mean()),
    functools.partial(reference.gradient_tracking, weights=J),
    'C',
    full_sync=multiples(1),
    every_layout=False,
  ),
  'd2': Row(
    lambda: pr.d2(SGD),
    functools.partial(reference.d2, weights=HALF_RING),
    'C',
  ),
  'extra': Row(
    lambda: pr.extra(SGD),
    functools.partial(reference.extra, weights=HALF_RING),
    'A',
  ),
  'k_gt': Row(
    lambda: pr.k_gt(SGD, period=4, learning_rate=LEARNING_RATE),
    functools.partial(reference.k_gt, weights=RING, period=4),
    'C',
  ),
  'k_gt_outer': Row(
    lambda: pr.k_gt(
      SGD, period=3, learning_rate=LEARNING_RATE, outer_learning_rate=0.8
    ),
    functools.partial(
      reference.k_gt, weights=RING, period=3, outer_learning_rate=0.8
    ),
    'C',
    keeps_mean=False,  # which moves by 0.8 of the steps of a round
    every_layout=False,
  ),
  'qg_dsgdm': Row(
    lambda: pr.qg_dsgdm(PLAIN, learning_rate=LEARNING_RATE, momentum=0.9),
    functools.partial(reference.qg_dsgdm, weights=RING),
    'C',
    keeps_mean=False,  # its momentum is not of gradients
  ),
  'relay_sgd': Row(
    lambda: pr.relay_sgd(SGD, parents=PARENTS),
    functools.partial(reference.relay_sgd, edges=EDGES),
    'C',
    keeps_mean=False,  # models on the way are not in it
  ),
}

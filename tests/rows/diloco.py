"""DiLoCo with other parts: gossip, push-sum, codes, groups."""

import functools

import optax

import prsgd_jax as pr
from tests import reference
from tests.rows import compressed, decentralized
from tests.rows.outer import MEMBERS, NESTEROV
from tests.rows.row import (
  LEARNING_RATE,
  PLAIN,
  SGD,
  N,
  Row,
  multiples,
)

DIRECTED = decentralized.DIRECTED
RING = reference.ring_weights(N)
SLOW = {'slow_learning_rate': 0.8, 'slow_momentum': 0.6}
HEAVY = {'outer_learning_rate': 0.8, 'outer_momentum': 0.6}
GROUPS = {'local_period': 2, 'group_size': 4}


def push_sum():
  return pr.sgp(SGD, mixing=pr.graphs.graph(DIRECTED))


def falling(round):
  return 0.9 * 0.8**round


def pairs():
  """The groups that `noloco` draws in each round of four steps."""
  partners = decentralized.partners(decentralized.drawn((2, 0))[3::4])
  return [
    sorted({(min(i, j), max(i, j)) for i, j in enumerate(p)})
    for p in partners.tolist()
  ]


def _noloco(problem, **local):
  return reference.noloco(
    problem,
    period=4,
    pairs=pairs(),
    outer_learning_rate=0.7,
    outer_momentum=0.5,
    **local,
  )


def row(make, oracle, period=None, **options):
  """The outer step moves the mean; all are equal after it, if `period`."""
  sync = () if period is None else multiples(period)
  return Row(make, oracle, 'C', keeps_mean=False, full_sync=sync, **options)


TABLE = {
  'slowmo_sgp': row(
    lambda: pr.slowmo(
      push_sum(), learning_rate=LEARNING_RATE, period=4, **SLOW
    ),
    functools.partial(reference.slowmo_sgp, weights=DIRECTED, period=4, **SLOW),
    4,
  ),
  'diloco_sgp': row(
    lambda: pr.diloco(push_sum(), period=4),
    functools.partial(
      reference.diloco_sgp, weights=DIRECTED, period=4, **NESTEROV
    ),
    4,
    every_layout=False,
  ),
  'diloco_ring': row(
    lambda: pr.diloco(SGD, period=4, average=pr.sync(pr.graphs.ring())),
    functools.partial(
      reference.outer_gossip, weights=RING, period=4, **NESTEROV
    ),
  ),
  'bmuf_ring': row(
    lambda: pr.bmuf(
      SGD,
      period=4,
      block_momentum=0.6,
      block_learning_rate=0.8,
      average=pr.sync(pr.graphs.ring()),
    ),
    functools.partial(
      reference.outer_gossip, weights=RING, period=4, nesterov=False, **HEAVY
    ),
    every_layout=False,
  ),
  'diloco_groups': row(
    lambda: pr.diloco(
      pr.k_avg(SGD, period=2, average=pr.sync(pr.mixing.group_mean(4))),
      period=8,
    ),
    functools.partial(
      reference.hier_outer, global_period=8, **GROUPS, **NESTEROV
    ),
    8,
  ),
  'muloco': row(
    lambda: pr.muloco(optax.contrib.muon(LEARNING_RATE), period=4),
    functools.partial(
      reference.muloco, period=4, outer_learning_rate=0.7, outer_momentum=0.6
    ),
    4,
  ),
  'muloco_schedule': row(
    lambda: pr.muloco(
      optax.contrib.muon(LEARNING_RATE),
      period=4,
      outer_learning_rate=falling,
    ),
    functools.partial(
      reference.muloco,
      period=4,
      outer_learning_rate=falling,
      outer_momentum=0.6,
    ),
    4,
    every_layout=False,
  ),
  'noloco': row(
    lambda: pr.noloco(SGD, period=4),
    _noloco,
  ),
  'des_loc': Row(
    lambda: pr.des_loc(
      PLAIN, period=2, first_moment_period=3, second_moment_period=5, b2=0.99
    ),
    functools.partial(
      reference.des_loc,
      period=2,
      first_period=3,
      second_period=5,
      b1=0.9,
      b2=0.99,
      eps=1e-8,
    ),
    'A',
    keeps_mean=False,
  ),
  # The paper's codes: four bits a number.
  'streaming_diloco_e3m0': row(
    lambda: pr.streaming_diloco(
      SGD, period=6, fragments=2, delay=4, alpha=0.3, codec=pr.codecs.e3m0()
    ),
    functools.partial(
      reference.coded_streaming_diloco,
      period=6,
      members=MEMBERS,
      delay=4,
      alpha=0.3,
      compress=compressed.small_floats,
      **NESTEROV,
    ),
    every_layout=False,
  ),
  'streaming_diloco_coded': row(
    lambda: pr.streaming_diloco(
      SGD,
      period=6,
      fragments=[['w'], ['b']],
      delay=4,
      alpha=0.3,
      codec=pr.codecs.top_k(0.5),
    ),
    functools.partial(
      reference.coded_streaming_diloco,
      period=6,
      members=MEMBERS[::-1],
      delay=4,
      alpha=0.3,
      compress=compressed.top_half,
      **NESTEROV,
    ),
  ),
}

"""Averages with graph neighbors only."""

import functools

import jax
import networkx as nx
import numpy as np

import prsgd_jax as pr
from tests import harness, reference
from tests.rows.compressed import FRACTION, top_half
from tests.rows.row import LEARNING_RATE, SGD, J, N, Row, T, W, multiples

RING = reference.ring_weights(N)
DIRECTED = reference.random_column_stochastic(N)
ONE_PEER = reference.one_peer_exponential_weights(N, T)
# W = I between rounds.
EVERY_THIRD = np.stack(
  [RING if t % 3 == 0 else np.eye(N) for t in range(1, T + 1)]
)
SPARQ = {'period': 3, 'consensus_step_size': 0.4}
# The edges of a ring in two matchings, and alpha for each with probability 1/2:
# 2 / (p (l_2 + l_N) + 2 (1 - p)), l_2 = 2 - 2 cos(2 pi / 8) and l_N = 4.
RING_MATCHINGS = (
  [(i, i + 1) for i in range(0, N, 2)],
  [(i, (i + 1) % N) for i in range(1, N, 2)],
)
ALPHA = 2 / (0.5 * (2 - 2 * np.cos(np.pi / 4) + 4) + 1)
SPEEDS = (1, 2, 4, 4, 2, 1, 1, 4)
DURATIONS = (4, 2, 1, 1, 2, 4, 4, 1)  # ticks of a gradient


@functools.cache
def drawn(path, make=pr.graphs.random_matching):
  """float64[T, N, N], the W that the stage at a path in the chain draws."""
  matrices = make().matrices(N)
  _, keys = harness.stage_keys(T, path)
  turns = [
    int(jax.random.randint(key, (), 0, len(matrices), np.int32)) for key in keys
  ]
  return matrices[turns]


@functools.cache
def drawn_neighbors():
  """int[T, N], whom `d_psgd` draws for each by `independent_neighbors`."""
  _, keys = harness.stage_keys(T, (1,))
  further = [jax.random.randint(k, (N,), 0, N - 1, np.int32) for k in keys]
  return (np.arange(N) + 1 + np.array(further)) % N


@functools.cache
def drawn_matchings():
  """bool[T, 2], which halves of a ring's edges `d_psgd` draws by `matcha`."""
  _, keys = harness.stage_keys(T, (1,))
  return np.array(
    [jax.random.uniform(key, (2,), np.float32) < 0.5 for key in keys]
  )


def sparq_threshold(t):
  """c_t, of which none, some and all replicas are beyond in some round."""
  return 60.0 + 50.0 * t


def sparq_oracle(problem, **kwargs):
  return reference.sparq_sgd(
    problem,
    weights=RING,
    compress=top_half,
    threshold=sparq_threshold,
    **SPARQ,
    **kwargs,
  )


def partners(weights):
  """int[T, N]: with whom each averages, itself for nobody."""
  n = weights.shape[-1]
  return (weights - np.eye(n) / 4).argmax(axis=-1)


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
  'd_psgd_dense': _d_psgd(pr.mixing.dense(W), W),
  'd_psgd_dense_mean': _d_psgd(
    pr.mixing.dense(J), J, full_sync=multiples(1), every_layout=False
  ),
  'd_psgd_mean': _d_psgd(
    pr.mixing.mean(), J, full_sync=multiples(1), every_layout=False
  ),
  'd_psgd_matching': Row(
    lambda: pr.d_psgd(SGD, mixing=pr.graphs.random_matching()),
    lambda problem, **kwargs: reference.d_psgd(
      problem, weights=drawn((1,)), **kwargs
    ),
    'A',
  ),
  'd_psgd_one_peer': _d_psgd(
    pr.graphs.one_peer_exponential(), ONE_PEER, every_layout=False
  ),
  'd_psgd_base_graph': _d_psgd(
    pr.graphs.base_graph(3), reference.base_graph_weights(T), every_layout=False
  ),
  'd_psgd_independent': Row(
    lambda: pr.d_psgd(SGD, mixing=pr.graphs.independent_neighbors()),
    lambda problem, **kwargs: reference.d_psgd(
      problem,
      weights=reference.neighbor_weights(drawn_neighbors()),
      **kwargs,
    ),
    'A',
    keeps_mean=False,  # the columns of W do not sum to 1
  ),
  'd_psgd_matcha': Row(
    lambda: pr.d_psgd(
      SGD, mixing=pr.graphs.matcha(nx.cycle_graph(N), budget=0.5)
    ),
    lambda problem, **kwargs: reference.d_psgd(
      problem,
      weights=reference.matcha_weights(
        drawn_matchings(), RING_MATCHINGS, ALPHA
      ),
      **kwargs,
    ),
    'A',
  ),
  'd_psgd_star': _d_psgd(
    pr.graphs.star(), reference.star_weights(N), every_layout=False
  ),
  'diffusion_ring': Row(
    lambda: pr.diffusion(SGD, mixing=pr.graphs.ring(0.5)),
    functools.partial(
      reference.adapt_then_combine, weights=reference.ring_weights(N, 0.5)
    ),
    'C',
  ),
  'diffusion_ring_3': Row(
    lambda: pr.diffusion(SGD, period=3),
    functools.partial(reference.adapt_then_combine, weights=RING, period=3),
    'C',
    every_layout=False,
  ),
  'diffusion_mean': Row(
    lambda: pr.diffusion(SGD, mixing=pr.mixing.mean()),
    functools.partial(reference.adapt_then_combine, weights=J),
    'C',
    full_sync=multiples(1),
    every_layout=False,
  ),
  'diffusion_mean_4': Row(
    lambda: pr.diffusion(SGD, mixing=pr.mixing.mean(), period=4),
    functools.partial(reference.adapt_then_combine, weights=J, period=4),
    'C',
    full_sync=multiples(4),
    every_layout=False,
  ),
  'sgp_directed': Row(
    lambda: pr.sgp(SGD, mixing=pr.graphs.graph(DIRECTED)),
    functools.partial(reference.sgp, weights=DIRECTED),
    'C',
    keeps_mean=False,  # that of x is kept, not that of z = x / w
  ),
  'sgp_one_peer': Row(
    lambda: pr.sgp(SGD),
    functools.partial(reference.sgp, weights=ONE_PEER),
    'C',
    every_layout=False,
  ),
  'sgp_ring': Row(
    lambda: pr.sgp(SGD, mixing=pr.graphs.ring(0.5)),
    functools.partial(reference.sgp, weights=reference.ring_weights(N, 0.5)),
    'C',
    every_layout=False,
  ),
  'sgp_directed_3': Row(
    lambda: pr.sgp(SGD, mixing=pr.graphs.graph(DIRECTED), period=3),
    functools.partial(reference.sgp, weights=DIRECTED, period=3),
    'C',
    keeps_mean=False,
    every_layout=False,
  ),
  'sgp_matching': Row(
    lambda: pr.sgp(SGD, mixing=pr.graphs.random_matching()),
    lambda problem, **kwargs: reference.sgp(
      problem, weights=drawn((5, 0)), **kwargs
    ),
    'C',
    every_layout=False,
  ),
  'pr_sgd_ring': Row(
    lambda: pr.pr_sgd(SGD, period=3, average=pr.sync(pr.graphs.ring())),
    functools.partial(reference.d_psgd, weights=EVERY_THIRD),
    'A',
    every_layout=False,
  ),
  'ad_psgd': Row(
    lambda: pr.ad_psgd(SGD, speeds=SPEEDS),
    lambda problem, **kwargs: reference.ad_psgd(
      problem, durations=DURATIONS, partners=partners(drawn((3, 1))), **kwargs
    ),
    'A',
    keeps_mean=False,  # it moves by those that are done
  ),
  'ad_psgd_equal': Row(
    lambda: pr.ad_psgd(SGD, speeds=[3] * N),
    lambda problem, **kwargs: reference.ad_psgd(
      problem, durations=[1] * N, partners=partners(drawn((3, 1))), **kwargs
    ),
    'A',
    every_layout=False,
  ),
  'sparq_sgd': Row(
    lambda: pr.sparq_sgd(
      SGD,
      learning_rate=LEARNING_RATE,
      threshold=lambda step: sparq_threshold(step + 1),
      compressor=pr.codecs.top_k(FRACTION),
      **SPARQ,
    ),
    lambda problem, **kwargs: sparq_oracle(problem, **kwargs)[0],
    'C',
  ),
  'combine_then_adapt_ring': Row(
    lambda: order_of(pr.graphs.ring(), 'B'),
    functools.partial(reference.combine_then_adapt, weights=RING),
    'B',
  ),
  'combine_then_adapt_mean': Row(
    lambda: order_of(pr.mixing.mean(), 'B'),
    functools.partial(reference.combine_then_adapt, weights=J),
    'B',
    full_sync=multiples(1),
    every_layout=False,
  ),
}

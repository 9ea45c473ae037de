"""WITH WHOM: mixings along the edges of a graph of replicas.

`fixed` has named graphs, `random_graphs` those drawn in each round, and
`base_graphs` the graphs that average exactly in a few rounds.
"""

from prsgd_jax.mixing.graphs.base_graphs import (
  base_graph,
)
from prsgd_jax.mixing.graphs.fixed import (
  complete,
  erdos_renyi,
  exponential,
  graph,
  hypercube,
  metropolis_hastings,
  one_peer_exponential,
  ring,
  star,
  torus,
)
from prsgd_jax.mixing.graphs.random_graphs import (
  independent_neighbors,
  matcha,
  random_matching,
  random_neighbor,
)

__all__ = (
  'base_graph',
  'complete',
  'erdos_renyi',
  'exponential',
  'graph',
  'hypercube',
  'independent_neighbors',
  'matcha',
  'metropolis_hastings',
  'one_peer_exponential',
  'random_matching',
  'random_neighbor',
  'ring',
  'star',
  'torus',
)

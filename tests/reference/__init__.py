"""The papers' double loops in NumPy: the oracles of the tests.

Nothing here imports the library, JAX or optax. Each function follows one
paper's pseudocode, replica by replica and step by step, with t = 1, 2, ... as
the papers count, and returns x_i^t for t = 0 .. T as float64[T + 1, N, d].

Momentum is heavy-ball, v <- m v + G and x <- x - gamma v, with one buffer per
replica; `buffers` says what an average of the parameters does to them: 'keep',
'average' or 'reset'.
"""

from tests.reference.averaging import (
  k_avg,
  one_shot_averaging,
  post_local_sgd,
  pr_sgd,
  pr_sgd_heterogeneous,
  ssgd,
)
from tests.reference.decentralized import (
  adapt_then_combine,
  combine_then_adapt,
  d_psgd,
  random_doubly_stochastic,
  ring_weights,
)
from tests.reference.hierarchical import hier_avg
from tests.reference.outer import diloco
from tests.reference.problem import (
  Learners,
  Problem,
  consensus_distance,
  make_problem,
)

__all__ = (
  'Learners',
  'Problem',
  'adapt_then_combine',
  'combine_then_adapt',
  'consensus_distance',
  'd_psgd',
  'diloco',
  'hier_avg',
  'k_avg',
  'make_problem',
  'one_shot_averaging',
  'post_local_sgd',
  'pr_sgd',
  'pr_sgd_heterogeneous',
  'random_doubly_stochastic',
  'ring_weights',
  'ssgd',
)

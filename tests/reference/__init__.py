"""The papers' double loops in NumPy: the oracles of the tests.

Nothing here imports the library, JAX or optax. Each function follows one
paper's pseudocode, replica by replica and step by step, with t = 1, 2, ... as
the papers count, and returns x_i^t for t = 0 .. T as float64[T + 1, N, d].

Momentum is heavy-ball, v <- m v + G and x <- x - gamma v, with one buffer per
replica; `buffers` says what an average of the parameters does to them: 'keep',
'average' or 'reset'.
"""

from tests.reference.averaging import (
  dynamic_averaging,
  k_avg,
  one_shot_averaging,
  post_local_sgd,
  pr_sgd,
  pr_sgd_heterogeneous,
  pr_sgd_time_varying,
  qsr,
  ssgd,
)
from tests.reference.compressed import (
  by_layer,
  choco_sgd,
  compressed_sgd,
  error_feedback_sgd,
  fedpaq,
  qsparse_local_sgd,
  random_k,
  sign_sgd,
  signs,
  stochastic_levels,
  ternary,
  top_k,
)
from tests.reference.corrected import (
  NaturalGradient,
  delay_weights,
  independent_runs,
  natural_gradient_averaging,
  scaffold,
  tail_average,
  weighted_averaging,
)
from tests.reference.decentralized import (
  ad_psgd,
  adapt_then_combine,
  combine_then_adapt,
  d_psgd,
  one_peer_exponential_weights,
  random_column_stochastic,
  random_doubly_stochastic,
  ring_weights,
  sgp,
  star_weights,
)
from tests.reference.diloco import (
  coded_outer,
  coded_streaming_diloco,
  diloco_sgp,
  hier_outer,
  outer_gossip,
  slowmo_sgp,
)
from tests.reference.hierarchical import (
  hier_avg,
  hierarchical_local_sgd,
  multi_level_avg,
)
from tests.reference.outer import (
  Yogi,
  bmuf,
  diloco,
  eamsgd,
  easgd,
  fedavg,
  slowmo,
  streaming_diloco,
)
from tests.reference.problem import (
  Learners,
  Problem,
  consensus_distance,
  make_problem,
)

__all__ = (
  'Learners',
  'NaturalGradient',
  'Problem',
  'Yogi',
  'ad_psgd',
  'adapt_then_combine',
  'bmuf',
  'by_layer',
  'choco_sgd',
  'coded_outer',
  'coded_streaming_diloco',
  'combine_then_adapt',
  'compressed_sgd',
  'consensus_distance',
  'd_psgd',
  'delay_weights',
  'diloco',
  'diloco_sgp',
  'dynamic_averaging',
  'eamsgd',
  'easgd',
  'error_feedback_sgd',
  'fedavg',
  'fedpaq',
  'hier_avg',
  'hier_outer',
  'hierarchical_local_sgd',
  'independent_runs',
  'k_avg',
  'make_problem',
  'multi_level_avg',
  'natural_gradient_averaging',
  'one_peer_exponential_weights',
  'one_shot_averaging',
  'outer_gossip',
  'post_local_sgd',
  'pr_sgd',
  'pr_sgd_heterogeneous',
  'pr_sgd_time_varying',
  'qsparse_local_sgd',
  'qsr',
  'random_column_stochastic',
  'random_doubly_stochastic',
  'random_k',
  'ring_weights',
  'scaffold',
  'sgp',
  'sign_sgd',
  'signs',
  'slowmo',
  'slowmo_sgp',
  'ssgd',
  'star_weights',
  'stochastic_levels',
  'streaming_diloco',
  'tail_average',
  'ternary',
  'top_k',
  'weighted_averaging',
)

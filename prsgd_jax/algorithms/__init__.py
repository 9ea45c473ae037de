"""One function per paper: an equation, a reference, the lines of its code.

Notation: N replicas, local models x_i, stochastic gradients G_i at x_i, step
size gamma, and t = step + 1. The literature has three orders of mixing and
stepping, which are different sequences. The stages of an algorithm show its
order:

  A  x_i <- sum_j W_ij x_j - gamma G(x_i)       gradient, sync, local_update
  B  y_i = sum_j W_ij x_j; x_i <- y_i - gamma G(y_i)
                                                sync, gradient, local_update
  C  x_i <- sum_j W_ij (x_j - gamma G(x_j))     gradient, local_update, sync

The argument `average` is the stage at the end of a round, by default the mean
of the parameters. It decides details that papers leave open. For example,
momentum may be averaged too (`sync(mean(), ('params', 'opt_state'))`; Yu, Jin,
Yang 2019) or reset (`chain(sync(mean()), restart(tx))`). It may be gossip, a
mean in groups, or compressed. For an algorithm that takes a `mixing`, `average`
is a function from the mixing to the stage, by default `sync`.

The argument `local` is the local step of a replica: an optimizer, or a stage
that takes a gradient and updates `params`, such as `sgp(tx)`.

Put coupled L2 into the loss, so that it is evaluated where the gradient is. Put
decoupled weight decay into `tx`; in order A it then acts on the mixed point.
"""

from prsgd_jax.algorithms.averaging import (
  dynamic_averaging,
  k_avg,
  local_sgd,
  one_shot_averaging,
  post_local_sgd,
  pr_sgd,
  pr_sgd_heterogeneous,
  pr_sgd_time_varying,
  ssgd,
)
from prsgd_jax.algorithms.compressed import (
  choco_sgd,
  error_feedback_sgd,
  fedpaq,
  qsgd,
  qsparse_local_sgd,
  sign_sgd,
  terngrad,
)
from prsgd_jax.algorithms.corrected import (
  average_iterates as average_iterates,
)
from prsgd_jax.algorithms.corrected import (
  delay_weights as delay_weights,
)
from prsgd_jax.algorithms.corrected import (
  natural_gradient_averaging,
  scaffold,
  tail_averaging,
  weighted_averaging,
  wp_sgd,
)
from prsgd_jax.algorithms.decentralized import (
  ad_psgd,
  d_psgd,
  diffusion,
  sgp,
  sparq_sgd,
)
from prsgd_jax.algorithms.delayed import (
  delayed_diloco,
  delayed_nesterov,
  eager_diloco,
)
from prsgd_jax.algorithms.diloco import (
  des_loc,
  diloco,
  muloco,
  noloco,
)
from prsgd_jax.algorithms.dion import dion
from prsgd_jax.algorithms.elastic import (
  eamsgd,
  easgd,
  palsgd,
)
from prsgd_jax.algorithms.elastic import (
  elastic as elastic,
)
from prsgd_jax.algorithms.exact import (
  d2,
  extra,
  gradient_tracking,
  k_gt,
  qg_dsgdm,
)
from prsgd_jax.algorithms.federated import (
  fedavg,
  fednova,
  fedprox,
)
from prsgd_jax.algorithms.hierarchical import (
  hier_avg,
  hierarchical_local_sgd,
  multi_level_avg,
)
from prsgd_jax.algorithms.outer import (
  bmuf,
  slowmo,
)
from prsgd_jax.algorithms.relay import relay_sgd
from prsgd_jax.algorithms.robust import (
  average_penalized as average_penalized,
)
from prsgd_jax.algorithms.robust import (
  average_radial as average_radial,
)
from prsgd_jax.algorithms.robust import (
  decoupled_diloco,
  edit,
)
from prsgd_jax.algorithms.sparse import (
  demo,
  power_sgd,
  sparse_loco,
  sparta,
)
from prsgd_jax.algorithms.streaming import (
  streaming_diloco,
)

# Only algorithms are listed, because the flags and the documentation treat the
# list as the list of all algorithms.
__all__ = (
  'ad_psgd',
  'bmuf',
  'choco_sgd',
  'd2',
  'd_psgd',
  'decoupled_diloco',
  'delayed_diloco',
  'delayed_nesterov',
  'demo',
  'des_loc',
  'diffusion',
  'diloco',
  'dion',
  'dynamic_averaging',
  'eager_diloco',
  'eamsgd',
  'easgd',
  'edit',
  'error_feedback_sgd',
  'extra',
  'fedavg',
  'fednova',
  'fedpaq',
  'fedprox',
  'gradient_tracking',
  'hier_avg',
  'hierarchical_local_sgd',
  'k_avg',
  'k_gt',
  'local_sgd',
  'muloco',
  'multi_level_avg',
  'natural_gradient_averaging',
  'noloco',
  'one_shot_averaging',
  'palsgd',
  'post_local_sgd',
  'power_sgd',
  'pr_sgd',
  'pr_sgd_heterogeneous',
  'pr_sgd_time_varying',
  'qg_dsgdm',
  'qsgd',
  'qsparse_local_sgd',
  'relay_sgd',
  'scaffold',
  'sgp',
  'sign_sgd',
  'slowmo',
  'sparq_sgd',
  'sparse_loco',
  'sparta',
  'ssgd',
  'streaming_diloco',
  'tail_averaging',
  'terngrad',
  'weighted_averaging',
  'wp_sgd',
)

"""STAGES: the building blocks of algorithms.

`gradient` and `local_update` train, `sync` communicates, `remember`, `let`,
`compute` and `evaluate` assign registers, `at` and `where` choose steps and
replicas. `on_resize` declares what registers mean when N changes. `chain` and
`algorithm` put stages in order.
"""

from prsgd_jax.stages.assignments import compute, evaluate, let, remember
from prsgd_jax.stages.averages import (
  average_differences,
  average_entries,
  gossip_differences,
)
from prsgd_jax.stages.communication import sync
from prsgd_jax.stages.local import (
  gradient,
  local_update,
  outer_update,
  restart,
  step,
)
from prsgd_jax.stages.requirements import require, require_everyone
from prsgd_jax.stages.resize import kept, on_resize
from prsgd_jax.stages.robust_averages import (
  average_finite,
  average_geometric_median,
  average_krum,
  average_median,
  average_trimmed,
)
from prsgd_jax.stages.rules import first_steps, per_replica, reading, zeros
from prsgd_jax.stages.scopes import algorithm
from prsgd_jax.stages.when import anyone, at
from prsgd_jax.stages.who import where

__all__ = (
  'algorithm',
  'anyone',
  'at',
  'average_differences',
  'average_entries',
  'average_finite',
  'average_geometric_median',
  'average_krum',
  'average_median',
  'average_trimmed',
  'compute',
  'evaluate',
  'first_steps',
  'gossip_differences',
  'gradient',
  'kept',
  'let',
  'local_update',
  'on_resize',
  'outer_update',
  'per_replica',
  'reading',
  'remember',
  'require',
  'require_everyone',
  'restart',
  'step',
  'sync',
  'where',
  'zeros',
)

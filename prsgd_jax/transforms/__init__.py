"""STAGES: what a replica does in a step, and how it talks to the others."""

from prsgd_jax.transforms.compressed import (
  average_codes,
  average_differences,
  feed_back_errors,
  gossip_differences,
  vote,
)
from prsgd_jax.transforms.local import (
  gradient,
  local_update,
  reset_buffers,
  while_active,
)
from prsgd_jax.transforms.push_sum import (
  push_sum,
)
from prsgd_jax.transforms.sync import sync
from prsgd_jax.transforms.virtual_clock import (
  apply_done,
  delayed_gradient,
  sync_done,
)

__all__ = (
  'apply_done',
  'average_codes',
  'average_differences',
  'delayed_gradient',
  'feed_back_errors',
  'gossip_differences',
  'gradient',
  'local_update',
  'push_sum',
  'reset_buffers',
  'sync',
  'sync_done',
  'vote',
  'while_active',
)

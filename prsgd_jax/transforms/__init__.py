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
from prsgd_jax.transforms.sync import sync

__all__ = (
  'average_codes',
  'average_differences',
  'feed_back_errors',
  'gossip_differences',
  'gradient',
  'local_update',
  'reset_buffers',
  'sync',
  'vote',
  'while_active',
)

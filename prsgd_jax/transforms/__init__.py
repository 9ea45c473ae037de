"""STAGES: what a replica does in a step, and how it talks to the others."""

from prsgd_jax.transforms.local import (
  gradient,
  local_update,
  reset_buffers,
  while_active,
)
from prsgd_jax.transforms.sync import sync

__all__ = (
  'gradient',
  'local_update',
  'reset_buffers',
  'sync',
  'while_active',
)

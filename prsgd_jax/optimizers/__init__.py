"""Optimizers of a replica, and what the library must know of them."""

from prsgd_jax.optimizers.evaluation_points import (
  evaluated_at,
)
from prsgd_jax.optimizers.preconditioners import (
  limit_change,
  scale_by_natural_gradient,
)

__all__ = (
  'evaluated_at',
  'limit_change',
  'scale_by_natural_gradient',
)

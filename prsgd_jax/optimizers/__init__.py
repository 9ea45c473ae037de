"""OPTIMIZERS of one replica, and the adjustments that optax states need.

`preconditioners` are optax transformations. `evaluation_points` finds the point
at which an optimizer's result is evaluated. `optimizer_clocks` sets the counts
of its schedules.
"""

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

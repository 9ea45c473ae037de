"""SCIENCE: theory of averaged SGD, and measurements along a run.

`theory` has the bounds of the papers, `laws` exact results on simple problems,
and `least_squares` both for least squares. `noise`, `landscape`,
`averaged_direction` and `duality` measure gradients and curvature on the host.
"""

from prsgd_jax.science import (
  averaged_direction,
  duality,
  landscape,
  laws,
  least_squares,
  noise,
  theory,
)

__all__ = (
  'averaged_direction',
  'duality',
  'landscape',
  'laws',
  'least_squares',
  'noise',
  'theory',
)

"""FAULTS: replicas that crash, come late, are slow, or return NaN.

`inject` wraps an algorithm, so that faults happen at given or random steps of a
simulation. A fault is a value: `crash`, `late`, `slow` and `nan` at given steps
of given replicas, `random_crashes`, `random_delays` and `random_nans` by
chance. `dropped` counts the replicas that robust averages left out.
"""

from prsgd_jax.faults.events import (
  Fault,
  crash,
  late,
  nan,
  random_crashes,
  random_delays,
  random_nans,
  slow,
)
from prsgd_jax.faults.injection import inject
from prsgd_jax.stages.robust_averages import dropped

__all__ = (
  'Fault',
  'crash',
  'dropped',
  'inject',
  'late',
  'nan',
  'random_crashes',
  'random_delays',
  'random_nans',
  'slow',
)

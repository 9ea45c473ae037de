"""STAGES: the words in which algorithms are written."""

from prsgd_jax.stages.assignments import compute, evaluate, let, remember
from prsgd_jax.stages.averages import average_differences, gossip_differences
from prsgd_jax.stages.codecs import Codec, difference, feedback
from prsgd_jax.stages.combinators import algorithm, anyone, at, where
from prsgd_jax.stages.communication import sync
from prsgd_jax.stages.local import (
  gradient,
  local_update,
  outer_update,
  restart,
  step,
)
from prsgd_jax.stages.requirements import require
from prsgd_jax.stages.rules import first_steps, per_replica, reading, zeros

__all__ = (
  'Codec',
  'algorithm',
  'anyone',
  'at',
  'average_differences',
  'compute',
  'difference',
  'evaluate',
  'feedback',
  'first_steps',
  'gossip_differences',
  'gradient',
  'let',
  'local_update',
  'outer_update',
  'per_replica',
  'reading',
  'remember',
  'require',
  'restart',
  'step',
  'sync',
  'where',
  'zeros',
)

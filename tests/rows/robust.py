"""DiLoCo with averages of another kind than the mean."""

import functools

import jax
import numpy as np

import prsgd_jax as pr
from tests import harness, reference
from tests.rows.outer import MEMBERS, NESTEROV
from tests.rows.row import LOCAL_STEPS, SGD, N, Row, T, multiples

# With these some replica is left out and some average is clipped.
PENALTY = {
  'threshold': 0.5,
  'norm_rate': 0.3,
  'warmup_rounds': 1,
  'clip_norm': 0.3,
}
QUORUM = 5


def present():
  """Who is there at the end of each round of `decoupled_diloco`."""
  _, keys = harness.stage_keys(T, (2, 0), N)
  length = max(LOCAL_STEPS)
  ranks = [jax.random.permutation(key, N) for key in keys[length - 1 :: length]]
  return [np.flatnonzero(np.asarray(r) < QUORUM).tolist() for r in ranks]


def _decoupled(problem, **local):
  return reference.decoupled_diloco(
    problem,
    parts=MEMBERS,
    local_steps=LOCAL_STEPS,
    draws=present(),
    **NESTEROV,
    **local,
  )


def row(make, oracle, period):
  """The average moves the mean; all are equal after it."""
  sync = multiples(period)
  return Row(make, oracle, 'C', keeps_mean=False, full_sync=sync)


TABLE = {
  'edit': row(
    lambda: pr.edit(SGD, period=4, **PENALTY),
    functools.partial(
      reference.edit,
      period=4,
      parts=MEMBERS,
      outer_learning_rate=0.7,
      outer_momentum=0.8,
      **PENALTY,
    ),
    4,
  ),
  'decoupled_diloco': row(
    lambda: pr.decoupled_diloco(SGD, local_steps=LOCAL_STEPS, quorum=QUORUM),
    _decoupled,
    max(LOCAL_STEPS),
  ),
}

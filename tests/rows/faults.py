"""Algorithms in which replicas crash, come late or return NaN."""

import functools

import numpy as np

import prsgd_jax as pr
from tests import reference
from tests.rows.decentralized import DIRECTED
from tests.rows.outer import NESTEROV
from tests.rows.row import SGD, N, Row

# Replica 0 crashes, so that not the first is copied; 6 and 7 are a whole group.
CRASHES = ((0, 3, 7), (3, 5, None), (5, 10, 17), (6, 8, 12), (7, 6, 14))
DELAYS = ((1, 0, 9), (2, 11, None), (4, 12, 13))
ILL = ((1, 6, 7), (6, 9, 10))
AGGREGATES = {
  'finite': (pr.stages.average_finite(), reference.mean_of_finite),
  'median': (pr.stages.average_median(), reference.median),
  'trimmed': (
    pr.stages.average_trimmed(2),
    functools.partial(reference.trimmed_mean, trim=2),
  ),
  'geometric_median': (
    pr.stages.average_geometric_median(),
    reference.geometric_median,
  ),
  'krum': (
    pr.stages.average_krum(2),
    functools.partial(reference.krum, faulty=2),
  ),
  'multi_krum': (
    pr.stages.average_krum(1, selected=3),
    functools.partial(reference.krum, faulty=1, selected=3),
  ),
}


def events(crashes=CRASHES, delays=DELAYS, nan_grads=(), nan_params=(), *, n=N):
  """Faults of the library, from the faults of an oracle, in n replicas."""
  crashes, delays, nan_grads, nan_params = (
    [fault for fault in kind if fault[0] < n]
    for kind in (crashes, delays, nan_grads, nan_params)
  )
  made = [pr.faults.crash(r, at=a, until=end) for r, a, end in crashes]
  made += [pr.faults.late(r, at=a, until=end) for r, a, end in delays]
  for what, ill in (('grads', nan_grads), ('params', nan_params)):
    made += [pr.faults.nan(r, at=a, until=end, what=what) for r, a, end in ill]
  return made


def row(make, oracle, order='C', *, rejoin='peer', arguments=None, **faults):
  """An algorithm and its oracle, with the same faults."""
  faults = {'crashes': CRASHES, 'delays': DELAYS, **faults}
  return Row(
    functools.partial(_inject, make, rejoin, faults),
    functools.partial(oracle, rejoin=rejoin, **(arguments or {}), **faults),
    order,
    keeps_mean=False,
  )


def _inject(make, rejoin, faults, n=N):
  """The algorithm with the faults of n replicas."""
  return pr.faults.inject(make(), *events(**faults, n=n), rejoin=rejoin)


def _k_avg(average=None, rejoin='peer', **arguments):
  given = {} if average is None else {'average': average}
  faults = {n: arguments.pop(n) for n in ('nan_grads',) if n in arguments}
  return row(
    lambda: pr.k_avg(SGD, period=3, **given),
    reference.k_avg_with_faults,
    rejoin=rejoin,
    arguments={'period': 3, **arguments},
    **faults,
  )


TABLE = {
  'faults_none': row(
    lambda: pr.k_avg(SGD, period=3),
    reference.k_avg_with_faults,
    arguments={'period': 3},
    crashes=(),
    delays=(),
  ),
  'faults_k_avg': _k_avg(),
  'faults_k_avg_stale': _k_avg(rejoin='stale'),
  'faults_k_avg_groups': _k_avg(
    pr.sync(pr.mixing.group_mean(2)),
    groups=[[i, i + 1] for i in range(0, N, 2)],
  ),
  'faults_k_avg_buffers': _k_avg(
    pr.stages.average_finite(('params', 'opt_state')),
    average_buffers=True,
    aggregate=reference.mean_of_finite,
    nan_grads=ILL,
  ),
  'faults_k_avg_nan': row(
    lambda: pr.k_avg(SGD, period=3),
    reference.k_avg_with_faults,
    arguments={'period': 3},
    nan_params=((2, 13, 14),),
  ),
  'faults_d_psgd': row(
    lambda: pr.d_psgd(SGD, mixing=pr.graphs.ring()),
    reference.d_psgd_with_faults,
    'A',
    arguments={'weights': reference.ring_weights(N)},
  ),
  'faults_sgp': row(
    lambda: pr.sgp(SGD, mixing=pr.graphs.graph(DIRECTED)),
    reference.sgp_with_faults,
    rejoin='stale',
    arguments={'weights': DIRECTED},
  ),
  'faults_diloco': row(
    lambda: pr.diloco(SGD, period=4),
    reference.diloco_with_faults,
    arguments={'period': 4, **NESTEROV},
  ),
  **{
    f'faults_{name}': _k_avg(average, aggregate=aggregate, nan_grads=ILL)
    for name, (average, aggregate) in AGGREGATES.items()
  },
}
assert np.shape(DIRECTED) == (N, N)

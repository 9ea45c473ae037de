"""Averages in groups more often than between them."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.row import MOMENTUM, PLAIN, SGD, N, Row, multiples


def _hier(k1, k2, s, **row):
  return Row(
    lambda: pr.hier_avg(SGD, local_period=k1, global_period=k2, group_size=s),
    functools.partial(
      reference.hier_avg, local_period=k1, global_period=k2, group_size=s
    ),
    'C',
    full_sync=multiples(k1 if s == N else k2),
    **row,
  )


def _multi(periods, group_sizes, full_sync=(), **row):
  return Row(
    lambda: pr.multi_level_avg(SGD, periods=periods, group_sizes=group_sizes),
    functools.partial(
      reference.multi_level_avg,
      periods=periods,
      group_sizes=(*group_sizes, N)[: len(periods)],
    ),
    'C',
    full_sync=full_sync,
    **row,
  )


def _local_sgd(tx=SGD, momentum=MOMENTUM, *, full_sync, **rest):
  every_layout = rest.pop('every_layout', True)
  return Row(
    lambda: pr.hierarchical_local_sgd(tx, **rest),
    functools.partial(reference.hierarchical_local_sgd, **rest),
    'C',
    momentum=momentum,
    full_sync=full_sync,
    every_layout=every_layout,
  )


TABLE = {
  'hier_avg': _hier(2, 8, 4),
  'hier_avg_pairs': _hier(4, 8, 2, every_layout=False),
  'hier_avg_groups_of_1': _hier(2, 4, 1, every_layout=False),
  'hier_avg_equal_periods': _hier(4, 4, 2, every_layout=False),
  'hier_avg_one_group': _hier(2, 8, N, every_layout=False),
  'hier_avg_always': _hier(1, 1, 2, every_layout=False),
  'multi_level': _multi((2, 4, 12), (2, 4), multiples(12)),
  'multi_level_hier_avg': _multi(
    (2, 8), (4,), multiples(8), every_layout=False
  ),
  'multi_level_k_avg': _multi((4,), (), multiples(4), every_layout=False),
  'multi_level_sizes_of_1': _multi(
    (1, 2, 4), (1, 1), multiples(4), every_layout=False
  ),
  'multi_level_islands': _multi((2, 6), (2, 4), every_layout=False),
  'hierarchical_local_sgd': _local_sgd(
    period=3,
    block_steps=2,
    group_size=4,
    switch_step=6,
    full_sync=(1, 2, 3, 4, 5, 6, 12, 18, 24),
  ),
  'hierarchical_local_sgd_hier_avg': _local_sgd(
    period=2,
    block_steps=4,
    group_size=4,
    full_sync=multiples(8),
    every_layout=False,
  ),
  'hierarchical_local_sgd_plain': _local_sgd(
    PLAIN,
    0.0,
    period=1,
    block_steps=4,
    group_size=2,
    full_sync=multiples(4),
    every_layout=False,
  ),
}

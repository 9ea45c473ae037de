"""Averages in groups more often than between them."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.row import SGD, N, Row, multiples


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


TABLE = {
  'hier_avg': _hier(2, 8, 4),
  'hier_avg_pairs': _hier(4, 8, 2, every_layout=False),
  'hier_avg_groups_of_1': _hier(2, 4, 1, every_layout=False),
  'hier_avg_equal_periods': _hier(4, 4, 2, every_layout=False),
  'hier_avg_one_group': _hier(2, 8, N, every_layout=False),
  'hier_avg_always': _hier(1, 1, 2, every_layout=False),
}

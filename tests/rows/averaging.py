"""Averages of all replicas."""

import functools

import prsgd_jax as pr
from tests import reference
from tests.rows.row import LOCAL_STEPS, PLAIN, SGD, Row, T, multiples

AVERAGED = ('params', 'opt_state')


def _k_avg(period, **row):
  return Row(
    lambda: pr.k_avg(SGD, period=period),
    functools.partial(reference.k_avg, period=period),
    'C',
    full_sync=multiples(period),
    **row,
  )


def _heterogeneous():
  return pr.chain(
    pr.while_active(LOCAL_STEPS, pr.gradient(), pr.local_update(SGD)),
    pr.sync(pr.mean(), when=pr.every(max(LOCAL_STEPS))),
  )


def _post_local():
  return pr.chain(
    pr.gradient(),
    pr.local_update(SGD),
    pr.sync(pr.mean(), when=pr.post_local(5, period=4)),
  )


TABLE = {
  'ssgd': Row(
    lambda: pr.ssgd(SGD), reference.ssgd, 'S', full_sync=multiples(1)
  ),
  'ssgd_plain': Row(
    lambda: pr.ssgd(PLAIN),
    reference.ssgd,
    'S',
    momentum=0.0,
    full_sync=multiples(1),
    every_layout=False,
  ),
  'one_shot': Row(
    lambda: pr.one_shot_averaging(SGD, num_steps=T),
    reference.one_shot_averaging,
    'C',
    full_sync=(T,),
  ),
  'pr_sgd': Row(
    lambda: pr.pr_sgd(SGD, period=4),
    functools.partial(reference.pr_sgd, period=4),
    'A',
    full_sync=multiples(4),
  ),
  'pr_sgd_plain': Row(
    lambda: pr.pr_sgd(PLAIN, period=4),
    functools.partial(reference.pr_sgd, period=4),
    'A',
    momentum=0.0,
    full_sync=multiples(4),
    every_layout=False,
  ),
  'pr_sgd_1': Row(
    lambda: pr.pr_sgd(SGD, period=1),
    functools.partial(reference.pr_sgd, period=1),
    'A',
    full_sync=multiples(1),
    every_layout=False,
  ),
  'pr_sgd_averaged_buffers': Row(
    lambda: pr.pr_sgd(SGD, period=4, what=AVERAGED),
    functools.partial(reference.pr_sgd, period=4, buffers='average'),
    'A',
    full_sync=multiples(4),
  ),
  'pr_sgd_reset_buffers': Row(
    lambda: pr.pr_sgd(SGD, period=4, reset=pr.every(4)),
    functools.partial(reference.pr_sgd, period=4, buffers='reset'),
    'A',
    full_sync=multiples(4),
    keeps_mean=False,  # the buffers are dropped
  ),
  'k_avg': _k_avg(5),  # does not divide T
  'k_avg_1': _k_avg(1, every_layout=False),
  'k_avg_2': _k_avg(2, every_layout=False),
  'k_avg_4': _k_avg(4, every_layout=False),
  'k_avg_8': _k_avg(8, every_layout=False),
  'k_avg_averaged_buffers': Row(
    lambda: pr.k_avg(SGD, period=4, what=AVERAGED),
    functools.partial(reference.k_avg, period=4, buffers='average'),
    'C',
    full_sync=multiples(4),
  ),
  'k_avg_reset_buffers': Row(
    lambda: pr.k_avg(SGD, period=4, reset=pr.every(4)),
    functools.partial(reference.k_avg, period=4, buffers='reset'),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the buffers are dropped
  ),
  'heterogeneous': Row(
    _heterogeneous,
    functools.partial(reference.pr_sgd_heterogeneous, local_steps=LOCAL_STEPS),
    'C',
    full_sync=multiples(8),
    keeps_mean=False,  # some sit out
  ),
  'post_local': Row(
    _post_local,
    functools.partial(reference.post_local_sgd, switch_step=5, period=4),
    'C',
    full_sync=(1, 2, 3, 4, 5, 9, 13, 17, 21),
  ),
}

"""Dion: orthonormal updates of low rank."""

import functools

import jax
import numpy as np

import prsgd_jax as pr
from tests import reference
from tests.rows.row import PLAIN, Row, multiples

MU = 0.8


def layers(dim):
  """x = (w, b) of `harness.to_tree`, in two layers."""
  return ((0, (dim // 2 - 1, 2)), (dim - 2, (2,)))


def start(dim, rank):
  """The first Q of the layers, which the library draws from a fixed seed."""
  with jax.enable_x64(True):
    shape = (dim // 2 - 1, min(rank, dim // 2 - 1, 2))
    key = jax.random.key(0, impl='threefry2x32')
    return np.asarray(jax.random.normal(key, shape, np.float64)), None


def _dion(rank, **row):
  return Row(
    lambda: pr.dion(PLAIN, rank=rank, momentum=MU),
    functools.partial(
      reference.dion, layers=layers(6), start=start(6, rank), rate=MU
    ),
    'S',
    momentum=0.0,
    full_sync=multiples(1),
    keeps_mean=False,
    **row,
  )


TABLE = {'dion': _dion(1), 'dion_full_rank': _dion(2, every_layout=False)}

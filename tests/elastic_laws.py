"""What must hold of an algorithm when its number of replicas has changed.

The laws compare two checkpoints in NumPy, before and after a change. Each is an
equation of the algorithm's paper; all others follow from the general law, that
registers are averaged and handed out.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

import prsgd_jax as pr
from prsgd_jax.base import Work
from prsgd_jax.engine import resizing, train_state
from tests import elastic_rows, harness
from tests.rows import TABLE

# Sums of at most 8 float64 numbers near 1.
ATOL = 1e-12
# Corrections carry the rounding errors of all steps.
DRIFT = 1e-10


class Resized(NamedTuple):
  """A change from n to m replicas; arrays by name, `[n, ...]`, `[m, ...]`."""

  name: str
  algorithm: pr.base.ReplicaTransformation
  before: dict
  after: dict
  n: int
  m: int

  def was(self, register):
    return vector(self.before, register)

  def now(self, register):
    return vector(self.after, register)

  @property
  def step(self):
    return int(self.after['step'])


def resized(name, saved, n, m, like=None, **options):
  """The change of a row's checkpoint `saved` from n to m replicas.

  Raises:
    ValueError: if the row, or its algorithm, refuses m.
  """
  algorithm = elastic_rows.make(name, m)
  like = types_of(algorithm, m) if like is None else like
  after = resizing.resize(algorithm, like, saved, m, **options)
  return Resized(name, algorithm, saved, after, n, m)


def types_of(algorithm, n):
  """The types of a new state on one device, without making it."""
  point = harness.to_tree(np.zeros((n, 6)))
  made = jax.eval_shape(
    functools.partial(train_state.create_block, algorithm, n, 0), (point, ())
  )
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), made
  )


def vector(leaves, register):
  """float[N, d], the leaves of a register, such as 'scaffold.c'."""
  fields = ('params', 'opt_state', 'algorithm_state')
  start = register if register.startswith(fields) else f'registers.{register}'
  found = [
    np.asarray(x).reshape((len(x), -1))
    for name, x in leaves.items()
    if name == start or name.startswith(f'{start}.')
  ]
  return np.concatenate(found, axis=1)


def close(actual, desired, atol=ATOL):
  np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


def check(change):
  """Assert the general law, and the laws of the algorithm."""
  check_averages(change)
  for family, law in LAWS.items():
    if change.name.startswith(family):
      law(change)


def is_declared(change, name):
  declared = [
    n if n in ('params', 'opt_state') else f'registers.{n}'
    for n in change.algorithm.names.resized
  ]
  return any(name == d or name.startswith(f'{d}.') for d in declared)


def check_averages(change):
  """All that is not declared is the mean, and equal on all replicas."""
  # Those that a fault stopped have no part in an average.
  alive = change.before.get('algorithm_state.0', np.ones(change.n, bool))
  alive = alive if alive.dtype == bool else np.ones(change.n, bool)
  weight = alive * change.before.get('registers.weight', np.ones(change.n))
  for name, x in change.after.items():
    if name in ('step', 'key') or name not in change.before:
      continue
    # A sum of messages follows from the known values, see `known_copies`.
    if is_declared(change, name) or '.memory.mixed.' in name:
      continue
    old = change.before[name]
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape), name)
    if (old == old[:1]).all():
      np.testing.assert_array_equal(x[0], old[0], name)
    elif old.dtype.kind == 'f':
      plain = name == 'registers.weight' or name.startswith('algorithm_state')
      share = alive * 1.0 if plain else weight
      close(x[0], np.tensordot(share / share.sum(), old, 1))


def sums_to_zero(register):
  def law(change):
    close(change.was(register).sum(axis=0), 0, DRIFT)
    close(change.now(register).sum(axis=0), 0, DRIFT)

  return law


def mean_of_controls(change):
  for at in (change.was, change.now):
    c = at('scaffold.c')
    close(at('scaffold.ci').mean(axis=0), c[0], DRIFT)
    np.testing.assert_array_equal(c, np.broadcast_to(c[:1], c.shape))


def push_sum(change):
  """The weights sum to N, and the mass sum_i w_i z_i / N is kept."""
  mass = []
  for at, size in ((change.was, change.n), (change.now, change.m)):
    w = at('weight')
    close(w.sum(), size)
    mass.append((w * at('params')).sum(axis=0) / size)
  close(*mass)


def ring(n):
  return pr.graphs.ring().matrices(n)[0]


def known_copies(known, mixed):
  """Each replica's sum is that of what its neighbors' copies hold."""

  def law(change):
    close(change.was(mixed), ring(change.n) @ change.was(known))
    close(change.now(mixed), ring(change.m) @ change.now(known))

  return law


def _choco(change):
  (known,) = {
    n.rpartition('.')[0] for n in change.before if '.memory.known.' in n
  }
  mixed = known.replace('.known', '.mixed')
  # `choco_sgd_uncompressed` has an equal ring.
  known_copies(known, mixed)(change)


def relayed(change):
  """All models on the way to a replica, with its own, are all models."""
  colors = [n for n in change.algorithm.names.resized if 'heard' in n]
  heard = sum(change.now(c) for c in colors) if colors else 0
  xbar = change.now('params')[0]
  assert change.step >= change.m, 'every model has arrived'
  close(heard + change.now('params'), change.m * np.tile(xbar, (change.m, 1)))


def of_other_peers(change):
  """others_i = (N - 1) / N of the mean difference, if there were peers."""
  mean = change.was('eager_diloco.others').mean(axis=0)
  part = (1 - 1 / change.m) / (1 - 1 / change.n) if change.n > 1 else 0
  close(change.now('eager_diloco.others'), np.tile(part * mean, (change.m, 1)))


def around_the_center(change):
  (center,) = {n for n in change.algorithm.names.declares if 'center' in n}
  stayed = min(change.n, change.m)
  new = change.now('params')
  np.testing.assert_array_equal(new[:stayed], change.was('params')[:stayed])
  np.testing.assert_array_equal(new[stayed:], change.now(center)[stayed:])
  np.testing.assert_array_equal(change.now(center)[0], change.was(center)[0])


def kept_velocity(change):
  around_the_center(change)
  stayed = min(change.n, change.m)
  v = change.now('eamsgd.v')
  np.testing.assert_array_equal(v[:stayed], change.was('eamsgd.v')[:stayed])
  assert not v[stayed:].any()


def kept(*registers):
  """Those that stay keep their own; newcomers copy them in turn."""

  def law(change):
    origin = np.arange(change.m) % change.n
    for register in registers:
      np.testing.assert_array_equal(
        change.now(register), change.was(register)[origin]
      )

  return law


def same_output(change):
  kept('params', 'opt_state')(change)
  tail = 'average_iterates.tail'
  close(change.now(tail).mean(axis=0), change.was(tail).mean(axis=0))


def drawn_clients(change):
  """Those with a weight are the clients that the ledger counts."""
  if 'weight' not in change.algorithm.names.declares:
    return  # all take part, and equally
  weight = change.now('weight')[:, 0]
  shapes = _shapes(change)
  (work,) = [
    entry
    for entry in change.algorithm.cost(
      shapes, change.m, np.array([change.step])
    )
    if isinstance(entry, Work)
  ]
  np.testing.assert_array_equal(weight > 0, work.active[0])


def _shapes(change):
  point = np.zeros(2), np.zeros((2, 2))
  params = dict(zip(('b', 'w'), point, strict=True))
  return train_state.initial_shapes(change.algorithm, change.m, params)


def orthonormal_bases(change):
  kept('opt_state')(change)
  bases = [x for n, x in change.after.items() if n.endswith('.basis')]
  assert bases
  for R in bases:
    gram = R @ R.swapaxes(-1, -2)
    close(gram, np.broadcast_to(np.eye(R.shape[1]), gram.shape))


def flags_agree(change):
  rounds = [x for n, x in change.after.items() if n.endswith('.rounds')]
  assert rounds
  for x in rounds:
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))


# First letters of the names of rows -> the law.
LAWS = {
  'gradient_tracking': sums_to_zero('gradient_tracking.c'),
  'd2': sums_to_zero('d2.c'),
  'extra': sums_to_zero('extra.c'),
  'k_gt': sums_to_zero('k_gt.c'),
  'scaffold': mean_of_controls,
  'sgp': push_sum,
  'slowmo_sgp': push_sum,
  'diloco_sgp': push_sum,
  'choco_sgd': _choco,
  'sparq_sgd': known_copies('sparq_sgd.known', 'sparq_sgd.mixed'),
  'relay_sgd': relayed,
  'eager_diloco': of_other_peers,
  'easgd': around_the_center,
  'eamsgd': kept_velocity,
  'edit': kept('edit.average_penalized.average', 'edit.average_penalized.var'),
  'one_shot': kept('params', 'opt_state'),
  'tail_averaging': same_output,
  'fedavg': drawn_clients,
  'fedprox': drawn_clients,
  'fedyogi': drawn_clients,
  'natural_gradient': orthonormal_bases,
  'dynamic': flags_agree,
}
assert all(any(n.startswith(f) for n in TABLE) for f in LAWS)

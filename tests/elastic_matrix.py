"""Restore every algorithm from N replicas on D devices onto N' on D'.

    python -m tests.elastic_matrix [--quick] [ROW ...]

For each row of the law table, N and N' in {1, 2, 4, 8} and D, D' in {1, 2, 4,
8} that divide them: the state in the middle of a round is saved and restored
through files. Then the laws of `elastic_laws` must hold, what is restored must
not depend on D or D', and three more steps must have finite losses. A row that
does not fit a number of replicas must say so in one line.

--quick takes the smallest and the largest D of each N, and only the change
itself, without files. Eight fake devices in one process suffice.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

if __name__ == '__main__':  # before the rows are imported, which make arrays
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)

import prsgd_jax as pr
from prsgd_jax.engine import checkpoint_leaves, checkpoints, resizing
from tests import elastic_laws, elastic_rows, harness, reference
from tests.rows import TABLE

SAVED_AT = 11  # inside every period
MORE = 3
PROBLEMS = {
  n: reference.make_problem(n, SAVED_AT + MORE) for n in elastic_rows.SIZES
}
# A mean of 8 on other devices adds in another order, in float64.
ATOL = 1e-11


class Saved(NamedTuple):
  """A row with n replicas on d devices.

  Attributes:
    run: the compiled algorithm.
    like: a new state, to restore into.
    leaves: what was saved, by name.
  """

  run: harness.Engine
  like: pr.engine.TrainState
  leaves: dict


class Outcome(NamedTuple):
  """The changes of a row that were made, and the refusals by N."""

  changes: int
  refusals: dict[int, str]


def devices_of(n, quick):
  fitting = [d for d in elastic_rows.SIZES if n % d == 0]
  return sorted({fitting[0], fitting[-1]}) if quick else fitting


def advance(name, run, state, n, steps):
  # Faults may make a replica NaN, and the mean at a change of N all of them.
  may_be_nan = name.startswith('faults_')
  for t in steps:
    batch = harness.problem_batches(run.mesh, PROBLEMS[n], [t])
    state, metrics = run.train_steps(state, batch)
    loss = np.asarray(metrics['loss'])
    assert may_be_nan or np.isfinite(loss).all(), f'step {t}: {loss}'
  return state


def save(name, n, num_devices, directory):
  """Run a row to the middle of a round and save it; ValueError if n is odd."""
  run = harness.make_engine(elastic_rows.make(name, n), n, num_devices)

  def new():
    start = harness.to_tree(PROBLEMS[n].start)
    return pr.engine.create_train_state(run.mesh, run.algorithm, start)

  state = advance(name, run, new(), n, range(SAVED_AT))
  if directory is not None:
    checkpoints.save(directory, run.mesh, state, {})
  leaves = checkpoint_leaves.to_host(run.mesh, state)
  return Saved(run, new(), leaves)


def change(name, old, new, directory, trains):
  """Restore one onto the other, check the laws, and train on if `trains`."""
  n, m = old.run.mesh.num_replicas, new.run.mesh.num_replicas
  algorithm, mesh = new.run.algorithm, new.run.mesh

  def resize(leaves):
    return resizing.resize(algorithm, new.like, leaves, m)

  if directory is None:
    leaves = resize(old.leaves)
    state = checkpoint_leaves.to_devices(mesh, new.like, leaves)
  else:
    state = checkpoints.restore(directory, mesh, new.like, {}, resize=resize)
  after = checkpoint_leaves.to_host(mesh, state)
  if n != m:
    changed = elastic_laws.Resized(name, algorithm, old.leaves, after, n, m)
    elastic_laws.check(changed)
  if trains:
    advance(name, new.run, state, m, range(SAVED_AT, SAVED_AT + MORE))
  return after


def check_row(name, quick, root):
  """Make all changes of a row.

  Returns:
    The `Outcome`.
  """
  made, refusals = {}, {}
  for n in elastic_rows.SIZES:
    for d in devices_of(n, quick):
      try:
        made[n, d] = save(name, n, d, _place(root, n, d))
      except ValueError as refusal:
        assert '\n' not in str(refusal), refusal
        refusals[n] = str(refusal)
  known, trained, changes = {}, set(), 0
  for (n, d), old in made.items():
    for (m, e), new in made.items():
      # Once for each D', because what is restored does not depend on D.
      trains = (n, m, e) not in trained
      trained.add((n, m, e))
      after = change(name, old, new, _place(root, n, d), trains)
      changes += 1
      first = known.setdefault((n, m), after)
      for leaf, x in after.items():
        np.testing.assert_allclose(
          x.astype(np.float64), first[leaf].astype(np.float64), rtol=0,
          atol=ATOL, err_msg=f'{leaf}, {n} on {d} -> {m}',
        )  # fmt: skip
  assert changes > 1 or refusals, 'nothing was changed'
  return Outcome(changes, refusals)


def _place(root, n, d):
  return None if root is None else pathlib.Path(root) / f'{n}_{d}'


def main(arguments=None):
  """Print a line for each row; return the number of rows that failed."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('rows', nargs='*', help='rows of the table; default all')
  parser.add_argument('--quick', action='store_true', help='fewer D, no files')
  flags = parser.parse_args(arguments)
  failed = 0
  for name in flags.rows or TABLE:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as root, jax.enable_x64(True):
      try:
        found = check_row(name, flags.quick, None if flags.quick else root)
      except (AssertionError, ValueError) as error:
        failed += 1
        print(f'{name}: FAILED: {error}', flush=True)
        continue
    seconds = time.monotonic() - begun
    print(f'{name}: {found.changes} changes, {seconds:.1f} s', flush=True)
    for n, refusal in found.refusals.items():
      print(f'  refuses N = {n}: {refusal}', flush=True)
    jax.clear_caches()  # because a thousand programs fill the memory
  print(f'{failed} rows failed')
  return failed


if __name__ == '__main__':
  sys.exit(min(main(), 1))

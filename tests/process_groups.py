"""Groups of processes that run rows of the law table, and their comparison.

One group runs many rows, because starting it and compiling take the time.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
WORKER = pathlib.Path(__file__).with_name('processes_worker.py')
PMAP, SHARD_MAP = 'pmap', 'shard_map'

# Arrays that no step has changed, or that a process only counts, are equal bit
# for bit on every layout. Means over the replicas are sums. The others are
# equal bit for bit if the algorithm sends no sums.
ALWAYS, SUMS = ('start', 'ledger'), ('mean',)
# Sums of 4 terms in another order, over 24 steps of values near 1, in float64.
# States that are float32 by choice have its rounding.
TOLERANCES = {'float64': 1e-12, 'float32': 1e-6}


class Layout(NamedTuple):
  """A number of processes, and the devices of each."""

  processes: int
  devices: int

  def __str__(self):
    return f'{self.processes} x {self.devices}'


class GroupError(Exception):
  """A process of a group failed, or the group took too long."""


def run(layout, directory, *, pmap=(), shard_map=(), seconds, options=()):
  """Run rows in a group of processes, which write to a directory.

  Args:
    layout: processes and devices.
    directory: made if missing.
    pmap, shard_map: the rows that are mapped over the devices in this way.
    seconds: how long the group may take.
    options: further arguments of the worker.

  Raises:
    GroupError: with the last line of the process that failed first, or if the
      group took too long. No process is left behind.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  arguments = [
    sys.executable, str(WORKER), f'--processes={layout.processes}',
    f'--devices={layout.devices}', f'--port={free_port()}',
    f'--output={directory}', f'--pmap={",".join(pmap)}',
    f'--shard_map={",".join(shard_map)}', *options,
  ]  # fmt: skip
  running = []
  try:
    for process in range(layout.processes):
      with (directory / f'log.{process}').open('w') as log:
        running.append(
          subprocess.Popen(
            [*arguments, f'--process={process}'],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
          )
        )
    wait(layout, running, directory, time.monotonic() + seconds)
  finally:
    for process in running:
      process.kill()
      process.wait()


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def wait(layout, running, directory, deadline):
  codes = [None]
  while None in codes:
    codes = [process.poll() for process in running]
    for index, code in enumerate(codes):
      if code:
        raise GroupError(f'{layout}: process {index}: {said(directory, index)}')
    if time.monotonic() > deadline:
      last = [said(directory, index) for index in range(len(running))]
      raise GroupError(f'{layout}: still running at the limit, after {last}')
    time.sleep(0.05)


def said(directory, index):
  """The last line of a process, which of an exception is its message."""
  lines = (directory / f'log.{index}').read_text().strip().splitlines()
  return lines[-1] if lines else 'no word'


def observed(directory, row, map_by, process=0):
  """What a process read of a row: name -> array."""
  path = pathlib.Path(directory) / map_by / f'{row}.{process}.npz'
  with np.load(path) as arrays:
    return dict(arrays)


def difference(one, other, exact=None):
  """The first difference of two observations, as a text; '' for none.

  Args:
    one, other: observations.
    exact: whether arrays that depend on the algorithm are compared bit for bit.
      None compares everything so.
  """
  one, other = ({**x, 'exact': None} for x in (one, other))
  if sorted(one) != sorted(other):
    return f'only one has {sorted({*one} ^ {*other})}'
  for name, x in one.items():
    kind, y = name.partition('/')[0], other[name]
    bits = exact is None or kind in ALWAYS or (exact and kind not in SUMS)
    if x is not None and not is_equal(x, y, bits):
      error = np.abs(np.asarray(x, float) - np.asarray(y, float)).max()
      return f'{name} differs by {error:.1e}'
  return ''


def is_equal(x, y, bits):
  if x.shape != y.shape or x.dtype != y.dtype:
    return False
  tolerance = 0.0 if bits else TOLERANCES.get(x.dtype.name, 0.0)
  if not tolerance:
    return x.tobytes() == y.tobytes()
  return np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def within(layout, directory, row, map_by):
  """Where the processes of a group read different things, as lines."""
  first = observed(directory, row, map_by)
  others = {
    process: difference(first, observed(directory, row, map_by, process))
    for process in range(1, layout.processes)
  }
  return [
    f'{row} by {map_by} on {layout}, process {process}: {text}'
    for process, text in others.items()
    if text
  ]


def against_one_process(layout, directory, row, map_by, whole):
  """Where a layout differs from one process with all devices, as lines."""
  one, other = whole[row], observed(directory, row, map_by)
  text = difference(one, other, bool(one['exact']))
  return [f'{row} by {map_by} on {layout}: {text}'] if text else []


def between_maps(layout, directory, row):
  """Where the bits depend on the function that maps, as lines."""
  text = difference(*(observed(directory, row, x) for x in (PMAP, SHARD_MAP)))
  return [f'{row} on {layout}, {PMAP} and {SHARD_MAP}: {text}'] if text else []

"""Cases of `faults.py`: a disk that is full or cannot be written."""

import contextlib
import os
import resource
import shutil
import subprocess

from experiments import train
from experiments.running.process import exit_codes
from experiments.running.records import records
from tests import binaries
from tests.fault_runs import (
  STEPS,
  Fault,
  ended,
  expect_equal,
  expect_one_line,
  newest,
)

# Room for some checkpoints of 400 KB, but not for those of a run.
SMALL_DISK = 3 * 2**20


def call_train(*arguments):
  """train.py in this process, because a start costs seconds."""
  return binaries.call(train, *arguments)


def disk(bench, given):
  """A full disk: one line, and the older checkpoints are whole."""
  del given
  workdir = bench.root / 'full'
  with _small_disk(bench.root / 'small') as mount:
    if mount is None:
      return _file_limit(bench, workdir)
    inside = mount / 'run'
    outcome = bench.run(inside, '--keep=all')
    expect_one_line(outcome, exit_codes.ERROR, line=' is complete; free some')
    step = newest(inside)
    shutil.copytree(inside, workdir)
    # On the full disk again, because nothing was freed.
    outcome = bench.run(inside, '--keep=all')
    expect_one_line(outcome, exit_codes.ERROR, line='')
    if newest(inside) < step:
      raise Fault(f'the checkpoint of step {step} is gone')
  bench.finish(workdir, '--keep=3')
  expect_equal(bench.whole(), workdir, STEPS)
  return f'a tmpfs of {SMALL_DISK >> 20} MiB was full after step {step}'


def _file_limit(bench, workdir):
  """Without root: no file may become larger than a limit."""
  bench.finish(workdir, steps=40)
  command = bench.command(workdir, f'--num_steps={STEPS}')
  limit = (20_000, resource.RLIM_INFINITY)
  process = bench.start(
    command,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
  )
  expect_one_line(ended(process), exit_codes.ERROR, line='is complete')
  bench.finish(workdir, f'--num_steps={STEPS}')
  expect_equal(bench.whole(), workdir, STEPS)
  return 'files were limited to 20 kB (a small disk requires root)'


def read_only(bench, given):
  """A directory that cannot be written: one line, and the run is whole."""
  del given
  with _small_disk(bench.root / 'small') as mount:
    if mount is None:
      return 'skipped: it requires root'
    workdir = mount / 'run'
    bench.finish(workdir, steps=40)
    before = sorted(p.name for p in (workdir / records.CHECKPOINTS).iterdir())
    _mount('-o', 'remount,ro', str(mount))
    outcome = bench.run(workdir, '--num_steps=80')
    expect_one_line(outcome, exit_codes.ERROR, line='cannot be written (Read-')
    _mount('-o', 'remount,rw', str(mount))
    after = sorted(p.name for p in (workdir / records.CHECKPOINTS).iterdir())
    if before != after:
      raise Fault(f'checkpoints were {before}, are {after}')
    bench.finish(workdir, '--num_steps=80')
  return 'one line, and it resumed when the disk could be written'


@contextlib.contextmanager
def _small_disk(path):
  """A file system in memory; None without root."""
  if os.geteuid() != 0:
    yield None
    return
  path.mkdir(exist_ok=True)
  try:
    _mount('-t', 'tmpfs', '-o', f'size={SMALL_DISK}', 'tmpfs', str(path))
  except subprocess.CalledProcessError:
    yield None
    return
  try:
    yield path
  finally:
    subprocess.run(['umount', str(path)], check=True)


def _mount(*arguments):
  subprocess.run(['mount', *arguments], check=True, capture_output=True)

"""Runs that `tests/faults.py` disturbs, and the comparison of their results."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments.running.records import records
from prsgd_jax.engine import checkpoint_arrays, checkpoint_files, checkpoints

HERE = pathlib.Path(__file__).parent
TRAIN = HERE.parent / 'experiments' / 'train.py'
# Seconds after which a process hangs, which is a fault, too.
LIMIT = 300
STEPS = 160
SMALL = (
  '--algorithm=pr_sgd', '--period=4', '--num_replicas=4', '--num_devices=2',
  '--batch_size=4', '--log_every=4', '--checkpoint_every=8', '--eval_every=40',
  '--noprogress',
)  # fmt: skip


class Fault(AssertionError):
  """A run that did not end as it must; the message is one line."""


class Bench:
  """A directory with the data and the programs that the runs share.

  Args:
    root: empty directory.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(HERE.parent),
      # Compiled once, because the same run starts a hundred times.
      'JAX_COMPILATION_CACHE_DIR': str(root / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      # Because the runtime warns of its own cache, in lines of kilobytes.
      'TF_CPP_MIN_LOG_LEVEL': '3',
    }

  def command(self, workdir, *more, steps=STEPS, program=TRAIN):
    """The command that starts or resumes a run."""
    start = [sys.executable, str(program)]
    if (workdir / records.CONFIG).exists():
      return [*start, '--resume', f'--workdir={workdir}', *more]
    data = f'--data_dir={self.root / "data"}'
    flags = [*SMALL, f'--num_steps={steps}', data, f'--workdir={workdir}']
    return [*start, *flags, *more]

  def start(self, command, environment=(), **keywords):
    # A file, because a process waits when nobody reads a pipe.
    log = tempfile.TemporaryFile('w+')  # noqa: SIM115
    process = subprocess.Popen(
      command,
      env={**self.environment, **dict(environment)},
      stdout=subprocess.DEVNULL,
      stderr=log,
      **keywords,
    )
    process.log = log
    return process

  def run(self, workdir, *more, **keywords):
    """A run to its end; returns its exit code and the lines on stderr."""
    return ended(self.start(self.command(workdir, *more, **keywords)))

  def finish(self, workdir, *more, **keywords):
    """Run or resume to the end, which must succeed."""
    code, lines = self.run(workdir, *more, **keywords)
    if code:
      raise Fault(f'exit code {code} after the fault: {lines[-1:]}')

  def whole(self, steps=STEPS):
    """The run that nothing disturbed; it is made once."""
    workdir = self.root / f'whole-{steps}'
    if not (workdir / records.SUMMARY).exists():
      self.finish(workdir, steps=steps)
    return workdir


def ended(process):
  """The exit code of a process and its lines on stderr."""
  try:
    process.wait(timeout=LIMIT)
  except subprocess.TimeoutExpired as error:
    kill(process)
    raise Fault(f'it hung for {LIMIT} s') from error
  process.log.seek(0)
  return process.returncode, process.log.read().splitlines()


def kill(process):
  """End a process that a failed case left behind."""
  if process.poll() is None:
    process.kill()
  process.wait()


@contextlib.contextmanager
def killed_after(*processes):
  """End the processes after the block, however it ends."""
  try:
    yield
  finally:
    for process in processes:
      kill(process)


def wait_for(condition, process=None, seconds=LIMIT):
  """Poll until a condition holds or the process ends; return if it holds."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if condition():
      return True
    if process is not None and process.poll() is not None:
      return False
    time.sleep(0.002)
  raise Fault(f'nothing happened for {seconds} s')


def newest(workdir):
  """The step of the newest checkpoint, 0 if there is none."""
  return checkpoints.latest_step(workdir / records.CHECKPOINTS) or 0


def partial(workdir):
  """Whether a checkpoint is being written."""
  return any((workdir / records.CHECKPOINTS).glob('.*.partial'))


def expect(outcome, code, *, line):
  """Check an exit code, and that the last line on stderr has some words."""
  got, lines = outcome
  last = lines[-1] if lines else ''
  if got != code or line not in last:
    raise Fault(f'expected code {code} and {line!r}, got {got} and {last!r}')


def expect_one_line(outcome, code, *, line):
  """As `expect`, and there must be no other line."""
  expect(outcome, code, line=line)
  if len(outcome[1]) > 1:
    raise Fault(f'expected one line, got {outcome[1]}')


def expect_equal(one, other, step):
  """Check that two runs have equal records and, bit for bit, equal states."""
  histories = [
    [{**r, 'seconds': 0, 'data_wait': 0} for r in records.read_records(workdir)]
    for workdir in (one, other)
  ]
  if histories[0] != histories[1]:
    raise Fault(f'the records of {other.name} differ')
  states = []
  for workdir in (one, other):
    source = workdir / records.CHECKPOINTS / str(step)
    record = checkpoint_files.read_record(source)
    states.append(checkpoint_arrays.read(source, record))
  if states[0].keys() != states[1].keys():
    raise Fault(f'the state of {other.name} has other names')
  for name, array in states[0].items():
    if not np.array_equal(array, states[1][name]):
      raise Fault(f'{name} of {other.name} differs')


def seeds(case):
  """Random numbers of a case, which are the same each time."""
  return random.Random(case)


def free_port():
  with socket.socket() as trial:
    trial.bind(('', 0))
    return trial.getsockname()[1]


def signal_name(number):
  return signal.Signals(number).name

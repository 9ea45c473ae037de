"""Run a number of processes at a time, each in a locked directory.

A job holds the lock of its directory until it ends, even if the process that
started it is killed. A new start of the same job waits for the lock, so that
two processes never write to one directory.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import signal
import subprocess
import time
from typing import NamedTuple

from experiments.running.process import locks, signals

# Short, because a person waits; not 0, because polling costs CPU time.
POLL_SECONDS = 0.25


class Job(NamedTuple):
  """A command to run.

  Attributes:
    name: name for messages.
    command: function that returns the arguments; called when the job starts.
    log: file to append the output to.
    directory: directory to lock while the job runs.
  """

  name: str
  command: Callable[[], Sequence[str]]
  log: pathlib.Path
  directory: pathlib.Path


class _Running(NamedTuple):
  job: Job
  slot: int
  process: (
    subprocess.Popen[bytes] | None
  )  # None while another has the directory


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
  """Return the names of the GPUs, in the form of CUDA_VISIBLE_DEVICES.

  Args:
    environment: environment variables of this process.
  """
  named = environment.get('CUDA_VISIBLE_DEVICES')
  if named is not None:
    return [name for name in named.split(',') if name]
  try:
    done = subprocess.run(
      ['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'],
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return []
  return done.stdout.split()


def environment(slot: int, at_once: int, gpus: Sequence[str]) -> dict[str, str]:
  """Return environment variables that assign a job the GPU of its slot.

  A single job gets all GPUs. Jobs on one GPU split its memory, because each
  JAX process would allocate three quarters of it by default.

  Args:
    slot: index of the job among those that run, 0 to `at_once` - 1.
    at_once: number of jobs that run at a time.
    gpus: names from `visible_gpus`.

  Example:
    >>> environment(1, 2, ['0', '1'])
    {'CUDA_VISIBLE_DEVICES': '1'}
  """
  if at_once == 1 or not gpus:
    return {}
  added = {'CUDA_VISIBLE_DEVICES': gpus[slot % len(gpus)]}
  sharing = -(-at_once // len(gpus))
  if sharing > 1:
    added['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / sharing:.3f}'
  return added


def run_all(
  jobs: Sequence[Job],
  *,
  at_once: int,
  gpus: Sequence[str],
  on_end: Callable[[Job, int], None],
  on_wait: Callable[[Sequence[Job]], None],
) -> None:
  """Run the jobs in order; an interrupt ends the running ones.

  A signal to this process is passed on to the jobs as SIGUSR1. A job that also
  receives the original signal, from a scheduler or a terminal, counts both as
  one.

  Args:
    jobs: jobs to run.
    at_once: number of jobs to run at a time, >= 1.
    gpus: names from `visible_gpus`.
    on_end: called with each job that ends and its exit code.
    on_wait: called repeatedly with the running jobs.

  Raises:
    signals.Stopped: if a signal ended the jobs.
    locks.LockError: if the directory of a job cannot be written.
  """
  waiting = list(jobs)
  running: list[_Running] = []

  def send(number: int) -> None:
    for one in running:
      if one.process is not None:
        one.process.send_signal(number)

  with signals.deferred(at_once=lambda: send(signal.SIGKILL)):
    try:
      while (waiting or running) and signals.requested() is None:
        taken = {one.slot for one in running}
        for slot in sorted(set(range(at_once)) - taken)[: len(waiting)]:
          added = environment(slot, at_once, gpus)
          running.append(_start(waiting.pop(0), slot, added))
        on_wait([one.job for one in running])
        time.sleep(POLL_SECONDS)
        still = []
        for one in running:
          code = None if one.process is None else one.process.poll()
          if code is not None:
            on_end(one.job, code)
          elif one.process is None:
            added = environment(one.slot, at_once, gpus)
            still.append(_start(one.job, one.slot, added))
          else:
            still.append(one)
        running = still
    finally:
      send(signal.SIGUSR1)
      for one in running:
        if one.process is not None:
          one.process.wait()
  number = signals.requested()
  if number is not None and (waiting or running):
    left = len(waiting) + len(running)
    raise signals.Stopped(f'{left} runs did not finish', number)


def _start(job: Job, slot: int, added: Mapping[str, str]) -> _Running:
  lock = locks.take(job.directory)
  if lock is None:
    return _Running(job, slot, None)
  job.log.parent.mkdir(parents=True, exist_ok=True)
  with lock, open(job.log, 'a') as log:
    process = subprocess.Popen(
      job.command(),
      env={**os.environ, **added, **locks.hand_over(lock)},
      pass_fds=(lock.fileno(),),
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
    )
  return _Running(job, slot, process)

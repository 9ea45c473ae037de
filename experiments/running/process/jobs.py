"""Processes, some at a time, that survive the one that started them.

A job has the lock of its directory for as long as it lives: who starts it
again, after the first starter was killed, waits for it first.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import signal
import subprocess
import time
from typing import NamedTuple

from experiments.running.process import locks, signals

# Shorter than what a person notices; a look is cheap, but not free.
POLL_SECONDS = 0.25


class Job(NamedTuple):
  """A command to run.

  Attributes:
    name: of the job.
    command: makes the arguments, when the job starts.
    log: the file that its output is added to.
    directory: where it works; no two jobs work there at a time.
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
  """The GPUs by the names that CUDA_VISIBLE_DEVICES takes."""
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
  """What a job has in its environment besides: the GPU of its slot.

  One job at a time has all GPUs. Jobs that share one share its memory, of which
  JAX takes three quarters otherwise.
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
  """Runs the jobs in their order; an interrupt ends those that run.

  A signal that ends this process is passed on as SIGUSR1, which counts as one
  with the signal that a scheduler or a terminal sends to all processes.

  Args:
    jobs: what to run.
    at_once: how many at a time.
    gpus: as `visible_gpus` has them.
    on_end: called with a job that has ended and its exit code.
    on_wait: called over and over with the jobs that run.

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
    raise signals.Stopped(f'{len(waiting) + len(running)} did not end', number)


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

"""Run other libraries as contestants of a benchmark, in worker processes.

A worker waits on a pipe, without using a processor, while others have their
turn. It gets the initial parameters, the data and the rows of the batches, so
that it does the same work.
"""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from experiments.tools import benchmark_cases
from experiments.tools.benchmark_cases import Case
from experiments.tools.benchmark_loops import PEER, Contestant, Turn

# Seconds that an answer may take, because torch.compile takes minutes.
PATIENCE = 900
WORKER = pathlib.Path(__file__).parent / 'benchmark_worker.py'
PACKAGES = ('torch', 'drjax')
LOCAL_SGD, AVERAGER, DRJAX = 'torch_local_sgd', 'torch_averager', 'drjax'
LABELS = {
  LOCAL_SGD: 'torch, local SGD in one process',
  AVERAGER: 'torch, PeriodicModelAverager',
  DRJAX: 'DrJAX',
}


class Worker(NamedTuple):
  """A worker process and the file of its messages."""

  process: subprocess.Popen[str]
  messages: pathlib.Path


def missing() -> list[str]:
  """Return the packages of the peers that are not installed."""
  return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def kinds(case: Case) -> list[str]:
  """Return the peers that are measured in a case, of installed packages."""
  found = []
  if 'torch' not in missing():
    found.append(LOCAL_SGD)
    # It has one process for each replica, which must not share processors.
    if case.num_replicas <= (os.cpu_count() or 1):
      found.append(AVERAGER)
  # Its vmap gives convolutions an axis of kernels, slow on CPU.
  if 'drjax' not in missing() and not case.convolves:
    found.append(DRJAX)
  return found


@contextlib.contextmanager
def running(case: Case) -> Iterator[list[Contestant]]:
  """Start the workers of a case, and stop them at the end.

  Raises:
    ValueError: if a worker fails.
  """
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    directory = pathlib.Path(name)
    write(case, directory)
    groups = []
    for kind in kinds(case):
      number = case.num_replicas if kind == AVERAGER else 1
      group = [_start(kind, rank, directory) for rank in range(number)]
      for worker in group:
        stack.callback(_stop, worker)
      groups.append((kind, group))
    yield [_contestant(case, kind, group) for kind, group in groups]


def write(case: Case, directory: pathlib.Path) -> None:
  """Write what the workers need."""
  params, _ = benchmark_cases.initial(case)
  named: dict[str, Any] = benchmark_cases.flat(params)
  np.savez(directory / 'params.npz', **named)
  np.savez(
    directory / 'data.npz',
    rows=benchmark_cases.rows(case),
    **benchmark_cases.resident(case).arrays,
  )
  settings = {
    'case': case.name,
    'model': type(case.model).__name__,
    'replicas': case.num_replicas,
    'period': benchmark_cases.PERIOD,
    'dispatch': case.dispatch,
    'learning_rate': benchmark_cases.LEARNING_RATE,
    'momentum': benchmark_cases.MOMENTUM,
  }
  (directory / 'settings.json').write_text(json.dumps(settings))


def _start(kind: str, rank: int, directory: pathlib.Path) -> Worker:
  messages = directory / f'{kind}-{rank}.txt'
  command = [sys.executable, str(WORKER), kind, str(rank), str(directory)]
  with messages.open('w') as file:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=file,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
  return Worker(process, messages)


def _stop(worker: Worker) -> None:
  worker.process.kill()
  worker.process.wait()
  for pipe in (worker.process.stdin, worker.process.stdout):
    with contextlib.suppress(OSError):
      pipe and pipe.close()


def _contestant(case: Case, kind: str, group: Sequence[Worker]) -> Contestant:
  """Return the contestant of workers, once they are ready."""
  ready = [answer(kind, worker) for worker in group]

  def run(steps: int) -> Turn:
    answers = _ask(kind, group, {'run': steps})
    seconds = max(one['seconds'] for one in answers)
    return Turn(seconds, float(np.mean([one['loss'] for one in answers])))

  def average() -> dict[str, np.ndarray]:
    paths = [worker.messages.with_suffix('.npz') for worker in group]
    for path, worker in zip(paths, group):
      _ask(kind, [worker], {'average': str(path)})
    files = [dict(np.load(path)) for path in paths]
    return benchmark_cases.mean(files)

  return Contestant(
    LABELS[kind] + ready[0]['note'],
    PEER,
    ready[0]['unit'],
    run,
    average,
    tuple(worker.process.pid for worker in group),
  )


def _ask(kind: str, group: Sequence[Worker], command: Any) -> list[Any]:
  """Send a command to all workers, then wait for all answers."""
  for worker in group:
    assert worker.process.stdin is not None  # a pipe, see `_start`
    with contextlib.suppress(BrokenPipeError):  # `answer` will find out
      worker.process.stdin.write(json.dumps(command) + '\n')
      worker.process.stdin.flush()
  return [answer(kind, worker) for worker in group]


def answer(kind: str, worker: Worker) -> Any:
  """Return the next answer of a worker.

  Raises:
    ValueError: if there is none.
  """
  pipe = worker.process.stdout
  assert pipe is not None  # see `_start`
  ready, _, _ = select.select([pipe], [], [], PATIENCE)
  line = pipe.readline() if ready else ''
  if line:
    return json.loads(line)
  reason = f'no answer within {PATIENCE} seconds'
  for said in worker.messages.read_text().splitlines():
    if re.match(r'[\w.]*(Error|Exception)\b', said):
      reason = said
  raise ValueError(f'{LABELS[kind]} failed: {reason}')

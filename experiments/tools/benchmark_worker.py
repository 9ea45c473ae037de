"""Run one of the peers of `benchmark.py` by commands on a pipe.

`benchmark_peers` starts it with the kind of the peer, its rank and a directory,
and sends a line of JSON for each command.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from collections.abc import Callable
import importlib
import json
import os
import time
from typing import IO, Any, NamedTuple

import numpy as np


class Peer(NamedTuple):
  """A loop of another library.

  Attributes:
    unit: steps of which `run` takes a multiple.
    run: `steps -> loss` of the last step. It returns when the steps are done.
    average: returns the averaged parameters, named and shaped as in flax.
    note: words to add to the label.
  """

  unit: int
  run: Callable[[int], float]
  average: Callable[[], dict[str, np.ndarray]]
  note: str = ''


class Setting(NamedTuple):
  """What a peer gets.

  Attributes:
    options: names and numbers of the case.
    params: initial parameters, named and shaped as in flax.
    data: `image`, float32[n, height, width, channels]; `label`, int32[n]; and
      `rows`, int32[steps, N, batch].
    directory: directory in which processes may meet.
    rank: number of this process.
  """

  options: dict[str, Any]
  params: dict[str, np.ndarray]
  data: dict[str, np.ndarray]
  directory: pathlib.Path
  rank: int


# Modules and functions, imported when they are needed.
PEERS = {
  'torch_local_sgd': ('benchmark_torch', 'local_sgd'),
  'torch_averager': ('benchmark_torch', 'averager'),
  'drjax': ('benchmark_drjax', 'make'),
}


def read(directory: pathlib.Path, rank: int) -> Setting:
  """Return what `benchmark_peers` wrote."""
  options = json.loads((directory / 'settings.json').read_text())
  params = dict(np.load(directory / 'params.npz'))
  data = dict(np.load(directory / 'data.npz'))
  return Setting(options, params, data, directory, rank)


def make(kind: str, setting: Setting) -> Peer:
  """Return a peer."""
  module, function = PEERS[kind]
  found = importlib.import_module(f'experiments.tools.{module}')
  return vars(found)[function](setting)


def serve(peer: Peer, commands: IO[str], answers: IO[str]) -> None:
  """Obey commands until there are no more."""

  def answer(**values: Any) -> None:
    answers.write(json.dumps(values) + '\n')
    answers.flush()

  answer(unit=peer.unit, note=peer.note)
  for line in commands:
    command = json.loads(line)
    if 'run' in command:
      begun = time.perf_counter()
      loss = peer.run(command['run'])
      answer(seconds=time.perf_counter() - begun, loss=loss)
    else:
      arrays: dict[str, Any] = peer.average()
      np.savez(command['average'], **arrays)
      answer()


def main() -> None:
  kind, rank, directory = sys.argv[1:]
  # Messages of libraries must not get between the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  serve(
    make(kind, read(pathlib.Path(directory), int(rank))), sys.stdin, answers
  )


if __name__ == '__main__':
  main()

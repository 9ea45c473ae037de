"""Compare the speed of the engine with hand-written loops and with peers.

  python experiments/benchmark.py
  python experiments/benchmark.py --cases=mlp2 --peers

All contestants do the same work: local SGD with momentum, an average every 8
steps, batches of 32, on equal batches from equal initial parameters. They take
turns of about 0.3 seconds in rounds. A ratio compares two of them in the same
round. A round in which other programs used more than a tenth of the processors
does not count.

With --peers, torch and DrJAX take part if they are installed:

  pip install torch drjax

A case takes about a minute; Ctrl-C ends it.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Mapping, Sequence
import contextlib
import importlib.metadata
import os
from typing import Any

from absl import flags

from experiments.running.flags import cli, speed_flags
from experiments.running.records import json_files, writing
from experiments.tools import (
  benchmark_by_hand,
  benchmark_cases,
  benchmark_loops,
  benchmark_peers,
  benchmark_rounds,
  benchmark_tables,
)
from experiments.tools.benchmark_cases import Case

FLAGS = flags.FLAGS

flags.DEFINE_list(
  'cases',
  list(benchmark_cases.NAMES),
  'Cases to measure: a model with 2 or 8 replicas, and `_streamed` for '
  'streamed against resident data. All: '
  + ', '.join(benchmark_cases.NAMES)
  + '.',
)
flags.DEFINE_bool(
  'peers', False, 'Measure torch and DrJAX too, if they are installed.'
)
flags.DEFINE_list(
  'engine_devices',
  None,
  'Numbers of devices on which to measure the engine. Default: the largest '
  'number that divides the replicas and has a processor for each; for the MLP '
  'and LeNet-5 also 1.',
)
flags.DEFINE_float(
  'case_seconds',
  40.0,
  'Seconds after which no round begins, except the first '
  f'{benchmark_rounds.LEAST_ROUNDS}. Compilation comes on top.',
)
flags.DEFINE_integer(
  'max_rounds',
  21,
  f'Largest number of rounds of a case, >= {benchmark_rounds.LEAST_ROUNDS}.',
)
flags.DEFINE_string(
  'results',
  None,
  'Directory to write to: a JSON file for each case, and table.md of all of '
  'them. A case whose file exists is not measured. Default: none.',
)
flags.DEFINE_bool(
  'measure_again', False, 'Measure a case again whose file exists.'
)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(speed_flags)


def main() -> None:
  with cli.one_line_errors(ValueError):
    _check()
    # Without data, to refuse unknown names before the first measurement.
    cases = [benchmark_cases.make_case(n, FLAGS.data_dir) for n in FLAGS.cases]
    print(speed_flags.apply(FLAGS), end='', flush=True)
    cli.make_fake_devices(max(max(_devices(case)) for case in cases))
    for case in cases:
      path = _path(case)
      if path is not None and path.exists() and not FLAGS.measure_again:
        print(f'{path} exists; --measure_again measures it again', flush=True)
        continue
      measured = measure(case)
      print(f'\n{benchmark_tables.terminal(measured)}', flush=True)
      if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.write_text(path, writing.to_json(measured))
    if FLAGS.results is not None:
      directory = pathlib.Path(FLAGS.results)
      writing.write_text(directory / 'table.md', table(read(directory)))


def _check() -> None:
  if FLAGS.max_rounds < benchmark_rounds.LEAST_ROUNDS:
    raise ValueError(
      f'--max_rounds must be >= {benchmark_rounds.LEAST_ROUNDS}, got '
      f'{FLAGS.max_rounds}'
    )
  if not FLAGS.peers:
    return
  missing = benchmark_peers.missing()
  hint = f'pip install {" ".join(missing)}'
  if len(missing) == len(benchmark_peers.PACKAGES):
    raise ValueError(f'--peers found no peer; {hint}')
  if missing:
    print(f'{missing[0]} is not installed and does not take part; {hint}')


def _devices(case: Case) -> list[int]:
  """Return the numbers of devices on which to measure a case."""
  n = case.num_replicas
  if FLAGS.engine_devices is None:
    most = max(
      d for d in range(1, n + 1) if n % d == 0 and d <= (os.cpu_count() or 1)
    )
    # With convolutions, programs of fewer devices take a minute to compile,
    # because the replicas of a device are written out.
    return [most] if case.convolves else sorted({1, most})
  texts = FLAGS.engine_devices
  found = [int(text) if text.isdecimal() else 0 for text in texts]
  for devices in found:
    if not devices or n % devices:
      raise ValueError(
        f'--engine_devices must divide the {n} replicas of {case.name}, got '
        f'{",".join(texts)}'
      )
  return found


def measure(case: Case) -> dict[str, Any]:
  """Measure a case; return the measurement, of JSON types."""
  print(f'{case.name} ...', flush=True)  # now, because a case takes a minute
  devices = _devices(case)
  peers: contextlib.AbstractContextManager[Any] = contextlib.nullcontext([])
  if FLAGS.peers and not case.is_streamed:
    peers = benchmark_peers.running(case)
  with peers as workers:
    if case.is_streamed:
      contestants = benchmark_loops.from_stream(case, max(devices))
    else:
      contestants = [benchmark_loops.engine(case, d) for d in devices]
      for scan in (False,) if case.convolves else (True, False):
        contestants.append(
          benchmark_by_hand.by_hand(case, max(devices), scan=scan)
        )
    measured = benchmark_rounds.measure(
      case,
      [*contestants, *workers],
      seconds=FLAGS.case_seconds,
      rounds=FLAGS.max_rounds,
    )
  if workers:
    for name in set(benchmark_peers.PACKAGES) - set(benchmark_peers.missing()):
      measured['machine'][name] = importlib.metadata.version(name)
  return measured


def _path(case: Case) -> pathlib.Path | None:
  if FLAGS.results is None:
    return None
  return pathlib.Path(FLAGS.results) / f'{case.name}.json'


def read(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Return the measurements of all cases in a directory.

  Raises:
    ValueError: if a file is damaged.
  """
  found = [
    json_files.read(directory / f'{name}.json', benchmark_tables.FORM)
    for name in benchmark_cases.NAMES
  ]
  return [measured for measured in found if measured is not None]


def table(measured: Sequence[Mapping[str, Any]]) -> str:
  """Return the tables of some cases in Markdown."""
  return '\n'.join(map(benchmark_tables.markdown, measured))


if __name__ == '__main__':
  cli.run(main)

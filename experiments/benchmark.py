"""Compare the speed of the engine with hand-written training loops.

  python experiments/benchmark.py

Both hand-written loops are minimal PR-SGD: momentum SGD and a conditional pmean
in a pmap, with one replica per device and identical batches. One scans over
steps, one dispatches each step. All loops take turns in one process.

A case of streamed data compares the engine with itself: `pr.pipeline`, whose
images are decoded during the run (ResNet-20) or read from arrays (MLP), with
data that stays on the devices. Its ratio divides streamed by resident steps.

The ratio divides the median steps per second of the engine by the faster
hand-written loop; above 1, the engine is faster. Memory is the size that the
compiled program requires on one device.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Mapping
import resource
import statistics
import time
from typing import Any

from absl import flags
import jax

from experiments.running.flags import cli
from experiments.running.records import records, writing
from experiments.tools import benchmark_loops, tables
from experiments.tools.tables import Column

FLAGS = flags.FLAGS

flags.DEFINE_list(
  'cases',
  ['mlp2', 'mlp8', 'resnet2', 'mlp2_streamed', 'resnet2_streamed'],
  'Cases to measure: mlp2 and mlp8 (an MLP on 2 or 8 devices), resnet2 '
  '(ResNet-20 on 2 devices), mlp2_streamed and resnet2_streamed (streamed '
  'against resident data).',
)
flags.adopt_module_key_flags(cli)
flags.DEFINE_string(
  'json', None, 'JSON file to write the numbers to. Default: none.'
)


def measure(case: benchmark_loops.Case) -> dict[str, Any]:
  """Run all loops in turn and return medians, quartiles and their ratio."""
  loops = {
    'engine': benchmark_loops.engine_loop(case),
    'scanned_by_hand': benchmark_loops.hand_written_loop(case, scan=True),
    'stepped_by_hand': benchmark_loops.hand_written_loop(case, scan=False),
  }
  _compile_again(loops)
  rates = _take_turns(case, loops)
  medians = _medians(rates)
  return {
    'ratio': medians['engine']
    / max(medians['scanned_by_hand'], medians['stepped_by_hand']),
    'steps_per_second': medians,
    'quartiles': _quartiles(rates),
    'seconds_to_first_step': {
      name: loop.seconds_to_first_step for name, loop in loops.items()
    },
    'bytes_per_device': {
      name: loop.bytes_per_device for name, loop in loops.items()
    },
  }


def measure_streamed(case: benchmark_loops.Case) -> dict[str, Any]:
  """Run the engine on streamed and resident data in turn.

  Args:
    case: the model and its data.

  Returns:
    Medians, quartiles and the ratio of steps per second, and the share of the
    time in which the devices had no batches.
  """
  streamed = benchmark_loops.streamed_data(case)
  trainers = {
    name: benchmark_loops.make_trainer(case)
    for name in ('streamed', 'resident')
  }
  loops = {
    'streamed': benchmark_loops.engine_loop(
      case, trainers['streamed'], streamed
    ),
    'resident': benchmark_loops.engine_loop(case, trainers['resident']),
  }
  _compile_again(loops)
  waited = trainers['streamed'].waited()
  rates = _take_turns(case, loops)
  waited = trainers['streamed'].waited() - waited
  medians = _medians(rates)
  steps = case.dispatches * case.steps_per_dispatch
  return {
    'ratio': medians['streamed'] / medians['resident'],
    'steps_per_second': medians,
    'quartiles': _quartiles(rates),
    'data_wait': waited / sum(steps / rate for rate in rates['streamed']),
  }


def _compile_again(loops: Mapping[str, benchmark_loops.Loop]) -> None:
  """Run each loop, because making one clears the programs of those before."""
  for loop in loops.values():
    jax.block_until_ready(loop.run())


def _take_turns(
  case: benchmark_loops.Case, loops: Mapping[str, benchmark_loops.Loop]
) -> dict[str, list[float]]:
  """Return the steps per second of each loop, measured in turn."""
  rates: dict[str, list[float]] = {name: [] for name in loops}
  for i in range(case.repeats):
    # The order alternates, because a loop may slow down the next one.
    for name in sorted(loops, reverse=bool(i % 2)):
      begun = time.perf_counter()
      for _ in range(case.dispatches):
        metrics = loops[name].run()
      jax.block_until_ready(metrics)
      steps = case.dispatches * case.steps_per_dispatch
      rates[name].append(steps / (time.perf_counter() - begun))
  return rates


def _medians(rates: Mapping[str, list[float]]) -> dict[str, float]:
  return {name: statistics.median(found) for name, found in rates.items()}


def _quartiles(rates: Mapping[str, list[float]]) -> dict[str, list[float]]:
  return {
    name: statistics.quantiles(found, n=4)[::2] for name, found in rates.items()
  }


def main() -> None:
  cli.make_fake_devices(8)
  with cli.one_line_errors(ValueError):
    cases = {
      n: benchmark_loops.make_case(n, FLAGS.data_dir) for n in FLAGS.cases
    }
  results: dict[str, Any] = {}
  streams: dict[str, Any] = {}
  for name, case in cases.items():
    print(f'{name} ...', flush=True)  # now, because a case takes minutes
    if name.endswith(benchmark_loops.STREAMED):
      streams[name] = measure_streamed(case)
    else:
      results[name] = measure(case)
  if results:
    rows = [_row(name, found) for name, found in results.items()]
    print(f'\n{tables.aligned(rows, COLUMNS)}')
  if streams:
    rows = [_streamed_row(name, found) for name, found in streams.items()]
    print(f'\n{tables.aligned(rows, STREAMED_COLUMNS)}')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  whole = {
    'machine': records.machine(),
    'peak_rss_mib': peak,
    'cases': results,
    'streams': streams,
  }
  print(f'\n{records.machine()}, peak resident memory {peak:.0f} MiB')
  if FLAGS.json is not None:
    path = pathlib.Path(FLAGS.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_text(path, writing.to_json(whole))


def _row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  """Return the row of a case: speeds, first steps and memory of its loops."""
  first = found['seconds_to_first_step'].values()
  memory = found['bytes_per_device'].values()
  return {
    'case': name,
    **found['steps_per_second'],
    'ratio': found['ratio'],
    'first': ' / '.join(f'{seconds:.1f}' for seconds in first),
    'memory': ' / '.join(f'{count / 2**20:.1f}' for count in memory),
  }


def _streamed_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  return {'case': name, **found['steps_per_second'], **found}


def _speed(name: str, title: str) -> Column:
  return Column(name, f'{title}, steps/s', '{:.1f}'.format, is_number=True)


COLUMNS = (
  Column('case'),
  _speed('engine', 'engine'),
  _speed('scanned_by_hand', 'scanned by hand'),
  _speed('stepped_by_hand', 'stepped by hand'),
  Column('ratio', show='{:.3f}'.format, is_number=True),
  Column('first', 'first step, s', is_number=True),
  Column('memory', 'memory per device, MiB', is_number=True),
)
STREAMED_COLUMNS = (
  Column('case'),
  _speed('streamed', 'streamed'),
  _speed('resident', 'resident'),
  Column('ratio', show='{:.3f}'.format, is_number=True),
  Column('data_wait', 'without data', '{:.1%}'.format, is_number=True),
)


if __name__ == '__main__':
  cli.run(main)
